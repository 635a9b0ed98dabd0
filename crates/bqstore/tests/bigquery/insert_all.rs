//! Rows through `tabledata.insertAll`.

use super::google::{Google, error};
use super::{letters, new_rows, open, rows};
use bqstore::bigquery::{BigQueryInserter, BigQueryOptions, WriteMode};
use bqstore::{Columns, RowInserter};
use messagepipeline::{ErrorClass, IdGenerator};
use serde_json::json;
use testkit::sink_suite::message;

fn options(google: &Google) -> BigQueryOptions {
    let mut options = google.options();
    options.mode = WriteMode::InsertAll;
    options
}

#[tokio::test]
async fn a_row_has_its_message_id_as_insert_id_and_its_values_as_json() {
    let google = Google::start().await;
    let inserter = open(options(&google)).await;
    let messages = [message(IdGenerator::default().next_id(), "{\"value\":0}")];
    assert_eq!(letters(&inserter.insert(rows(&Columns::default(), &messages)).await.unwrap()), "s");
    let stored = google.rest.state.lock().inserted.clone();
    let id = messages[0].id.to_string();
    let expected = json!({"insertId": id, "json": {
        "message_id": id, "received_at": "2023-01-04T21:31:22.661042Z", "device_id": "d", "value": 0.0,
        "topic": "devices/d/up", "payload": "eyJ2YWx1ZSI6MH0=",
    }});
    assert_eq!(stored, [expected]);
}

/// Another replica knows nothing of the first one's rows; the insertId does.
#[tokio::test]
async fn a_redelivery_to_another_replica_is_left_out_by_its_insert_id() {
    let google = Google::start().await;
    let (one, other) = (open(options(&google)).await, open(options(&google)).await);
    let rows = new_rows(3);
    assert_eq!(letters(&one.insert(rows.clone()).await.unwrap()), "sss");
    assert_eq!(letters(&one.insert(rows.clone()).await.unwrap()), "aaa");
    assert_eq!(letters(&other.insert(rows).await.unwrap()), "sss");
    assert_eq!(google.rest.state.lock().inserted.len(), 3);
}

#[tokio::test]
async fn a_refused_row_is_refused_alone_and_its_values_are_not_told() {
    let google = Google::start().await;
    let inserter = open(options(&google)).await;
    let messages = ["a", "b", "c"].map(|text| message(IdGenerator::default().next_id(), text));
    let message = "Cannot convert value to integer (bad value): 4711";
    google.rest.state.lock().refuses = Some(("Yg==", "invalid", message));
    let outcomes = inserter.insert(rows(&Columns::default(), &messages)).await.unwrap();
    assert_eq!(letters(&outcomes), "sps");
    let bqstore::RowOutcome::Refused(error) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert!(error.detail().contains("invalid at column `value`: Cannot convert value to integer"), "{error}");
    assert!(!error.detail().contains("4711"), "{error}");
    google.rest.state.lock().refuses = Some(("Yg==", "backendError", "later"));
    assert_eq!(letters(&inserter.insert(rows(&Columns::default(), &messages)).await.unwrap()), "ata");
}

#[tokio::test]
async fn a_call_is_split_by_bytes_and_rows_and_a_failed_part_takes_no_other_with_it() {
    let google = Google::start().await;
    let mut options = options(&google);
    options.max_request_bytes = Some(10_000);
    options.max_request_rows = 3;
    let inserter = open(options).await;
    let ids = IdGenerator::default();
    let messages = [5_000, 5_000, 1, 1, 1, 9_000, 1].map(|size| message(ids.next_id(), vec![b'x'; size]));
    let down = error(503, "backendError", "later");
    google.rest.state.lock().faults.push_back(("nowhere", 500, json!(null)));
    let outcomes = inserter.insert(rows(&Columns::default(), &messages)).await.unwrap();
    assert_eq!(letters(&outcomes), "sssssps", "9,000 bytes are 12,000 in base64");
    assert_eq!(google.calls("insertAll"), 3);
    google.rest.state.lock().faults.push_back(("insertAll", 503, down));
    let error = inserter.insert(new_rows(1)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient);
}

#[tokio::test]
async fn a_removed_table_is_for_a_person_to_mend() {
    let google = Google::start().await;
    let inserter: BigQueryInserter = open(options(&google)).await;
    google.rest.state.lock().tables.as_mut().unwrap().clear();
    let error = inserter.insert(new_rows(1)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Configuration);
}

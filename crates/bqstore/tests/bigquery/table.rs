//! The table: made, found, changed by others, removed.

use super::google::{Google, TABLE, error, reference};
use super::{install_tls, letters, new_rows, open, rows};
use bqstore::bigquery::{BigQueryInserter, Drift, EXTRA_COLUMN, Partition, WriteMode};
use bqstore::{Columns, RowInserter};
use messagepipeline::{ErrorClass, StageError};
use serde_json::{Value, json};
use std::time::Duration;
use testkit::sink_suite::messages;

async fn open_error(inserter: BigQueryInserter) -> StageError {
    inserter.open().await.expect_err("a table that cannot be made ready")
}

fn inserter(
    google: &Google,
    change: impl FnOnce(&mut bqstore::bigquery::BigQueryOptions),
) -> BigQueryInserter {
    let mut options = google.options();
    change(&mut options);
    BigQueryInserter::new(options, &Columns::default()).expect("settings that work")
}

#[tokio::test]
async fn a_missing_table_is_made_with_columns_partitions_clusters_and_key() {
    let google = Google::start().await;
    inserter(&google, |options| {
        options.mode = WriteMode::Upsert;
        options.expiration = Some(Duration::from_secs(86_400));
        options.max_staleness = Some(Duration::from_secs(900));
    })
    .open()
    .await
    .unwrap();
    let table = google.rest.state.lock().tables.as_ref().unwrap()[TABLE].clone();
    let partitions = json!({"type": "DAY", "field": "received_at", "expirationMs": "86400000"});
    assert_eq!(table["timePartitioning"], partitions);
    assert_eq!(table["clustering"], json!({"fields": ["message_id"]}));
    assert_eq!(table["tableConstraints"], json!({"primaryKey": {"columns": ["message_id"]}}));
    assert_eq!(table["maxStaleness"], "0-0 0 0:15:0");
    let types: Vec<_> =
        table["schema"]["fields"].as_array().unwrap().iter().map(|f| f["type"].as_str().unwrap()).collect();
    let text = "STRING";
    let expected = [text, "TIMESTAMP", text, "TIMESTAMP", "FLOAT", text, text, text, text, text, "BYTES"];
    assert_eq!(types, expected);

    let google = Google::start().await;
    inserter(&google, |options| options.partition = Partition::None).open().await.unwrap();
    let table = google.rest.state.lock().tables.as_ref().unwrap()[TABLE].clone();
    assert_eq!(table["clustering"], json!({"fields": ["device_id"]}));
    assert_eq!((&table["timePartitioning"], &table["tableConstraints"]), (&Value::Null, &Value::Null));
}

/// Two replicas start at the same time: both see no table, one makes it, and both store.
#[tokio::test]
async fn a_creation_that_another_replica_wins_is_no_error() {
    let google = Google::start().await;
    let missing = error(404, "notFound", "Not found: Table");
    let first = open(google.options()).await;
    google.rest.state.lock().faults.push_back(("tables/messages", 404, missing));
    let second = open(google.options()).await;
    assert_eq!(google.calls("POST /bigquery/v2/projects/fake-project/datasets/telemetry/tables"), 4);
    assert_eq!(letters(&first.insert(new_rows(1)).await.unwrap()), "s");
    assert_eq!(letters(&second.insert(new_rows(1)).await.unwrap()), "s");
}

#[tokio::test]
async fn what_a_person_must_change_is_named_and_pauses_the_stream() {
    let google = Google::start().await;
    google.rest.state.lock().tables = None;
    let no_dataset = open_error(inserter(&google, |_| ())).await;
    assert!(
        no_dataset.to_string().contains("dataset fake-project.telemetry is not there: create it (`bq mk")
    );

    let google = Google::start().await;
    let no_table = open_error(inserter(&google, |options| options.create = false)).await;
    assert!(
        no_table.to_string().contains("table fake-project.telemetry.messages is not there"),
        "{no_table}"
    );

    let denied = error(403, "accessDenied", "Access Denied");
    google.rest.state.lock().faults.push_back(("tables/messages", 403, denied));
    let no_right = open_error(inserter(&google, |_| ())).await;
    assert!(no_right.to_string().contains("roles/bigquery.dataEditor"), "{no_right}");

    inserter(&google, |_| ()).open().await.unwrap();
    let no_key = open_error(inserter(&google, |options| options.mode = WriteMode::Upsert)).await;
    assert!(no_key.to_string().contains("ADD PRIMARY KEY (message_id) NOT ENFORCED"), "{no_key}");
    for error in [no_dataset, no_table, no_right, no_key] {
        assert_eq!(error.class(), ErrorClass::Configuration, "{error}");
    }
}

#[tokio::test]
async fn a_service_that_is_down_at_the_start_is_a_passing_error() {
    let google = Google::start().await;
    let reply = error(503, "backendError", "try later");
    google.rest.state.lock().faults.push_back(("tables/messages", 503, reply));
    let limited = error(403, "rateLimitExceeded", "too many");
    google.rest.state.lock().faults.push_back(("tables/messages", 403, limited));
    for _ in 0..2 {
        assert_eq!(open_error(inserter(&google, |_| ())).await.class(), ErrorClass::Transient);
    }
    install_tls();
    let refused = inserter(&google, |options| {
        options.endpoints.as_mut().unwrap().rest = "http://127.0.0.1:1".to_owned();
    });
    assert_eq!(open_error(refused).await.class(), ErrorClass::Transient);
}

#[tokio::test]
async fn without_the_right_to_query_or_to_make_a_view_rows_are_stored_all_the_same() {
    let google = Google::start().await;
    open(google.options()).await;
    let denied = || error(403, "accessDenied", "no job may be created");
    google.rest.state.lock().faults.push_back((
        "POST /bigquery/v2/projects/fake-project/queries",
        403,
        denied(),
    ));
    google.rest.state.lock().faults.push_back(("datasets/telemetry/tables", 403, denied()));
    let inserter = open(google.options()).await;
    assert!(google.rest.state.lock().faults.is_empty(), "both were tried");
    assert_eq!(letters(&inserter.insert(new_rows(2)).await.unwrap()), "ss");
}

/// A table removed in mid-stream is not made anew, and its rows wait; given back by a person, it takes them.
#[tokio::test]
async fn a_table_that_is_removed_stops_the_stream_until_it_is_back() {
    let google = Google::start().await;
    let inserter = open(google.options()).await;
    assert_eq!(letters(&inserter.insert(new_rows(1)).await.unwrap()), "s");
    google.storage.db().fluent().schema().table(reference(TABLE)).delete().await.unwrap();
    let kept = google.rest.state.lock().tables.as_mut().unwrap().remove(TABLE).unwrap();
    let rows = new_rows(2);
    for _ in 0..2 {
        let error = inserter.insert(rows.clone()).await.unwrap_err();
        assert_eq!(
            (error.class(), error.reason()),
            (ErrorClass::Configuration, "bigquery-missing"),
            "{error}"
        );
    }
    // The storage side hears of it later than the other.
    google.rest.state.lock().tables.as_mut().unwrap().insert(TABLE.to_owned(), kept);
    let error = inserter.insert(rows.clone()).await.unwrap_err();
    assert_eq!((error.class(), error.reason()), (ErrorClass::Transient, "bigquery-schema"), "{error}");
    google.rest.state.lock().tables.as_mut().unwrap().remove(TABLE);
    open(google.options()).await;
    assert_eq!(letters(&inserter.insert(rows).await.unwrap()), "ss");
}

/// Makes the default table with `change` made to its columns, by somebody else.
async fn table_with(google: &Google, change: impl FnOnce(&mut Vec<Value>)) {
    open(google.options()).await;
    let mut table = google.rest.state.lock().tables.as_mut().unwrap().remove(TABLE).unwrap();
    google.storage.db().fluent().schema().table(reference(TABLE)).delete().await.unwrap();
    change(table["schema"]["fields"].as_array_mut().unwrap());
    let options = google.options();
    let url = format!("{}/bigquery/v2/projects/p/datasets/d/tables", options.endpoints.unwrap().rest);
    let reply = reqwest::Client::new().post(url).body(table.to_string()).send().await.unwrap();
    assert!(reply.status().is_success());
}

#[tokio::test]
async fn a_column_of_another_type_loses_no_row_and_no_value() {
    let google = Google::start().await;
    table_with(&google, |fields| {
        for field in fields.iter_mut() {
            match field["name"].as_str() {
                Some("value") => field["type"] = json!("BOOLEAN"),
                Some("received_at") => field["type"] = json!("STRING"),
                _ => {}
            }
        }
        fields.push(json!({"name": "of_somebody", "type": "STRING", "mode": "NULLABLE"}));
    })
    .await;
    let inserter = open(google.options()).await;
    assert_eq!(google.columns().last().map(String::as_str), Some(EXTRA_COLUMN));
    assert_eq!(letters(&inserter.insert(rows(&Columns::default(), &messages(2))).await.unwrap()), "ss");
    #[derive(serde::Deserialize)]
    struct Read {
        value: Option<bool>,
        received_at: String,
        _extra: Option<String>,
    }
    let read: Vec<Read> = google.storage.rows(Google::table()).unwrap();
    assert_eq!((read[1].value, &*read[1].received_at), (None, "2023-01-04T21:31:22.661042Z"));
    let extra: Value = serde_json::from_str(read[1]._extra.as_deref().unwrap()).unwrap();
    assert_eq!(extra, json!({"value": 1.0}));
}

#[tokio::test]
async fn columns_that_may_not_be_added_are_kept_in_the_extra_column_or_left_out() {
    for (drift, is_kept) in [(Drift::ExtraColumn, true), (Drift::Ignore, false)] {
        let google = Google::start().await;
        table_with(&google, |fields| fields.retain(|field| field["name"] != "value")).await;
        let mut options = google.options();
        options.drift = drift;
        let inserter = open(options).await;
        assert_eq!(letters(&inserter.insert(rows(&Columns::default(), &messages(1))).await.unwrap()), "s");
        assert!(!google.columns().contains(&"value".to_owned()));
        assert_eq!(google.columns().contains(&EXTRA_COLUMN.to_owned()), is_kept);
    }
}

/// Somebody drops a column while rows are written: it is added again, and nothing is lost on the way.
#[tokio::test]
async fn a_column_that_is_dropped_in_mid_stream_stops_nothing() {
    let google = Google::start().await;
    let inserter = open(google.options()).await;
    assert_eq!(letters(&inserter.insert(rows(&Columns::default(), &messages(1))).await.unwrap()), "s");
    table_with(&google, |fields| fields.retain(|field| field["name"] != "value")).await;
    assert_eq!(letters(&inserter.insert(new_rows(3)).await.unwrap()), "sss");
    assert!(google.columns().contains(&"value".to_owned()));
}

#[test]
fn settings_that_cannot_work_are_refused_before_anything_is_opened() {
    install_tls();
    let refusal = |change: &dyn Fn(&mut bqstore::bigquery::BigQueryOptions)| {
        let mut options = bqstore::bigquery::BigQueryOptions::new("p", "d", "t", super::credentials());
        change(&mut options);
        BigQueryInserter::new(options, &Columns::default()).map(drop).unwrap_err().to_string()
    };
    assert!(refusal(&|o| o.dataset = "a-b".to_owned()).contains("`a-b` cannot name a dataset"));
    assert!(refusal(&|o| o.project = "a/b".to_owned()).contains("`a/b` is no project id"));
    let by_device = |o: &mut bqstore::bigquery::BigQueryOptions| {
        o.partition = Partition::Column("device_id".to_owned());
    };
    assert!(refusal(&by_device).contains("no column of type timestamp"));
    assert!(
        refusal(&|o| o.cluster_by = Some(vec!["nothing".to_owned()]))
            .contains("`nothing`, which is no column")
    );
    assert!(refusal(&|o| o.max_request_bytes = Some(20_000_000)).contains("max_request_bytes"));
}

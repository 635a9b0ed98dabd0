//! Rows through the Storage Write API: appended, and upserted by message id.

use super::google::{Google, StoredRow};
use super::{ALWAYS, letters, new_rows, open, rows};
use bigquery::testing::{BigQueryFakeCode, BigQueryFakeFault, BigQueryFakeRpc};
use bqstore::bigquery::{BigQueryInserter, WriteMode};
use bqstore::{Columns, RowInserter};
use messagepipeline::{ErrorClass, MessageId};
use std::sync::Arc;
use std::time::Duration;
use testkit::sink_suite::{self as suite, TableUnderTest};

/// A table of the double, opened again and again with the ids of all its rows recalled.
struct Table {
    google: Google,
    mode: WriteMode,
    opened: Option<Arc<BigQueryInserter>>,
}

impl Table {
    async fn new(mode: WriteMode) -> Self {
        Self { google: Google::start().await, mode, opened: None }
    }
}

impl TableUnderTest for Table {
    async fn open(&mut self, columns: &Columns) -> Arc<dyn RowInserter> {
        if let Some(before) = self.opened.take() {
            before.close().await.expect("closed");
        }
        let mut options = self.google.options();
        options.mode = self.mode;
        options.recall = ALWAYS;
        let inserter = Arc::new(BigQueryInserter::new(options, columns).expect("settings that work"));
        inserter.open().await.expect("a table that is ready");
        self.opened = Some(Arc::clone(&inserter));
        inserter
    }

    async fn rows(&mut self) -> Vec<(MessageId, Vec<u8>)> {
        let mut rows = match self.mode {
            WriteMode::Upsert => self.google.merged(),
            _ => self.google.rows(),
        };
        rows.sort();
        rows
    }
}

#[tokio::test]
async fn an_appending_table_passes_the_suite() {
    suite::a_row_is_stored_once_over_repeats(&mut Table::new(WriteMode::Append).await).await;
    suite::a_conflicting_row_is_refused_alone(&mut Table::new(WriteMode::Append).await).await;
    suite::payloads_are_stored_byte_for_byte(&mut Table::new(WriteMode::Append).await).await;
    suite::columns_come_and_go(&mut Table::new(WriteMode::Append).await).await;
}

#[tokio::test]
async fn an_upserting_table_passes_the_suite() {
    suite::a_row_is_stored_once_over_repeats(&mut Table::new(WriteMode::Upsert).await).await;
    suite::a_conflicting_row_is_refused_alone(&mut Table::new(WriteMode::Upsert).await).await;
    suite::payloads_are_stored_byte_for_byte(&mut Table::new(WriteMode::Upsert).await).await;
    suite::columns_come_and_go(&mut Table::new(WriteMode::Upsert).await).await;
}

/// Two replicas store the same message: appended it has two rows, which the view hides; upserted it has one.
#[tokio::test]
async fn a_redelivery_to_another_replica_is_a_second_row_only_where_rows_are_appended() {
    let google = Google::start().await;
    let (one, other) = (open(google.options()).await, open(google.options()).await);
    let rows = new_rows(3);
    assert_eq!(letters(&one.insert(rows.clone()).await.unwrap()), "sss");
    assert_eq!(letters(&other.insert(rows.clone()).await.unwrap()), "sss");
    assert_eq!(google.rows().len(), 6);
    let view = google.rest.state.lock().tables.as_ref().unwrap()["messages_distinct"]["view"].clone();
    assert!(
        view["query"].as_str().unwrap().contains("PARTITION BY `message_id` ORDER BY `received_at`"),
        "{view}"
    );

    let google = Google::start().await;
    let mut options = google.options();
    options.mode = WriteMode::Upsert;
    let (one, other) = (open(options.clone()).await, open(options).await);
    assert_eq!(letters(&one.insert(rows.clone()).await.unwrap()), "sss");
    assert_eq!(letters(&other.insert(rows).await.unwrap()), "sss");
    assert_eq!(google.merged().len(), 3);
}

#[tokio::test]
async fn rows_that_bigquery_refuses_are_refused_alone_and_the_others_are_stored_once() {
    let google = Google::start().await;
    let inserter = open(google.options()).await;
    google.storage.when_rows_rejected(Google::table(), "Cannot take \"4711\"", |row: &StoredRow| {
        row.payload.as_deref() == Some(b"{\"value\":1}") || row.payload.as_deref() == Some(b"{\"value\":3}")
    });
    let rows = new_rows(5);
    let outcomes = inserter.insert(rows.clone()).await.unwrap();
    assert_eq!(letters(&outcomes), "spsps");
    let bqstore::RowOutcome::Refused(error) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert_eq!(error.reason(), "refused-value");
    assert!(error.detail().contains("Cannot take …"), "names the reason and no value: {error}");
    let mut expected: Vec<_> = [0, 2, 4].map(|at| rows[at].id).to_vec();
    expected.sort();
    let mut stored: Vec<_> = google.rows().into_iter().map(|(id, _)| id).collect();
    stored.sort();
    assert_eq!(stored, expected);
}

#[tokio::test]
async fn a_call_is_split_below_the_limit_and_a_row_above_it_is_refused_alone() {
    let google = Google::start().await;
    let mut options = google.options();
    options.max_request_bytes = Some(20_000);
    let inserter = open(options).await;
    let ids = messagepipeline::IdGenerator::default();
    let sizes = [9_000, 9_000, 30_000, 9_000, 100, 9_000];
    let messages = sizes.map(|size| suite::message(ids.next_id(), vec![b'x'; size]));
    let outcomes = inserter.insert(rows(&Columns::default(), &messages)).await.unwrap();
    assert_eq!(letters(&outcomes), "sspsss");
    assert_eq!(google.rows().len(), 5);
}

#[tokio::test]
async fn an_append_that_is_never_answered_is_cut_off_and_the_next_one_has_a_new_connection() {
    let google = Google::start().await;
    let mut options = google.options();
    options.timeout = Duration::from_millis(300);
    let inserter = open(options).await;
    let rows = new_rows(2);
    let fault = google.storage.when_fault(BigQueryFakeRpc::AppendRows).times(1);
    fault.fails(BigQueryFakeFault::Hang).unwrap();
    let error = inserter.insert(rows.clone()).await.unwrap_err();
    assert_eq!((error.class(), error.reason()), (ErrorClass::Transient, "bigquery-deadline"));
    // The clock runs: on a machine that is busy a good append may be late as well.
    let mut outcome = inserter.insert(rows.clone()).await;
    while outcome.as_ref().is_err_and(|error| error.reason() == "bigquery-deadline") {
        outcome = inserter.insert(rows.clone()).await;
    }
    assert_eq!(letters(&outcome.unwrap()), "ss");
}

/// A connection that is opened shows by its question for the stream, which fails once here.
#[tokio::test]
async fn an_append_that_is_never_answered_takes_the_idle_connections_with_it() {
    let google = Google::start().await;
    let mut options = google.options();
    options.timeout = Duration::from_secs(3);
    let inserter = open(options).await;
    let (first, second) = tokio::join!(inserter.insert(new_rows(1)), inserter.insert(new_rows(1)));
    assert_eq!((letters(&first.unwrap()), letters(&second.unwrap())), ("s".to_owned(), "s".to_owned()));
    let never = google.storage.when_fault(BigQueryFakeRpc::AppendRows).times(1);
    never.fails(BigQueryFakeFault::Hang).unwrap();
    let rows = new_rows(2);
    assert_eq!(inserter.insert(rows.clone()).await.unwrap_err().reason(), "bigquery-deadline");
    let fault = google.storage.when_fault(BigQueryFakeRpc::GetWriteStream).times(1);
    let opened = fault.fails(BigQueryFakeFault::status(BigQueryFakeCode::Unavailable, "no")).unwrap();
    let mut outcome = inserter.insert(rows.clone()).await;
    while outcome.is_err() {
        outcome = inserter.insert(rows.clone()).await;
    }
    assert_eq!((letters(&outcome.unwrap()), opened.calls()), ("ss".to_owned(), 1));
}

#[tokio::test]
async fn errors_have_the_class_of_what_repeating_brings() {
    use BigQueryFakeCode::*;
    for (code, class) in [
        (PermissionDenied, ErrorClass::Configuration),
        (Unauthenticated, ErrorClass::Configuration),
        (ResourceExhausted, ErrorClass::Transient),
        (Unavailable, ErrorClass::Transient),
        (InvalidArgument, ErrorClass::Permanent),
    ] {
        let google = Google::start().await;
        let inserter = open(google.options()).await;
        // What is refused for good is tried once more with the table looked at anew.
        let times = if class == ErrorClass::Permanent { 2 } else { 1 };
        let fault = google.storage.when_fault(BigQueryFakeRpc::AppendRows).times(times);
        fault.fails(BigQueryFakeFault::status(code, "no")).unwrap();
        let rows = new_rows(2);
        let error = inserter.insert(rows.clone()).await.unwrap_err();
        assert_eq!(error.class(), class, "{code:?}: {error}");
        assert_eq!(letters(&inserter.insert(rows).await.unwrap()), "ss", "after {code:?}");
        assert_eq!(google.rows().len(), 2, "after {code:?}");
    }
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again_and_nothing_is_lost() {
    for mode in [WriteMode::Append, WriteMode::Upsert] {
        let google = Google::start().await;
        let mut options = google.options();
        options.mode = mode;
        let inserter = open(options).await;
        let fault = google.storage.when_fault(BigQueryFakeRpc::AppendRows).times(1);
        fault.fails(BigQueryFakeFault::ConnectionDropped).unwrap();
        assert_eq!(letters(&inserter.insert(new_rows(20)).await.unwrap()), "s".repeat(20));
        let stored = if mode == WriteMode::Upsert { google.merged() } else { google.rows() };
        assert!(stored.len() >= 20, "{}", stored.len());
    }
}

/// While one call stores a row, another one with the same id is neither stored nor acknowledged.
#[tokio::test]
async fn a_row_that_is_being_stored_is_not_stored_by_another_call() {
    let google = Google::start().await;
    let inserter = open(google.options()).await;
    let rows = new_rows(1);
    let (first, second) = tokio::join!(inserter.insert(rows.clone()), inserter.insert(rows.clone()));
    assert_eq!(letters(&first.unwrap()), "s");
    assert_eq!(letters(&second.unwrap()), "t");
    assert_eq!(letters(&inserter.insert(rows).await.unwrap()), "a");
    assert_eq!(google.rows().len(), 1);
}

#[tokio::test]
async fn many_calls_share_a_bounded_number_of_connections() {
    let google = Google::start().await;
    let mut options = google.options();
    options.max_in_flight = 2;
    let inserter = open(options).await;
    let calls = (0..20).map(|_| inserter.insert(new_rows(10)));
    for outcome in futures_util::future::join_all(calls).await {
        assert_eq!(letters(&outcome.unwrap()), "s".repeat(10));
    }
    assert_eq!(google.rows().len(), 200);
    inserter.close().await.unwrap();
}

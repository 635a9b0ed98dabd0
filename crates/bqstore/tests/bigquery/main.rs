//! Rows into BigQuery: what the service promises is played by doubles in this process, the round trip of real rows
//! through SQL by the emulator.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "tests")]

mod append;
mod emulator;
mod google;
mod insert_all;
mod recordings;
mod table;

use bqstore::bigquery::{BigQueryInserter, BigQueryOptions};
use bqstore::{Columns, Row, RowInserter, RowMapper, RowOutcome};
use messagepipeline::{ErrorClass, Message};
use std::sync::Once;
use std::time::Duration;
use testkit::sink_suite;

/// What the programs do at their start.
fn install_tls() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustls::crypto::ring::default_provider().install_default().expect("the first provider");
    });
}

fn credentials() -> google_cloud_auth::credentials::Credentials {
    google_cloud_auth::credentials::anonymous::Builder::new().build()
}

fn rows<'m>(columns: &Columns, messages: impl IntoIterator<Item = &'m Message>) -> Vec<Row> {
    let mapper = RowMapper::new(columns.clone());
    messages.into_iter().map(|message| mapper.map(message).expect("no strict column")).collect()
}

/// The rows of `count` new messages.
fn new_rows(count: usize) -> Vec<Row> {
    rows(&Columns::default(), &sink_suite::messages(count))
}

async fn open(options: BigQueryOptions) -> BigQueryInserter {
    let inserter = BigQueryInserter::new(options, &Columns::default()).expect("settings that work");
    inserter.open().await.expect("a table that is ready");
    inserter
}

/// One letter per outcome: `s`tored, `a`lready stored, refused `p`ermanently, for a `t`ransient reason or by the
/// `c`onfiguration.
fn letters(outcomes: &[RowOutcome]) -> String {
    let letter = |outcome: &RowOutcome| match outcome {
        RowOutcome::Stored => 's',
        RowOutcome::AlreadyStored => 'a',
        RowOutcome::Refused(error) => match error.class() {
            ErrorClass::Permanent => 'p',
            ErrorClass::Transient => 't',
            ErrorClass::Configuration => 'c',
        },
    };
    outcomes.iter().map(letter).collect()
}

/// Longer than any recall has to look back for the suite's messages.
const ALWAYS: Duration = Duration::from_secs(3_600 * 24 * 365 * 20);

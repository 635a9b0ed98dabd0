//! Round trips through SQL, on the emulator of <https://github.com/goccy/bigquery-emulator>. It has no row errors, no
//! change data capture and no insertIds, and shows an added column in the table's description alone: all that is
//! played by the doubles.

use super::recordings::payloads;
use super::{ALWAYS, credentials, install_tls, letters, rows};
use bqstore::bigquery::{BigQueryInserter, BigQueryOptions, BigQueryReader, Endpoints, WriteMode};
use bqstore::{ColumnConfig, ColumnType, Columns, RowInserter, SourceConfig, default_columns};
use messagepipeline::{Digest, Enrichment, Message, MessageId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use testkit::servers::BigQueryEmulator;
use testkit::sink_suite::{self as suite, TableUnderTest, message};
use tokio::sync::{Mutex, MutexGuard};

/// Messages of a round trip through the Storage Write API, and of one through insertAll, which is slow there.
const MESSAGES: (usize, usize) = (1_500, 100);

fn options(emulator: &BigQueryEmulator, dataset: &str) -> BigQueryOptions {
    install_tls();
    let mut options = BigQueryOptions::new(emulator.project(), dataset, "messages", credentials());
    options.endpoints = Some(Endpoints { rest: emulator.rest_endpoint(), grpc: emulator.grpc_endpoint() });
    options.recall = ALWAYS;
    options
}

/// The emulator answers calls of several tests at once with "database is locked".
static TURNS: Mutex<()> = Mutex::const_new(());

/// The emulator, one test at a time.
struct Turn {
    emulator: &'static BigQueryEmulator,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    async fn wait(test: &str) -> Option<Self> {
        let turn = TURNS.lock().await;
        Some(Self { emulator: BigQueryEmulator::shared(test)?, _turn: turn })
    }

    /// Settings for the new dataset `dataset`.
    fn dataset(&self, dataset: &str) -> BigQueryOptions {
        self.emulator.create_dataset(dataset);
        options(self.emulator, dataset)
    }
}

/// A table of the emulator.
struct Table {
    emulator: &'static BigQueryEmulator,
    options: BigQueryOptions,
    opened: Option<Arc<BigQueryInserter>>,
}

impl TableUnderTest for Table {
    async fn open(&mut self, columns: &Columns) -> Arc<dyn RowInserter> {
        if let Some(before) = self.opened.take() {
            before.close().await.expect("closed");
        }
        let inserter = BigQueryInserter::new(self.options.clone(), columns).expect("settings that work");
        let inserter = Arc::new(inserter);
        inserter.open().await.expect("a table that is ready");
        self.opened = Some(Arc::clone(&inserter));
        inserter
    }

    async fn rows(&mut self) -> Vec<(MessageId, Vec<u8>)> {
        stored(self.emulator, &self.options.dataset)
    }
}

/// Id and payload of every row, by id.
fn stored(emulator: &BigQueryEmulator, dataset: &str) -> Vec<(MessageId, Vec<u8>)> {
    let sql = format!("SELECT `message_id`, `payload` FROM `{dataset}`.`messages` ORDER BY `message_id`");
    emulator
        .query(&sql)
        .iter()
        .map(|row| (text(row, "message_id").parse().expect("an id"), bytes(row)))
        .collect()
}

fn text<'r>(row: &'r Value, column: &str) -> &'r str {
    row[column].as_str().unwrap_or_default()
}

fn bytes(row: &Value) -> Vec<u8> {
    base64_simd::STANDARD.decode_to_vec(text(row, "payload")).expect("base64")
}

#[tokio::test]
async fn an_appending_table_passes_the_suite_on_the_emulator() {
    let test = "an_appending_table_passes_the_suite_on_the_emulator";
    let Some(turn) = Turn::wait(test).await else { return };
    let table = |dataset| Table { emulator: turn.emulator, options: turn.dataset(dataset), opened: None };
    suite::a_row_is_stored_once_over_repeats(&mut table("suite_once")).await;
    suite::a_conflicting_row_is_refused_alone(&mut table("suite_conflict")).await;
    suite::payloads_are_stored_byte_for_byte(&mut table("suite_bytes")).await;
}

fn real_messages(test: &str, count: usize) -> Vec<Message> {
    let ids = messagepipeline::IdGenerator::default();
    let enrichment =
        Enrichment::from_text(r#"{"client_id":"acme","location_id":"plant-1","category":"sensor"}"#);
    let enrichment = enrichment.expect("an object");
    payloads(test, count)
        .into_iter()
        .map(|payload| {
            let mut message = message(ids.next_id(), payload);
            message.enrichment = enrichment.clone();
            message
        })
        .collect()
}

fn columns() -> Columns {
    let mut configs = default_columns();
    for (name, kind, source) in [
        ("temperature", ColumnType::Float, "/decoded/payload/temperature"),
        ("decoded", ColumnType::Json, "/decoded"),
        ("fport", ColumnType::Integer, "/port"),
    ] {
        let source = SourceConfig::One(source.to_owned());
        configs.push(ColumnConfig {
            name: name.to_owned(),
            kind: Some(kind),
            source,
            required: false,
            strict: false,
        });
    }
    Columns::new(&configs).expect("valid columns")
}

#[tokio::test]
async fn real_rows_come_back_by_sql_as_they_were() {
    let test = "real_rows_come_back_by_sql_as_they_were";
    let Some(turn) = Turn::wait(test).await else { return };
    let (emulator, options) = (turn.emulator, turn.dataset("real_rows"));
    let messages = real_messages(test, MESSAGES.0);
    let inserter = BigQueryInserter::new(options.clone(), &columns()).unwrap();
    inserter.open().await.unwrap();
    for chunk in messages.chunks(500) {
        let outcomes = inserter.insert(rows(&columns(), chunk)).await.unwrap();
        assert_eq!(letters(&outcomes), "s".repeat(chunk.len()));
    }
    inserter.close().await.unwrap();

    let sent: BTreeMap<_, _> = messages.iter().map(|m| (m.id, m.payload.to_vec())).collect();
    let found: BTreeMap<_, _> = stored(emulator, "real_rows").into_iter().collect();
    assert!(found == sent, "{} rows of {}, byte for byte", found.len(), sent.len());

    let sql = "SELECT *, UNIX_MICROS(`received_at`) AS micros FROM real_rows.messages ORDER BY `message_id`";
    for (row, (_, payload)) in emulator.query(sql).iter().zip(&sent) {
        let payload: Value = serde_json::from_slice(payload).expect("recordings are JSON");
        assert_eq!(text(row, "micros"), "1672867882661042");
        assert_eq!((text(row, "client_id"), text(row, "location_id")), ("acme", "plant-1"));
        let decoded: Value = serde_json::from_str(row["decoded"].as_str().unwrap_or("null")).expect("JSON");
        assert_eq!(decoded, payload.get("decoded").cloned().unwrap_or_default());
        let temperature = payload.pointer("/decoded/payload/temperature").and_then(Value::as_f64);
        assert_eq!(row["temperature"].as_str().and_then(|text| text.parse().ok()), temperature);
    }

    let reader = BigQueryReader::new(&options).unwrap();
    let digest: Digest = sent.keys().collect();
    assert_eq!(reader.digest().await.unwrap(), digest);
    assert_eq!(reader.distinct_digest().await.unwrap(), digest);
    let mut pages = reader.ids().await.unwrap();
    let mut ids = Vec::new();
    while let Some(page) = pages.next_page().await.unwrap() {
        ids.extend(page);
    }
    assert_eq!(ids, sent.keys().map(|id| (*id, 1)).collect::<Vec<_>>());
}

/// Two replicas append the same messages; the view shows each once.
#[tokio::test]
async fn the_view_shows_each_id_once() {
    let test = "the_view_shows_each_id_once";
    let Some(turn) = Turn::wait(test).await else { return };
    let (emulator, options) = (turn.emulator, turn.dataset("twice"));
    let messages = suite::messages(5);
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let inserter = BigQueryInserter::new(options.clone(), &Columns::default()).unwrap();
        inserter.open().await.unwrap();
        replicas.push(inserter);
    }
    for inserter in &replicas {
        inserter.insert(rows(&Columns::default(), &messages)).await.unwrap();
    }
    let reader = BigQueryReader::new(&options).unwrap();
    assert_eq!(reader.digest().await.unwrap().count, 10);
    let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    assert_eq!(reader.distinct_digest().await.unwrap(), ids.iter().collect());
    let page = reader.ids().await.unwrap().next_page().await.unwrap().unwrap();
    assert_eq!(page, ids.iter().map(|id| (*id, 2)).collect::<Vec<_>>());
    let rows = emulator.query("SELECT `message_id`, `payload_text` FROM twice.messages_distinct ORDER BY 1");
    let expected: Vec<_> = (0..5).map(|n| (ids[n].to_string(), format!("{{\"value\":{n}}}"))).collect();
    let found: Vec<_> = rows
        .iter()
        .map(|row| (text(row, "message_id").to_owned(), text(row, "payload_text").to_owned()))
        .collect();
    assert_eq!(found, expected);
}

/// Values at the edges of their types, and none.
#[tokio::test]
async fn values_at_their_limits_come_back_by_sql() {
    let test = "values_at_their_limits_come_back_by_sql";
    let Some(turn) = Turn::wait(test).await else { return };
    let (emulator, options) = (turn.emulator, turn.dataset("limits"));
    let mut configs: Vec<ColumnConfig> = default_columns();
    configs.retain(|column| ["message_id", "received_at", "payload"].contains(&&*column.name));
    for (name, kind) in [
        ("n", ColumnType::Integer),
        ("f", ColumnType::Float),
        ("b", ColumnType::Boolean),
        ("s", ColumnType::String),
        ("t", ColumnType::Timestamp),
        ("j", ColumnType::Json),
    ] {
        let source = SourceConfig::One(format!("/{name}"));
        configs.push(ColumnConfig {
            name: name.to_owned(),
            kind: Some(kind),
            source,
            required: false,
            strict: false,
        });
    }
    let columns = Columns::new(&configs).unwrap();
    let ids = messagepipeline::IdGenerator::default();
    let cases = [
        (
            r#"{"n":9223372036854775807,"f":1.7976931348623157e308,"b":true,"s":"é\u0000'","t":1672867882661042,"j":[1]}"#,
            json!([
                "9223372036854775807",
                "1.7976931348623157e+308",
                "true",
                "é\u{0}'",
                "1672867882661042",
                "[1]"
            ]),
        ),
        (
            r#"{"n":-9223372036854775808,"f":-0.5,"b":false,"s":"","t":-1,"j":{"a":null}}"#,
            json!(["-9223372036854775808", "-0.5", "false", "", "-1000000", "{\"a\":null}"]),
        ),
        (r#"{"n":0,"f":0,"t":0}"#, json!(["0", "0", null, null, "0", null])),
        ("not JSON", json!([null, null, null, null, null, null])),
    ];
    let messages = cases.clone().map(|(payload, _)| message(ids.next_id(), payload));
    let inserter = BigQueryInserter::new(options, &columns).unwrap();
    inserter.open().await.unwrap();
    assert_eq!(letters(&inserter.insert(rows(&columns, &messages)).await.unwrap()), "ssss");
    let sql = "SELECT n, f, b, s, UNIX_MICROS(t) AS t, j FROM limits.messages ORDER BY `message_id`";
    for (row, (_, expected)) in emulator.query(sql).iter().zip(&cases) {
        let found: Vec<_> = ["n", "f", "b", "s", "t", "j"].iter().map(|name| row[*name].clone()).collect();
        assert_eq!(&json!(found), expected);
    }
}

/// The emulator writes what comes in base64 as if it were bytes, so payloads are not looked at.
#[tokio::test]
async fn insert_all_reaches_the_emulators_table() {
    let test = "insert_all_reaches_the_emulators_table";
    let Some(turn) = Turn::wait(test).await else { return };
    let (emulator, mut options) = (turn.emulator, turn.dataset("insert_all"));
    options.mode = WriteMode::InsertAll;
    let messages = real_messages(test, MESSAGES.1);
    let inserter = BigQueryInserter::new(options.clone(), &columns()).unwrap();
    inserter.open().await.unwrap();
    let outcomes = inserter.insert(rows(&columns(), &messages)).await.unwrap();
    assert_eq!(letters(&outcomes), "s".repeat(messages.len()));
    let digest: Digest = messages.iter().map(|message| &message.id).collect();
    assert_eq!(BigQueryReader::new(&options).unwrap().digest().await.unwrap(), digest);
    let sql = "SELECT DISTINCT UNIX_MICROS(`received_at`) AS micros, `category` FROM insert_all.messages";
    assert_eq!(emulator.query(sql), [json!({"micros": "1672867882661042", "category": "sensor"})]);
}

#[tokio::test]
async fn a_query_that_cannot_be_answered_says_why() {
    let Some(turn) = Turn::wait("a_query_that_cannot_be_answered_says_why").await else { return };
    let reader = BigQueryReader::new(&turn.dataset("questions")).unwrap();
    let error = reader.query("SELECT FROM").await.unwrap_err();
    assert!(error.to_string().contains("Syntax error"), "{error}");
    let mut pages = reader.query("SELECT 1 AS one, 'x' AS two").await.unwrap();
    assert_eq!(pages.columns(), ["one", "two"]);
    assert_eq!(pages.next_page().await.unwrap(), Some(vec![vec![json!("1"), json!("x")]]));
    assert_eq!(pages.next_page().await.unwrap(), None);
}

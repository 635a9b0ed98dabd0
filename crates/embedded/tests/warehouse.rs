//! The embedded warehouse: the suite that every table passes, and what is its own.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use bqstore::{
    ColumnConfig, ColumnType, Columns, RowInserter, RowMapper, RowOutcome, SourceConfig, default_columns,
};
use embedded::Error;
use embedded::warehouse::{Cell, Warehouse, WarehouseReader};
use messagepipeline::{Digest, Enrichment, ErrorClass, Message, MessageId};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use testkit::sink_suite::{self as suite, TableUnderTest};

struct Table {
    folder: tempfile::TempDir,
    open: Option<Arc<dyn RowInserter>>,
}

impl Table {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), open: None }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("warehouse.db")
    }

    /// Runs SQL as a person with the sqlite3 tool would.
    fn sql(&self, script: &str) {
        rusqlite::Connection::open(self.path()).unwrap().execute_batch(script).unwrap();
    }

    fn reader(&self) -> WarehouseReader {
        WarehouseReader::open(&self.path(), "messages").unwrap()
    }

    async fn store(&mut self, columns: &Columns, messages: &[Message]) -> Vec<RowOutcome> {
        let mapper = RowMapper::new(columns.clone());
        let rows = messages.iter().map(|message| mapper.map(message).unwrap()).collect();
        self.open(columns).await.insert(rows).await.unwrap()
    }
}

impl TableUnderTest for Table {
    async fn open(&mut self, columns: &Columns) -> Arc<dyn RowInserter> {
        if let Some(open) = self.open.take() {
            open.close().await.unwrap();
        }
        let table: Arc<dyn RowInserter> =
            Arc::new(Warehouse::open(&self.path(), "messages", columns).unwrap());
        table.open().await.unwrap();
        self.open = Some(Arc::clone(&table));
        table
    }

    async fn rows(&mut self) -> Vec<(MessageId, Vec<u8>)> {
        let connection = rusqlite::Connection::open(self.path()).unwrap();
        let sql = "SELECT message_id, CAST(payload AS BLOB) FROM messages ORDER BY message_id";
        let mut select = connection.prepare(sql).unwrap();
        let rows = select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?))).unwrap();
        rows.map(|row| row.map(|(id, payload)| (id.parse().unwrap(), payload)).unwrap()).collect()
    }
}

fn with(extra: ColumnConfig) -> Columns {
    let mut columns = default_columns();
    columns.retain(|column| column.name != extra.name);
    columns.push(extra);
    Columns::new(&columns).unwrap()
}

fn column(name: &str, kind: ColumnType, source: &str) -> ColumnConfig {
    let source = SourceConfig::One(source.to_owned());
    ColumnConfig { name: name.to_owned(), kind: Some(kind), source, required: false, strict: false }
}

#[tokio::test]
async fn a_row_is_stored_once_over_repeats() {
    suite::a_row_is_stored_once_over_repeats(&mut Table::new()).await;
}

#[tokio::test]
async fn a_conflicting_row_is_refused_alone() {
    suite::a_conflicting_row_is_refused_alone(&mut Table::new()).await;
}

/// A rule that somebody added to the table with the sqlite3 tool.
#[tokio::test]
async fn a_row_that_breaks_a_rule_of_the_table_is_refused_alone() {
    let mut table = Table::new();
    let columns = Columns::default();
    let messages = suite::messages(5);
    table.store(&columns, &messages[..1]).await;
    table.sql("CREATE UNIQUE INDEX no_payload_twice ON messages (payload)");
    let mut doubled = messages[2].clone();
    doubled.payload = messages[0].payload.clone();
    let batch = [messages[1].clone(), doubled, messages[3].clone()];
    let outcomes = table.store(&columns, &batch).await;
    let [RowOutcome::Stored, RowOutcome::Refused(refused), RowOutcome::Stored] = &outcomes[..] else {
        panic!("{outcomes:?}")
    };
    assert_eq!((refused.class(), refused.reason()), (ErrorClass::Permanent, "refused-value"));
    let stored: Vec<_> = table.rows().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(stored, [messages[0].id, messages[1].id, messages[3].id]);
}

#[tokio::test]
async fn payloads_are_stored_byte_for_byte() {
    suite::payloads_are_stored_byte_for_byte(&mut Table::new()).await;
}

#[tokio::test]
async fn columns_come_and_go() {
    suite::columns_come_and_go(&mut Table::new()).await;
}

#[tokio::test]
async fn a_row_reads_as_people_expect_it() {
    let mut table = Table::new();
    let mut message = suite::messages(1).remove(0);
    message.payload = r#"{"ts":1672867882,"value":-1.5}"#.into();
    message.enrichment = Enrichment::from_text(r#"{"client_id":"c"}"#).unwrap();
    table.store(&Columns::default(), std::slice::from_ref(&message)).await;
    let mut found = Vec::new();
    table
        .reader()
        .get(&message.id, &mut |names, cells| {
            found = names.iter().zip(cells).map(|(name, cell)| format!("{name}={cell:?}")).collect();
        })
        .unwrap();
    let expected = [
        &format!("message_id=Text(\"{}\")", message.id),
        "received_at=Text(\"2023-01-04T21:31:22.661042Z\")",
        "device_id=Text(\"d\")",
        "timestamp=Text(\"2023-01-04T21:31:22.000000Z\")",
        "value=Real(-1.5)",
        "client_id=Text(\"c\")",
        "location_id=Null",
        "category=Null",
        "topic=Text(\"devices/d/up\")",
        "route=Null",
        r#"payload=Text("{\"ts\":1672867882,\"value\":-1.5}")"#,
    ];
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_column_that_changes_its_type_is_refused_by_name_and_the_rows_stay() {
    let mut table = Table::new();
    table.store(&Columns::default(), &suite::messages(1)).await;
    table.open.take().unwrap().close().await.unwrap();
    let changed = with(column("value", ColumnType::String, "/value"));
    let error = Warehouse::open(&table.path(), "messages", &changed).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Configuration);
    let text = error.to_string();
    assert!(text.contains("column `value`") && text.contains("float") && text.contains("string"), "{text}");
    assert_eq!(table.rows().await.len(), 1);
}

#[tokio::test]
async fn a_table_that_is_there_is_used_as_it_is() {
    let mut table = Table::new();
    Warehouse::open(&table.path(), "others", &Columns::default()).unwrap().close().await.unwrap();
    table.sql(
        "CREATE TABLE messages (note TEXT DEFAULT 'theirs', Value REAL CHECK (value < 5), message_id TEXT UNIQUE)",
    );
    let outcomes = table.store(&Columns::default(), &suite::messages(7)).await;
    let stored: Vec<_> = outcomes.iter().map(|outcome| matches!(outcome, RowOutcome::Stored)).collect();
    assert_eq!(stored, [true, true, true, true, true, false, false]);
    let RowOutcome::Refused(error) = &outcomes[5] else { panic!("{outcomes:?}") };
    assert_eq!((error.class(), error.reason()), (ErrorClass::Permanent, "refused-value"));
    assert_eq!(table.rows().await.len(), 5);
}

#[tokio::test]
async fn a_table_whose_ids_need_not_be_unique_is_refused() {
    let table = Table::new();
    Warehouse::open(&table.path(), "others", &Columns::default()).unwrap().close().await.unwrap();
    table.sql("CREATE TABLE messages (message_id TEXT)");
    let error = Warehouse::open(&table.path(), "messages", &Columns::default()).unwrap_err();
    assert!(error.class() == ErrorClass::Configuration && error.to_string().contains("unique"), "{error}");
    for name in ["millstream_columns", "sqlite_x", "a b", ""] {
        assert!(Warehouse::open(&table.path(), name, &Columns::default()).is_err(), "{name}");
    }
}

#[tokio::test]
async fn the_reader_gives_all_ids_in_order_and_their_digest() {
    let mut table = Table::new();
    let mut messages = suite::messages(25_000);
    let ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    messages.reverse();
    table.store(&Columns::default(), &messages).await;
    let reader = table.reader();
    assert_eq!(reader.ids().collect::<Result<Vec<_>, _>>().unwrap(), ids);
    assert_eq!(reader.digest().unwrap(), ids.iter().collect::<Digest>());
    table.sql("INSERT INTO messages (message_id) VALUES ('mine')");
    assert!(reader.digest().unwrap_err().to_string().contains("`mine`"));
}

fn ask(table: &Table, sql: &str) -> Result<Vec<String>, Error> {
    let mut rows = Vec::new();
    let names = table.reader().query(sql, Duration::from_secs(60), &mut |_, cells| {
        rows.push(format!("{cells:?}"));
        ControlFlow::Continue(())
    })?;
    rows.insert(0, names.join(","));
    Ok(rows)
}

#[tokio::test]
async fn a_query_answers_with_names_and_values_of_every_kind() {
    let mut table = Table::new();
    table.store(&Columns::default(), &suite::messages(3)).await;
    let rows = ask(&table, "-- how much\nSELECT value AS v, x'00' b, 'é' t, NULL n FROM messages ORDER BY v")
        .unwrap();
    assert_eq!(rows.len(), 4);
    assert_eq!(rows[0], "v,b,t,n");
    assert_eq!(rows[3], format!("{:?}", [Cell::Real(2.0), Cell::Blob(&[0]), Cell::Text("é"), Cell::Null]));
    assert_eq!(ask(&table, "WITH x AS (SELECT 1 WHERE 0) SELECT * FROM x;").unwrap(), ["1"]);
}

#[tokio::test]
async fn a_query_changes_nothing_and_says_what_is_wrong_with_it() {
    let mut table = Table::new();
    table.store(&Columns::default(), &suite::messages(3)).await;
    for (sql, says) in [
        ("DELETE FROM messages", "only questions"),
        ("/* SELECT */ DROP TABLE messages", "only questions"),
        ("WITH x AS (SELECT 1) DELETE FROM messages", "only questions"),
        ("PRAGMA journal_mode = DELETE", "only questions"),
        ("SELECT 1; DELETE FROM messages", "one question at a time"),
        ("", "only questions"),
        ("SELECT nothing FROM messages", "nothing"),
        ("SELECT FROM", "syntax error"),
    ] {
        let error = ask(&table, sql).unwrap_err();
        assert!(error.to_string().contains(says), "{sql}: {error}");
        assert_eq!(error.class(), ErrorClass::Configuration, "{sql}: {error}");
    }
    assert_eq!(table.rows().await.len(), 3);
}

#[tokio::test]
async fn a_query_ends_at_its_deadline() {
    let mut table = Table::new();
    table.open(&Columns::default()).await;
    let endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n";
    let result =
        table.reader().query(endless, Duration::from_millis(20), &mut |_, _| ControlFlow::Continue(()));
    assert!(result.unwrap_err().to_string().contains("longer than 20ms"));
}

//! The warehouse of one machine: a table in `warehouse.db`, to be opened with any SQLite tool.
//!
//! One row per message id, whatever is redelivered: a row whose id is there already changes nothing. The table has
//! the configured columns; times stand in it as RFC 3339 text in UTC with microseconds, JSON as its text, booleans
//! as 0 and 1, and the payload as TEXT when it is UTF-8 without a NUL, else as BLOB.

mod insert;
mod query;
mod reader;
mod retention;
mod table;

pub use query::{Cell, Visit, check_query};
pub use reader::WarehouseReader;
pub use retention::{OldRow, RowRetention};

use crate::Error;
use crate::sqlite::{self, Schema, Writer};
use bqstore::{Columns, Row, RowInserter, RowOutcome, Value};
use futures_util::future::BoxFuture;
use insert::Plan;
use messagepipeline::StageError;
use std::path::Path;
use std::sync::Arc;

/// Name of the table when the configuration names none.
pub const DEFAULT_TABLE: &str = "messages";

/// Pages that removed rows free are used again by new rows, so with a retention the file stays as large as it was at
/// its end.
const SCHEMA: Schema = Schema {
    kind: "warehouse",
    application_id: 0x4d53_5748,
    shrinks: false,
    migrations: &[FORMAT_1, retention::FORMAT_2],
};

/// The type a column was made for. SQLite would take any value in any column, so a changed configuration is found
/// here and not by readers who stumble over mixed values.
const FORMAT_1: &str = "
CREATE TABLE millstream_columns (
    table_name TEXT NOT NULL COLLATE NOCASE,
    column_name TEXT NOT NULL COLLATE NOCASE,
    type TEXT NOT NULL,
    PRIMARY KEY (table_name, column_name)
) STRICT, WITHOUT ROWID;
";

/// A table of `warehouse.db` that takes rows.
#[derive(Debug)]
pub struct Warehouse {
    writer: Writer,
    plan: Arc<Plan>,
}

impl Warehouse {
    /// Opens the database `path` and makes its table `table` ready for `columns`: creates what is missing and uses
    /// what is there as it is. Reads and writes the disk before it returns.
    ///
    /// # Errors
    /// When the file cannot be used, or a column is there for values of another type.
    pub fn open(path: &Path, table: &str, columns: &Columns) -> Result<Self, Error> {
        let mut connection = sqlite::open(path, &SCHEMA)?;
        table::prepare(&mut connection, path, table, columns)?;
        let writer = Writer::spawn("warehouse", connection)?;
        Ok(Self { writer, plan: Arc::new(Plan::new(table, columns)) })
    }
}

impl RowInserter for Warehouse {
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }

    fn insert(&self, rows: Vec<Row>) -> BoxFuture<'_, Result<Vec<RowOutcome>, StageError>> {
        let plan = Arc::clone(&self.plan);
        let weight = rows.iter().map(weight).sum();
        Box::pin(async move {
            let job = move |connection: &rusqlite::Connection| plan.insert(connection, &rows);
            Ok(self.writer.call_weighing(weight, job, |_| ()).await?)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(self.writer.close().await?) })
    }
}

/// Bytes that a row holds while it waits.
fn weight(row: &Row) -> usize {
    let texts = row.values.iter().map(|value| match value {
        Value::String(text) | Value::Json(text) => text.as_bytes().len(),
        Value::Bytes(bytes) => bytes.len(),
        _ => 0,
    });
    texts.sum::<usize>() + row.values.len() * size_of::<Value>()
}

//! Storing a batch of rows, each for itself.

use crate::Error;
use bqstore::{Columns, MESSAGE_ID, Row, RowOutcome, Source, Value};
use messagepipeline::{ID_CONFLICT, StageError};
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, ErrorCode};

/// The statements for one table.
#[derive(Debug)]
pub(super) struct Plan {
    table: String,
    insert: String,
    /// Position of the first column that holds the payload, and the query for its stored value.
    payload: Option<(usize, String)>,
}

impl Plan {
    pub(super) fn new(table: &str, columns: &Columns) -> Self {
        let names: Vec<_> = columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
        let places: Vec<_> = (1..=columns.len()).map(|at| format!("?{at}")).collect();
        let insert = format!(
            "INSERT INTO \"{table}\" ({}) VALUES ({}) ON CONFLICT (\"{MESSAGE_ID}\") DO NOTHING",
            names.join(", "),
            places.join(", ")
        );
        let payload = columns.iter().position(|column| column.sources == [Source::Payload]);
        let payload = payload.map(|at| {
            let query = format!("SELECT {} FROM \"{table}\" WHERE \"{MESSAGE_ID}\" = ?1", names[at]);
            (at, query)
        });
        Self { table: table.to_owned(), insert, payload }
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// Stores `rows`; a row that the table refuses leaves the others as they are.
    ///
    /// # Errors
    /// What is not one row's fault: a full disk, a lock.
    pub(super) fn insert(&self, connection: &Connection, rows: &[Row]) -> Result<Vec<RowOutcome>, Error> {
        let mut statement = connection.prepare_cached(&self.insert)?;
        let mut outcomes = Vec::with_capacity(rows.len());
        for row in rows {
            outcomes.push(match store(&mut statement, row) {
                Ok(true) => RowOutcome::Stored,
                Ok(false) => self.compare(connection, row)?,
                // SQLite has undone this statement alone.
                Err(error) if is_rows_fault(&error) => RowOutcome::Refused(StageError::permanent(
                    "refused-value",
                    format!("the warehouse refuses the row of message {}: {error}", row.id),
                )),
                Err(error) => return Err(error.into()),
            });
        }
        Ok(outcomes)
    }

    /// What it means that the id is there. Without a payload column nothing can be compared.
    fn compare(&self, connection: &Connection, row: &Row) -> Result<RowOutcome, Error> {
        let Some((at, query)) = &self.payload else { return Ok(RowOutcome::AlreadyStored) };
        let mut buffer = [0; 36];
        let mut statement = connection.prepare_cached(query)?;
        let mut found = statement.query([row.id.encode(&mut buffer)])?;
        let stored = found.next()?;
        let same = stored
            .is_some_and(|stored| stored.get_ref(0).is_ok_and(|stored| same_bytes(stored, &row.values[*at])));
        if same {
            return Ok(RowOutcome::AlreadyStored);
        }
        let detail = format!("message {} is in the warehouse with another payload", row.id);
        Ok(RowOutcome::Refused(StageError::permanent(ID_CONFLICT, detail)))
    }
}

fn store(statement: &mut CachedStatement<'_>, row: &Row) -> rusqlite::Result<bool> {
    for (at, value) in (1..).zip(row.values.iter()) {
        statement.raw_bind_parameter::<usize, _>(at, Bound(value))?;
    }
    statement.raw_execute().map(|changed| changed > 0)
}

fn is_rows_fault(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig)
    )
}

fn same_bytes(stored: ValueRef<'_>, value: &Value) -> bool {
    match (stored, value) {
        (ValueRef::Text(stored) | ValueRef::Blob(stored), Value::Bytes(bytes)) => stored == &bytes[..],
        (ValueRef::Text(stored), Value::String(text) | Value::Json(text)) => stored == text.as_bytes(),
        (ValueRef::Null, Value::Null) => true,
        _ => false,
    }
}

/// A value on its way into a statement.
struct Bound<'a>(&'a Value);

impl ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let borrowed = match self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(number) => ValueRef::Integer(*number),
            Value::Float(number) => ValueRef::Real(*number),
            Value::Boolean(truth) => ValueRef::Integer(i64::from(*truth)),
            Value::Timestamp(stamp) => return Ok(ToSqlOutput::from(stamp.to_string())),
            Value::String(text) | Value::Json(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) if is_text(bytes) => ValueRef::Text(bytes),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        };
        Ok(ToSqlOutput::Borrowed(borrowed))
    }
}

/// Whether SQL functions and tools take all of it for text: they stop at a NUL.
fn is_text(bytes: &[u8]) -> bool {
    !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok()
}

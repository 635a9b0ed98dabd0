//! Questions that people put to the warehouse.

use crate::Error;
use messagepipeline::ErrorClass;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode};
use std::ops::ControlFlow;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

/// One value of a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    /// No value.
    Null,
    /// A whole number; also a boolean.
    Integer(i64),
    /// Another number.
    Real(f64),
    /// Text.
    Text(&'a str),
    /// Bytes that are not text.
    Blob(&'a [u8]),
}

/// What a caller does with each row: the names of the columns and their values.
pub type Visit<'v> = dyn FnMut(&[String], &[Cell<'_>]) -> ControlFlow<()> + 'v;

/// Refuses what is plainly no question.
///
/// # Errors
/// When `sql` does not begin with SELECT, WITH, VALUES or EXPLAIN.
pub fn check_query(sql: &str) -> Result<(), Error> {
    let word: String = without_comments(sql).chars().take_while(char::is_ascii_alphabetic).collect();
    if ["select", "with", "values", "explain"].contains(&&*word.to_ascii_lowercase()) {
        return Ok(());
    }
    Err(refusal(
        "only questions are taken: begin with SELECT or WITH. To change the table, use the sqlite3 tool while Millstream is stopped",
    ))
}

fn without_comments(sql: &str) -> &str {
    let mut rest = sql.trim_start();
    loop {
        let after = if let Some(line) = rest.strip_prefix("--") {
            line.split_once('\n').map(|(_, rest)| rest)
        } else if let Some(block) = rest.strip_prefix("/*") {
            block.split_once("*/").map(|(_, rest)| rest)
        } else {
            return rest;
        };
        rest = after.unwrap_or_default().trim_start();
    }
}

fn refusal(detail: impl Into<String>) -> Error {
    Error::refused(ErrorClass::Configuration, "query", detail)
}

/// [`run`] with a deadline, kept by a thread that interrupts SQLite.
pub(super) fn run_within(
    connection: &Connection,
    sql: &str,
    deadline: Duration,
    visit: &mut Visit<'_>,
) -> Result<Vec<String>, Error> {
    let interrupt = connection.get_interrupt_handle();
    let (done, wait) = sync_channel::<()>(0);
    let result = std::thread::scope(|scope| {
        scope.spawn(move || {
            if wait.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
                interrupt.interrupt();
            }
        });
        let result = run(connection, sql, visit);
        drop(done);
        result
    });
    match result {
        Err(Error::Database { source, .. })
            if source.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) =>
        {
            Err(refusal(format!("the query took longer than {deadline:?} and was stopped")))
        }
        other => other,
    }
}

/// Runs one statement that changes nothing.
pub(super) fn run(connection: &Connection, sql: &str, visit: &mut Visit<'_>) -> Result<Vec<String>, Error> {
    let mut statement = connection.prepare(sql).map_err(explain)?;
    if !statement.readonly() {
        return Err(refusal("only questions are taken: this statement would change the warehouse"));
    }
    let names: Vec<String> = statement.column_names().map(str::to_owned).collect();
    let mut rows = statement.query([]).map_err(explain)?;
    while let Some(row) = rows.next()? {
        let mut cells = Vec::with_capacity(names.len());
        for at in 0..names.len() {
            cells.push(cell(row.get_ref(at)?));
        }
        if visit(&names, &cells).is_break() {
            break;
        }
    }
    Ok(names)
}

fn cell(value: ValueRef<'_>) -> Cell<'_> {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(number) => Cell::Integer(number),
        ValueRef::Real(number) => Cell::Real(number),
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).map_or(Cell::Blob(bytes), Cell::Text),
        ValueRef::Blob(bytes) => Cell::Blob(bytes),
    }
}

/// A mistake in the question is the asker's; anything else is the database's.
fn explain(error: rusqlite::Error) -> Error {
    match error {
        rusqlite::Error::MultipleStatement => {
            refusal("one question at a time: there is more behind the first `;`")
        }
        rusqlite::Error::SqlInputError { msg, offset, .. } => {
            // An offset below zero means that SQLite knows none.
            let place =
                usize::try_from(offset).map(|at| format!(" at character {}", at + 1)).unwrap_or_default();
            refusal(format!("{msg}{place}"))
        }
        other => match other.sqlite_error_code() {
            Some(ErrorCode::Unknown) => refusal(other.to_string()),
            _ => other.into(),
        },
    }
}

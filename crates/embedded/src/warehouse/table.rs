//! Making the table ready for the configured columns.

use crate::Error;
use bqstore::{Column, ColumnType, Columns, MESSAGE_ID, identifier_problem};
use messagepipeline::ErrorClass;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use std::collections::HashMap;
use std::path::Path;

/// Why `name` cannot be the warehouse's table.
pub(super) fn check_name(name: &str) -> Result<(), Error> {
    let lower = name.to_ascii_lowercase();
    let problem = if lower.starts_with("sqlite_") || lower.starts_with("millstream_") {
        Some(format!("`{name}` is reserved: choose a table name that begins otherwise"))
    } else {
        identifier_problem(name)
    };
    match problem {
        None => Ok(()),
        Some(problem) => Err(Error::refused(ErrorClass::Configuration, "table-name", problem)),
    }
}

/// Creates the table or adds what it lacks.
pub(super) fn prepare(
    connection: &mut Connection,
    path: &Path,
    table: &str,
    columns: &Columns,
) -> Result<(), Error> {
    check_name(table)?;
    let located = |error: rusqlite::Error| Error::from(error).at(path);
    let step = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(located)?;
    let kind: Option<String> = step
        .query_row("SELECT type FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE", [table], |row| row.get(0))
        .optional()
        .map_err(located)?;
    match kind.as_deref() {
        None => create(&step, table, columns).map_err(located)?,
        Some("table") => adapt(&step, path, table, columns).map_err(|error| error.at(path))?,
        Some(other) => {
            let detail =
                format!("{}: `{table}` is the name of a {other}: choose another table", path.display());
            return Err(Error::refused(ErrorClass::Configuration, "table-name", detail));
        }
    }
    step.commit().map_err(located)
}

fn create(connection: &Connection, table: &str, columns: &Columns) -> rusqlite::Result<()> {
    let definitions: Vec<_> = columns.iter().map(definition).collect();
    connection.execute_batch(&format!("CREATE TABLE \"{table}\" ({})", definitions.join(", ")))?;
    columns.iter().try_for_each(|column| record(connection, table, column))
}

fn definition(column: &Column) -> String {
    let key = if column.name == MESSAGE_ID { " PRIMARY KEY NOT NULL" } else { "" };
    format!("\"{}\" {}{key}", column.name, declared_type(column.kind))
}

/// The declared type decides what SQLite makes of a value: TEXT leaves texts as they are, and bytes as bytes.
fn declared_type(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::Integer => "INTEGER",
        ColumnType::Float => "REAL",
        ColumnType::Boolean => "BOOLEAN",
        ColumnType::String | ColumnType::Timestamp | ColumnType::Json | ColumnType::Bytes => "TEXT",
    }
}

fn adapt(connection: &Connection, path: &Path, table: &str, columns: &Columns) -> Result<(), Error> {
    let present = present(connection, table)?;
    let recorded = recorded(connection, table)?;
    for column in columns.iter() {
        let name = column.name.to_ascii_lowercase();
        match recorded.get(&name) {
            Some(kind) if present.contains(&name) && kind != column.kind.as_str() => {
                return Err(changed(path, table, column, kind));
            }
            _ => {}
        }
        if !present.contains(&name) {
            let addition = format!("ALTER TABLE \"{table}\" ADD COLUMN {}", definition(column));
            connection.execute_batch(&addition)?;
            tracing::info!(table, column = column.name, "column added to the warehouse");
        }
        record(connection, table, column)?;
    }
    // SQLite refuses the statement when ids are not unique in this table.
    let probe = format!(
        "INSERT INTO \"{table}\" (\"{MESSAGE_ID}\") VALUES (?1) ON CONFLICT (\"{MESSAGE_ID}\") DO NOTHING"
    );
    match connection.prepare(&probe) {
        Ok(_) => Ok(()),
        Err(error) => {
            let detail = format!(
                "{}: table `{table}` cannot take rows; `{MESSAGE_ID}` must be its primary key or unique: {error}",
                path.display()
            );
            Err(Error::refused(ErrorClass::Configuration, "table-layout", detail))
        }
    }
}

fn changed(path: &Path, table: &str, column: &Column, kind: &str) -> Error {
    let detail = format!(
        "{}: column `{}` of table `{table}` holds {kind}, and the configuration says {}: give the new column another \
         name, or choose another table",
        path.display(),
        column.name,
        column.kind
    );
    Error::refused(ErrorClass::Configuration, "column-type", detail)
}

fn present(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut statement = connection.prepare("SELECT lower(name) FROM pragma_table_xinfo(?1)")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

fn recorded(connection: &Connection, table: &str) -> rusqlite::Result<HashMap<String, String>> {
    let mut statement = connection
        .prepare("SELECT lower(column_name), type FROM millstream_columns WHERE table_name = ?1")?;
    statement.query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn record(connection: &Connection, table: &str, column: &Column) -> rusqlite::Result<()> {
    let row = params![table, column.name, column.kind.as_str()];
    connection.execute("INSERT OR REPLACE INTO millstream_columns VALUES (?1, ?2, ?3)", row).map(drop)
}

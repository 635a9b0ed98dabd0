//! How every store opens its database, and the one thread that writes to it.
//!
//! All stores use SQLite in WAL mode with `synchronous=FULL`: what a commit has answered is on the disk. A sync
//! costs milliseconds whatever it writes, so the [`Writer`] takes all jobs that wait into one transaction.

mod writer;

pub(crate) use writer::{Background, Writer};

use crate::Error;
use messagepipeline::Timestamp;
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::Duration;

/// Half the CPU per message of SQLite's default of 4 KiB, because messages then share pages.
const PAGE_SIZE: u32 = 16 * 1024;
/// How long a statement waits for another connection's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Statements kept prepared per connection; more than any store has.
const STATEMENTS: usize = 128;
/// Page cache of a connection that writes, in KiB: the inner pages of its tables and the leaves it appends to.
const WRITER_CACHE_KIB: i64 = 8 * 1024;
/// Page cache of a connection that reads, in KiB. It reads each page about once; the kernel caches the file.
const READER_CACHE_KIB: i64 = 1024;
/// Pages (of 16 KiB, so 60 MiB) in the write-ahead log at which they are copied into the database. A page that is written
/// again before is copied once, and in the bus most are: the messages on it are trimmed and others take their place.
const CHECKPOINT_PAGES: u32 = 3_840;

/// The kind of a database file and how its tables came to be.
#[derive(Debug)]
pub(crate) struct Schema {
    /// What people call it: `bus`, `warehouse`.
    pub(crate) kind: &'static str,
    /// SQLite's `application_id`, so that a file of another kind is recognised.
    pub(crate) application_id: i32,
    /// Whether free pages can be given back to the file system (`auto_vacuum=INCREMENTAL`); for stores that delete.
    pub(crate) shrinks: bool,
    /// SQL scripts; the n-th leads from format n-1 to format n. The format stands in `PRAGMA user_version`.
    pub(crate) migrations: &'static [&'static str],
}

impl Schema {
    fn format(&self) -> i64 {
        i64::try_from(self.migrations.len()).unwrap_or(i64::MAX)
    }
}

/// Opens `path` for writing; creates it and brings it to the newest format.
///
/// # Errors
/// When the file cannot be opened or is of another kind or a newer format.
pub(crate) fn open(path: &Path, schema: &Schema) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let located = |error: rusqlite::Error| Error::from(error).at(path);
    let mut connection = Connection::open_with_flags(path, flags).map_err(located)?;
    configure(&connection).map_err(located)?;
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).map_err(located)?;
    if pages == 0 {
        lay_out(&connection, schema).map_err(located)?;
    }
    check_kind(&connection, path, schema)?;
    bound_cache(&connection, WRITER_CACHE_KIB).map_err(located)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(located)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES).map_err(located)?;
    migrate(&mut connection, path, schema)?;
    Ok(connection)
}

/// Opens `path` for reading only, beside a process that may be writing it.
///
/// # Errors
/// When the file is missing, cannot be opened, or is of another kind or format.
pub(crate) fn open_reader(path: &Path, schema: &Schema) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let located = |error: rusqlite::Error| Error::from(error).at(path);
    let connection = Connection::open_with_flags(path, flags).map_err(located)?;
    configure(&connection).map_err(located)?;
    check_kind(&connection, path, schema)?;
    bound_cache(&connection, READER_CACHE_KIB).map_err(located)?;
    let found = format_of(&connection).map_err(located)?;
    if found != schema.format() {
        return Err(Error::Inconsistent {
            path: path.to_owned(),
            detail: format!(
                "format {found} where this version reads {}: `millstream up` brings it there",
                schema.format()
            ),
        });
    }
    Ok(connection)
}

/// What a reader sees does not change while it holds this. The write-ahead log grows meanwhile by what is written.
#[derive(Debug)]
pub struct Snapshot<'c> {
    _transaction: rusqlite::Transaction<'c>,
}

/// Begins a [`Snapshot`] of what `connection` sees now.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn snapshot(connection: &Connection) -> rusqlite::Result<Snapshot<'_>> {
    let transaction = connection.unchecked_transaction()?;
    // The first read decides what is seen.
    transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(Snapshot { _transaction: transaction })
}

/// Moves what `table` notes with a time in its column `at` along with a wall clock that was set from `from` to `to`.
pub(crate) fn move_notes(
    connection: &Connection,
    table: &str,
    from: Timestamp,
    to: Timestamp,
) -> rusqlite::Result<()> {
    let (from, to) = (from.as_micros(), to.as_micros());
    let moved = if to > from { i64::MIN..=from } else { to.saturating_add(1)..=i64::MAX };
    // Of two notes that meet, either is true.
    let sql = format!("UPDATE OR REPLACE {table} SET at = min(at + ?1, ?2) WHERE at BETWEEN ?3 AND ?4");
    connection.execute(&sql, [to.saturating_sub(from), to, *moved.start(), *moved.end()]).map(drop)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "foreign_keys", true)
}

/// To be called once the file's header was read: SQLite makes the size a number of pages as large as it believes them to
/// be, which is 4 KiB before that, and keeps the number.
fn bound_cache(connection: &Connection, kib: i64) -> rusqlite::Result<()> {
    connection.pragma_update(None, "cache_size", -kib)
}

/// What only an empty file can be told. The page size must come before WAL mode, both before the first table.
fn lay_out(connection: &Connection, schema: &Schema) -> rusqlite::Result<()> {
    connection.pragma_update(None, "page_size", PAGE_SIZE)?;
    if schema.shrinks {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "application_id", schema.application_id)
}

fn check_kind(connection: &Connection, path: &Path, schema: &Schema) -> Result<(), Error> {
    let id: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|error| Error::from(error).at(path))?;
    let found = format_of(connection).map_err(|error| Error::from(error).at(path))?;
    if id != schema.application_id {
        return Err(Error::ForeignFile { path: path.to_owned(), kind: schema.kind });
    }
    if found > schema.format() {
        return Err(Error::NewerFormat { path: path.to_owned(), found, supported: schema.format() });
    }
    Ok(())
}

fn format_of(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn migrate(connection: &mut Connection, path: &Path, schema: &Schema) -> Result<(), Error> {
    let located = |error: rusqlite::Error| Error::from(error).at(path);
    let found = format_of(connection).map_err(located)?;
    if found > 0 && found < schema.format() {
        tracing::info!(file = %path.display(), from = found, to = schema.format(), "bringing the database to the new format");
    }
    for (format, script) in (1..).zip(schema.migrations).skip_while(|(format, _)| *format <= found) {
        let step = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate);
        let step = step.map_err(located)?;
        // Another process may have been faster.
        if format_of(&step).map_err(located)? < format {
            step.execute_batch(script).map_err(located)?;
            step.pragma_update(None, "user_version", format).map_err(located)?;
        }
        step.commit().map_err(located)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const SCHEMA: Schema = Schema {
        kind: "test",
        application_id: 7,
        shrinks: false,
        migrations: &["CREATE TABLE t(n INTEGER PRIMARY KEY, body BLOB)"],
    };

    pub(super) fn insert(connection: &Connection, n: i64) -> rusqlite::Result<usize> {
        connection.execute("INSERT INTO t VALUES (?1, zeroblob(4000))", [n])
    }

    #[test]
    fn a_file_of_another_kind_or_of_a_newer_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let connection = open(&path, &SCHEMA).unwrap();
        let other = Schema { kind: "other", application_id: 8, ..SCHEMA };
        assert!(matches!(open(&path, &other), Err(Error::ForeignFile { .. })));
        connection.pragma_update(None, "user_version", 2).unwrap();
        assert!(matches!(open(&path, &SCHEMA), Err(Error::NewerFormat { found: 2, supported: 1, .. })));
    }

    #[test]
    fn an_older_file_is_brought_to_the_newest_format_and_keeps_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        insert(&open(&path, &SCHEMA).unwrap(), 1).unwrap();
        let newer = Schema { migrations: &["", "ALTER TABLE t ADD COLUMN more TEXT"], ..SCHEMA };
        let connection = open(&path, &newer).unwrap();
        let row: (i64, Option<String>) =
            connection.query_row("SELECT n, more FROM t", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!(row, (1, None));
        assert_eq!(
            connection.pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0)).unwrap(),
            PAGE_SIZE
        );
    }
}

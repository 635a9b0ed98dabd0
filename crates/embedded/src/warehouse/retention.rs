//! Removing old rows, with a sum of what was removed.
//!
//! A table has the columns its owner configured, so a row's age is not read from one: from time to time the highest
//! row number is noted with the time. Row numbers rise in the order of storing.

use super::{Warehouse, WarehouseReader};
use crate::Error;
use crate::sqlite::{self, Snapshot, Writer};
use bqstore::MESSAGE_ID;
use messagepipeline::metric_names::WAREHOUSE_REMOVED;
use messagepipeline::{Digest, MessageId, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use std::sync::Arc;
use std::time::Duration;

/// Tables of the retention.
pub(super) const FORMAT_2: &str = "
CREATE TABLE millstream_row_marks (       -- the highest row number at a time
    table_name TEXT NOT NULL COLLATE NOCASE,
    at INTEGER NOT NULL,                  -- microseconds since 1970
    row INTEGER NOT NULL,
    PRIMARY KEY (table_name, at)
) STRICT, WITHOUT ROWID;
CREATE TABLE millstream_removed (         -- rows that retention removed
    table_name TEXT PRIMARY KEY COLLATE NOCASE,
    count INTEGER NOT NULL,
    digest INTEGER NOT NULL               -- sum of the ids' fingerprints modulo 2^64, as a signed number
) STRICT, WITHOUT ROWID;
";

const ROW_MARKS: &str = "millstream_row_marks";

/// A row that may be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OldRow {
    /// Its number.
    pub number: i64,
    /// Its message.
    pub id: MessageId,
}

/// The writing side of the warehouse's retention.
#[derive(Clone, Debug)]
pub struct RowRetention {
    writer: Writer,
    table: Arc<str>,
}

impl Warehouse {
    /// The retention of this table.
    #[must_use]
    pub fn retention(&self) -> RowRetention {
        RowRetention { writer: self.writer.clone(), table: self.plan.table().into() }
    }
}

impl RowRetention {
    /// Notes the highest row number at `now`, unless that was noted less than `spacing` ago, and drops notes that are
    /// older than the newest one of before `horizon`.
    ///
    /// # Errors
    /// When the file cannot be written, or the table has no row numbers.
    pub async fn mark(&self, now: Timestamp, horizon: Timestamp, spacing: Duration) -> Result<(), Error> {
        let table = Arc::clone(&self.table);
        let recent = now.as_micros().saturating_sub(i64::try_from(spacing.as_micros()).unwrap_or(i64::MAX));
        self.writer
            .call(move |connection| {
                let highest = format!("SELECT coalesce(max(rowid), 0) FROM \"{table}\"");
                let row: i64 = connection.query_row(&highest, [], |row| row.get(0))?;
                // Notes above it are of before a VACUUM, which may have given the rows other numbers.
                connection.execute(
                    "DELETE FROM millstream_row_marks WHERE table_name = ?1 AND row > ?2",
                    params![table, row],
                )?;
                connection.execute(
                    "INSERT INTO millstream_row_marks SELECT ?1, ?2, ?3 WHERE NOT EXISTS \
                         (SELECT 1 FROM millstream_row_marks WHERE table_name = ?1 AND at > ?4)",
                    params![table, now.as_micros(), row, recent],
                )?;
                connection.execute(
                    "DELETE FROM millstream_row_marks WHERE table_name = ?1 AND at < \
                         (SELECT max(at) FROM millstream_row_marks WHERE table_name = ?1 AND at <= ?2)",
                    params![table, horizon.as_micros()],
                )?;
                Ok::<_, Error>(())
            })
            .await
    }

    /// The wall clock was set from `from` to `to`: notes move along, so that nothing gets older or younger by it. Those
    /// of a time that a clock set forward had not reached yet were made by another clock, and stay.
    ///
    /// # Errors
    /// When the file cannot be written; nothing has changed then.
    pub async fn clock_was_set(&self, from: Timestamp, to: Timestamp) -> Result<(), Error> {
        let job = move |connection: &Connection| sqlite::move_notes(connection, ROW_MARKS, from, to);
        self.writer.call(job).await
    }

    /// Removes those of `rows` that `known` does not say of, and adds them to the sum of removed ones, in one transaction.
    /// Answers how many.
    ///
    /// `known` is asked within that transaction, and rows are stored by the same thread: an id that becomes known after
    /// the question finds its row removed and is stored anew.
    ///
    /// # Errors
    /// When the file cannot be written or `known` fails; nothing has changed then.
    pub async fn remove<K>(&self, rows: Vec<OldRow>, known: K) -> Result<u64, Error>
    where
        K: FnOnce(&[MessageId]) -> Result<Vec<bool>, Error> + Send + 'static,
    {
        let table = Arc::clone(&self.table);
        let job = move |connection: &Connection| {
            let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
            let rows = rows.into_iter().zip(known(&ids)?).filter(|(_, known)| !known);
            Ok::<_, Error>(remove(connection, &table, rows.map(|(row, _)| row))?)
        };
        let removed = self.writer.call(job).await?;
        metrics::counter!(WAREHOUSE_REMOVED).increment(removed);
        Ok(removed)
    }
}

fn remove(connection: &Connection, table: &str, rows: impl Iterator<Item = OldRow>) -> rusqlite::Result<u64> {
    let sql = format!("DELETE FROM \"{table}\" WHERE rowid = ?1 AND \"{MESSAGE_ID}\" = ?2");
    let mut delete = connection.prepare_cached(&sql)?;
    let mut sum = removed(connection, table)?;
    let before = sum.count;
    let mut buffer = [0; 36];
    for row in rows {
        if delete.execute(params![row.number, row.id.encode(&mut buffer)])? > 0 {
            sum.insert(&row.id);
        }
    }
    let values = params![table, sum.count.cast_signed(), sum.sum.cast_signed()];
    connection.execute("INSERT OR REPLACE INTO millstream_removed VALUES (?1, ?2, ?3)", values)?;
    Ok(sum.count - before)
}

fn removed(connection: &Connection, table: &str) -> rusqlite::Result<Digest> {
    let sql = "SELECT count, digest FROM millstream_removed WHERE table_name = ?1";
    let found = connection.prepare_cached(sql)?.query_row([table], |row| {
        let (count, sum): (i64, i64) = (row.get(0)?, row.get(1)?);
        Ok(Digest { count: count.cast_unsigned(), sum: sum.cast_unsigned() })
    });
    Ok(found.optional()?.unwrap_or_default())
}

impl WarehouseReader {
    /// What this reader sees stays as it is now while the answer is held.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn hold(&self) -> Result<Snapshot<'_>, Error> {
        sqlite::snapshot(&self.connection).map_err(|error| Error::from(error).at(&self.path))
    }

    /// Count and digest of the rows that retention has removed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn removed(&self) -> Result<Digest, Error> {
        removed(&self.connection, &self.table).map_err(|error| Error::from(error).at(&self.path))
    }

    /// Which of `ids` have a row.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn has(&self, ids: &[MessageId]) -> Result<Vec<bool>, Error> {
        let sql = format!("SELECT 1 FROM \"{}\" WHERE \"{MESSAGE_ID}\" = ?1", self.table);
        let read = || {
            let mut find = self.connection.prepare_cached(&sql)?;
            let mut buffer = [0; 36];
            ids.iter().map(|id| find.exists([id.encode(&mut buffer)])).collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| Error::from(error).at(&self.path))
    }

    /// The next `limit` rows behind number `after` that were stored before `horizon`. The newest row is never among
    /// them: its number must not be given again.
    ///
    /// # Errors
    /// When the table cannot be read, or has no row numbers.
    pub fn rows_before(&self, horizon: Timestamp, after: i64, limit: usize) -> Result<Vec<OldRow>, Error> {
        let sql = format!(
            "SELECT rowid, \"{MESSAGE_ID}\" FROM \"{table}\" WHERE rowid > ?1 AND rowid < \
                 (SELECT max(rowid) FROM \"{table}\") AND rowid <= (SELECT coalesce(max(row), 0) \
                 FROM millstream_row_marks WHERE table_name = ?2 AND at <= ?3) ORDER BY rowid LIMIT ?4",
            table = self.table
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let read = || {
            let mut select = self.connection.prepare_cached(&sql)?;
            let rows = select.query_map(params![after, self.table, horizon.as_micros(), limit], |row| {
                let number = row.get(0)?;
                let id = row.get_ref(1)?.as_str()?.parse().map_err(|_| rusqlite::Error::InvalidQuery)?;
                Ok(OldRow { number, id })
            })?;
            rows.collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| Error::from(error).at(&self.path))
    }
}

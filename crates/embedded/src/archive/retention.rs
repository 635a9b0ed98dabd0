//! Forgetting ids and removing old objects, with a sum of what was removed.
//!
//! ```text
//!  1  archive.db       ONE transaction: the objects are being removed; from here on they count as removed
//!  2  archive/<name>   unlinked, its folder synced
//!  3  archive.db       ONE transaction: the objects out of the list, into the sum
//! ```
//!
//! The next start finishes what a process that dies after 1 leaves.

use super::files::Files;
use super::{Archive, ArchiveReader, Inner, blocking, index};
use crate::Error;
use crate::sqlite::{self, Snapshot};
use icestore::ObjectName;
use messagepipeline::metric_names::ARCHIVE_REMOVED;
use messagepipeline::{Digest, MessageId, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Columns and tables of the retention.
pub(super) const FORMAT_2: &str = "
ALTER TABLE objects ADD COLUMN listed INTEGER NOT NULL DEFAULT 0;   -- ids in object_ids that are its lines
ALTER TABLE objects ADD COLUMN removing INTEGER NOT NULL DEFAULT 0; -- 1: its file may be gone already
UPDATE objects SET listed = lines;
CREATE INDEX removing_objects ON objects (id) WHERE removing = 1;
CREATE TABLE removed_objects (             -- one row: what retention has removed
    one INTEGER PRIMARY KEY CHECK (one = 1),
    objects INTEGER NOT NULL,
    lines INTEGER NOT NULL,
    digest INTEGER NOT NULL,               -- sum of the ids' fingerprints modulo 2^64, as a signed number
    bytes INTEGER NOT NULL
) STRICT;
INSERT INTO removed_objects VALUES (1, 0, 0, 0, 0);
";

/// The writing side of the archive's retention.
#[derive(Clone, Debug)]
pub struct ObjectRetention(Arc<Inner>);

/// What retention has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemovedObjects {
    /// Objects, those whose removal is under way included.
    pub objects: u64,
    /// Digest of the ids in them; its count is the number of lines.
    pub digest: Digest,
    /// Bytes of the objects, compressed.
    pub bytes: u64,
}

impl Archive {
    /// The retention of this archive.
    #[must_use]
    pub fn retention(&self) -> ObjectRetention {
        ObjectRetention(Arc::clone(&self.0))
    }
}

impl ObjectRetention {
    /// Takes `ids` out of the index. Their lines stay in their objects; offered again, an id would be archived again.
    ///
    /// # Errors
    /// When the index cannot be written; nothing has changed then.
    pub async fn forget(&self, ids: Vec<MessageId>) -> Result<(), Error> {
        self.0.writer.call(move |connection| forget(connection, &ids)).await
    }

    /// Removes at most `limit` objects whose last message was received before `horizon` and whose ids are all
    /// forgotten; when there are none, those whose file could not be removed before. Answers how many.
    ///
    /// A file that cannot be removed keeps no other from being removed: it is logged, and tried again.
    ///
    /// # Errors
    /// When the index cannot be written; the next call goes on.
    pub async fn remove(&self, horizon: Timestamp, limit: usize) -> Result<u64, Error> {
        let before = horizon.to_string();
        // Objects in their places that the index still calls pending: nothing else may come to tell it.
        let finished = std::mem::take(&mut *self.0.finished.lock());
        let done = finished.clone();
        let choose = move |connection: &Connection| {
            index::confirm(connection, &done)?;
            choose(connection, &before, limit)
        };
        let chosen = self.0.writer.call(choose).await;
        if chosen.is_err() {
            self.0.finished.lock().extend(finished);
        }
        let objects = chosen?;
        if objects.is_empty() {
            return Ok(0);
        }
        let inner = Arc::clone(&self.0);
        let gone = blocking(move || unlink(&inner.files, objects)).await?;
        let removed = gone.len() as u64;
        self.0.writer.call(move |connection| account(connection, &gone)).await?;
        metrics::counter!(ARCHIVE_REMOVED).increment(removed);
        Ok(removed)
    }
}

fn forget(connection: &Connection, ids: &[MessageId]) -> rusqlite::Result<()> {
    let mut delete = connection.prepare_cached("DELETE FROM object_ids WHERE id = ?1 RETURNING object")?;
    let mut lines: HashMap<i64, i64> = HashMap::new();
    for id in ids {
        let object = delete.query_row([id.as_bytes()], |row| row.get(0)).optional()?;
        if let Some(object) = object {
            *lines.entry(object).or_default() += 1;
        }
    }
    let mut count = connection.prepare_cached("UPDATE objects SET listed = listed - ?2 WHERE id = ?1")?;
    lines.iter().try_for_each(|(object, lines)| count.execute([object, lines]).map(drop))
}

/// Number and name of an object that is being removed.
type Chosen = (i64, String);

fn choose(connection: &Connection, before: &str, limit: usize) -> rusqlite::Result<Vec<Chosen>> {
    let mut update = connection.prepare_cached(
        "UPDATE objects SET removing = 1 WHERE id IN (SELECT id FROM objects WHERE listed = 0 \
             AND removing = 0 AND temporary IS NULL AND last_received < ?1 ORDER BY id LIMIT ?2) RETURNING id, name",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = update.query_map(params![before, limit], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let new = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    if new.is_empty() { being_removed(connection) } else { Ok(new) }
}

fn being_removed(connection: &Connection) -> rusqlite::Result<Vec<Chosen>> {
    let mut select = connection.prepare_cached("SELECT id, name FROM objects WHERE removing = 1")?;
    select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// Answers whose files are gone.
fn unlink(files: &Files, objects: Vec<Chosen>) -> Vec<Chosen> {
    let mut gone = objects;
    gone.retain(|(object, name)| {
        // The index is a file that anybody with access may have changed.
        let Ok(checked) = ObjectName::parse(name) else {
            tracing::warn!(object, name, "an old object has a name that no archive gives; it is not removed");
            return false;
        };
        match files.remove_object(&checked) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "an old object could not be removed; it is tried again");
                false
            }
        }
    });
    gone
}

/// Out of the list, into the sum.
fn account(connection: &Connection, objects: &[Chosen]) -> rusqlite::Result<()> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM objects WHERE id = ?1 AND removing = 1 RETURNING lines, digest, bytes",
    )?;
    let mut sum = RemovedObjects::default();
    for (object, _) in objects {
        if let Some(one) = delete.query_row([object], |row| figures(1, row)).optional()? {
            sum = sum.plus(one);
        }
    }
    let sum = sum.plus(accounted(connection)?);
    connection
        .prepare_cached("UPDATE removed_objects SET objects = ?1, lines = ?2, digest = ?3, bytes = ?4")?
        .execute([
            sum.objects.cast_signed(),
            sum.digest.count.cast_signed(),
            sum.digest.sum.cast_signed(),
            sum.bytes.cast_signed(),
        ])?;
    Ok(())
}

/// Figures from the columns lines, digest, bytes.
fn figures(objects: u64, row: &rusqlite::Row<'_>) -> rusqlite::Result<RemovedObjects> {
    let (lines, sum, bytes): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let digest = Digest { count: lines.cast_unsigned(), sum: sum.cast_unsigned() };
    Ok(RemovedObjects { objects, digest, bytes: bytes.cast_unsigned() })
}

fn accounted(connection: &Connection) -> rusqlite::Result<RemovedObjects> {
    let sql = "SELECT lines, digest, bytes, objects FROM removed_objects";
    connection.query_row(sql, [], |row| figures(row.get::<_, i64>(3)?.cast_unsigned(), row))
}

impl RemovedObjects {
    fn plus(self, other: Self) -> Self {
        Self {
            objects: self.objects + other.objects,
            digest: self.digest + other.digest,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Finishes removals that an earlier process began, as far as the files can be removed.
pub(super) fn finish_removals(connection: &Connection, path: &Path, files: &Files) -> Result<(), Error> {
    let located = |error: rusqlite::Error| Error::from(error).at(path);
    let objects = being_removed(connection).map_err(located)?;
    if objects.is_empty() {
        return Ok(());
    }
    let gone = unlink(files, objects);
    let step = connection.unchecked_transaction().map_err(located)?;
    account(&step, &gone).map_err(located)?;
    step.commit().map_err(located)
}

impl ArchiveReader {
    /// What this reader sees stays as it is now while the answer is held.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn hold(&self) -> Result<Snapshot<'_>, Error> {
        sqlite::snapshot(&self.connection).map_err(|error| Error::from(error).at(&self.index))
    }

    /// What retention has removed; objects whose removal is under way count as removed.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn removed(&self) -> Result<RemovedObjects, Error> {
        let read = || {
            let mut sum = accounted(&self.connection)?;
            let sql = "SELECT lines, digest, bytes FROM objects WHERE removing = 1";
            let mut under_way = self.connection.prepare_cached(sql)?;
            for one in under_way.query_map([], |row| figures(1, row))? {
                sum = sum.plus(one?);
            }
            Ok(sum)
        };
        read().map_err(|error: rusqlite::Error| Error::from(error).at(&self.index))
    }

    /// Which of `ids` the index lists, in an object whose file has the size it was archived with.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn has(&self, ids: &[MessageId]) -> Result<Vec<bool>, Error> {
        let mut sound: HashMap<i64, bool> = HashMap::new();
        let mut read = || {
            let mut find = self.connection.prepare_cached("SELECT object FROM object_ids WHERE id = ?1")?;
            let mut has = Vec::with_capacity(ids.len());
            for id in ids {
                let object: Option<i64> = find.query_row([id.as_bytes()], |row| row.get(0)).optional()?;
                has.push(match object {
                    None => false,
                    Some(object) => match sound.get(&object) {
                        Some(sound) => *sound,
                        None => *sound.entry(object).or_insert(self.is_sound(object)?),
                    },
                });
            }
            Ok(has)
        };
        read().map_err(|error: rusqlite::Error| Error::from(error).at(&self.index))
    }

    fn is_sound(&self, object: i64) -> rusqlite::Result<bool> {
        let sql = "SELECT name, bytes, temporary FROM objects WHERE id = ?1";
        let (name, bytes, temporary): (String, i64, Option<String>) = self
            .connection
            .prepare_cached(sql)?
            .query_row([object], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let waiting = temporary.map(|file| self.temporary.join(file));
        let size = |path: &Path| std::fs::metadata(path).ok().map(|file| file.len());
        let found = waiting.as_deref().and_then(size).or_else(|| size(&self.folder.join(name)));
        Ok(found == Some(bytes.cast_unsigned()))
    }
}

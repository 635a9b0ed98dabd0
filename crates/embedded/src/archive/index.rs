//! `archive.db`: which objects there are, and which message is in which.

use super::files::Files;
use super::retention::FORMAT_2;
use crate::Error;
use crate::sqlite::Schema;
use icestore::{ArchiveObject, ObjectName};
use messagepipeline::MessageId;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashSet;
use std::path::Path;

pub(super) const SCHEMA: Schema = Schema {
    kind: "archive",
    application_id: 0x4d53_4152,
    shrinks: false,
    migrations: &[FORMAT_1, FORMAT_2],
};

const FORMAT_1: &str = "
CREATE TABLE objects (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,         -- below the archive folder
    temporary TEXT,                    -- file in the temporary folder while the object is pending
    lines INTEGER NOT NULL,
    digest INTEGER NOT NULL,           -- sum of the ids' fingerprints modulo 2^64, as a signed number
    bytes INTEGER NOT NULL,            -- of the file
    uncompressed INTEGER NOT NULL,     -- of its lines
    first_received TEXT NOT NULL,
    last_received TEXT NOT NULL
) STRICT;
CREATE INDEX pending_objects ON objects (id) WHERE temporary IS NOT NULL;
CREATE TABLE object_ids (
    id BLOB NOT NULL PRIMARY KEY,      -- of the message
    object INTEGER NOT NULL REFERENCES objects (id),
    fingerprint INTEGER NOT NULL       -- of the payload, as a signed number
) STRICT, WITHOUT ROWID;
";

/// An object that is listed and not yet in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) object: i64,
    pub(super) name: ObjectName,
    pub(super) temporary: String,
}

/// What became of an object offered to the index.
pub(super) enum Recorded {
    As(i64),
    Overlaps,
}

/// Lists `object` as pending with all its ids, or changes nothing when one of them is listed.
pub(super) fn record(
    connection: &Connection,
    object: &ArchiveObject,
    temporary: &str,
) -> rusqlite::Result<Recorded> {
    let mut known = connection.prepare_cached("SELECT 1 FROM object_ids WHERE id = ?1")?;
    for line in &object.lines {
        if known.exists([line.id.as_bytes()])? {
            return Ok(Recorded::Overlaps);
        }
    }
    let mut insert = connection.prepare_cached(
        "INSERT INTO objects (name, temporary, lines, digest, bytes, uncompressed, first_received, last_received,
                              listed)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?3)",
    )?;
    let id = insert.insert(params![
        object.name.as_str(),
        temporary,
        object.digest.count.cast_signed(),
        object.digest.sum.cast_signed(),
        i64::try_from(object.bytes.len()).unwrap_or(i64::MAX),
        object.uncompressed.cast_signed(),
        object.first_received.to_string(),
        object.last_received.to_string(),
    ])?;
    let mut insert = connection.prepare_cached("INSERT INTO object_ids VALUES (?1, ?2, ?3)")?;
    for line in &object.lines {
        insert.execute(params![line.id.as_bytes(), id, line.fingerprint.cast_signed()])?;
    }
    Ok(Recorded::As(id))
}

/// Notes that `objects` are in their places.
pub(super) fn confirm(connection: &Connection, objects: &[i64]) -> rusqlite::Result<()> {
    let mut update = connection.prepare_cached("UPDATE objects SET temporary = NULL WHERE id = ?1")?;
    objects.iter().try_for_each(|object| update.execute([object]).map(drop))
}

/// Changes nothing, and writes it: the number of the format as it stands.
pub(super) fn touch(connection: &Connection) -> rusqlite::Result<()> {
    let format: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    connection.pragma_update(None, "user_version", format)
}

/// The fingerprint under which each id is listed.
pub(super) fn known(connection: &Connection, ids: &[MessageId]) -> rusqlite::Result<Vec<Option<u64>>> {
    let mut select = connection.prepare_cached("SELECT fingerprint FROM object_ids WHERE id = ?1")?;
    let mut known = Vec::with_capacity(ids.len());
    for id in ids {
        let fingerprint: Option<i64> = select.query_row([id.as_bytes()], |row| row.get(0)).optional()?;
        known.push(fingerprint.map(i64::cast_unsigned));
    }
    Ok(known)
}

/// The number under which exactly this attempt is listed.
pub(super) fn find(connection: &Connection, pending: &Pending) -> rusqlite::Result<Option<i64>> {
    let attempt = params![pending.name.as_str(), pending.temporary];
    connection
        .query_row("SELECT id FROM objects WHERE name = ?1 AND temporary = ?2", attempt, |row| row.get(0))
        .optional()
}

/// Finishes what an earlier process left pending and removes what it left unlisted. A pending object whose file is
/// nowhere was removed by somebody: it stays listed, and the books name its ids.
pub(super) fn repair(connection: &Connection, path: &Path, files: &Files) -> Result<(), Error> {
    let located = |error: rusqlite::Error| Error::from(error).at(path);
    let pending = pending(connection, path)?;
    let kept: HashSet<&str> = pending.iter().map(|object| object.temporary.as_str()).collect();
    let mut lost = Vec::new();
    for object in &pending {
        if files.is_lost(&object.temporary, &object.name)? {
            lost.push(files.place(&object.name));
        } else {
            files.publish(&object.temporary, &object.name)?;
        }
    }
    if !pending.is_empty() {
        let objects: Vec<_> = pending.iter().map(|object| object.object).collect();
        let step = connection.unchecked_transaction().map_err(located)?;
        confirm(&step, &objects).map_err(located)?;
        step.commit().map_err(located)?;
        let placed = pending.len() - lost.len();
        tracing::info!(objects = placed, "archived objects of an earlier run are in their places");
    }
    if let Some(first) = lost.first() {
        tracing::warn!(
            objects = lost.len(),
            first = %first.display(),
            "listed archive objects are gone: restore them from a copy; until then `books` names their messages"
        );
    }
    files.sweep(&kept)
}

fn pending(connection: &Connection, path: &Path) -> Result<Vec<Pending>, Error> {
    let read = || {
        let mut select = connection
            .prepare("SELECT id, name, temporary FROM objects WHERE temporary IS NOT NULL ORDER BY id")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect::<rusqlite::Result<Vec<(i64, String, String)>>>()
    };
    let rows = read().map_err(|error| Error::from(error).at(path))?;
    let checked = rows.into_iter().map(|(object, name, temporary)| {
        // The index is a file that anybody with access may have changed.
        let confined = ObjectName::parse(&name).and_then(|name| ObjectName::parse(&temporary).map(|_| name));
        match confined {
            Ok(name) if !temporary.contains('/') => Ok(Pending { object, name, temporary }),
            _ => Err(Error::Inconsistent {
                path: path.to_owned(),
                detail: format!("the pending object {object} has the name `{name}`, which no archive gives"),
            }),
        }
    });
    checked.collect()
}

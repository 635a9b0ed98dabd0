//! Reading the archive beside the process that fills it: figures for the books, and the proof by the objects.

use super::index::SCHEMA;
use crate::{Error, sqlite};
use icestore::{decode_line, decompress, payload_fingerprint};
use messagepipeline::{Digest, MessageId};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Ids read at a time.
const PAGE: i64 = 10_000;
/// Problems told apart; a folder that is gone has one per object.
const MAX_PROBLEMS: usize = 1_000;
/// A line holds one message, and no message is near this.
const MAX_LINE: u64 = 1024 * 1024 * 1024;

/// A read-only view of an archive. All its calls read the disk before they return.
#[derive(Debug)]
pub struct ArchiveReader {
    pub(super) connection: Connection,
    pub(super) index: PathBuf,
    pub(super) folder: PathBuf,
    pub(super) temporary: PathBuf,
}

/// Figures of an archive, from its index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchiveSummary {
    /// Objects, pending ones included.
    pub objects: u64,
    /// Objects that are archived and not yet in their places.
    pub pending: u64,
    /// Bytes of the objects, compressed.
    pub bytes: u64,
    /// Digest of the ids in them; its count is the number of lines.
    pub digest: Digest,
}

/// One object, as the index lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectEntry {
    /// Name below the archive folder.
    pub name: String,
    /// Its file: in its place, or in the temporary folder while it is pending.
    pub path: PathBuf,
    /// Bytes of the file.
    pub bytes: u64,
    /// Digest of the ids in it; its count is the number of lines.
    pub digest: Digest,
    /// Whether it is pending.
    pub pending: bool,
    /// Whether retention has taken ids of it out of the index.
    pub partly_forgotten: bool,
    number: i64,
}

/// What reading all objects again has shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Objects read.
    pub objects: u64,
    /// Digest of the ids found in them.
    pub digest: Digest,
    /// What is wrong, for people; at most 1,000 of them.
    pub problems: Vec<String>,
}

impl std::ops::Sub<&[ObjectEntry]> for ArchiveSummary {
    type Output = Self;

    /// The figures without these objects.
    fn sub(mut self, without: &[ObjectEntry]) -> Self {
        for object in without {
            self.objects -= 1;
            self.pending -= u64::from(object.pending);
            self.bytes -= object.bytes;
            self.digest = self.digest - object.digest;
        }
        self
    }
}

impl ArchiveReader {
    /// Opens the archive with the index `index` and the folders `folder` and `temporary`.
    ///
    /// # Errors
    /// When the index is missing or of another kind.
    pub fn open(index: &Path, folder: &Path, temporary: &Path) -> Result<Self, Error> {
        let connection = sqlite::open_reader(index, &SCHEMA)?;
        Ok(Self {
            connection,
            index: index.to_owned(),
            folder: folder.to_owned(),
            temporary: temporary.to_owned(),
        })
    }

    /// Figures of all objects.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn summary(&self) -> Result<ArchiveSummary, Error> {
        let mut summary = ArchiveSummary::default();
        self.objects(&mut |object| {
            summary.objects += 1;
            summary.pending += u64::from(object.pending);
            summary.bytes += object.bytes;
            summary.digest += object.digest;
            Ok(())
        })?;
        Ok(summary)
    }

    /// Hands every object to `visit`, in the order in which they were archived.
    ///
    /// # Errors
    /// When the index cannot be read, or the error of `visit`.
    pub fn objects(&self, visit: &mut dyn FnMut(ObjectEntry) -> Result<(), Error>) -> Result<(), Error> {
        let located = |error: rusqlite::Error| Error::from(error).at(&self.index);
        let sql = "SELECT id, name, temporary, bytes, lines, digest, listed FROM objects WHERE removing = 0 ORDER BY id";
        let mut select = self.connection.prepare_cached(sql).map_err(located)?;
        let mut rows = select.query([]).map_err(located)?;
        while let Some(row) = rows.next().map_err(located)? {
            visit(self.entry(row).map_err(located)?)?;
        }
        Ok(())
    }

    fn entry(&self, row: &rusqlite::Row<'_>) -> rusqlite::Result<ObjectEntry> {
        let name: String = row.get(1)?;
        let temporary: Option<String> = row.get(2)?;
        // An object may be in its place before the index is told.
        let waiting = temporary.map(|file| self.temporary.join(file)).filter(|path| path.exists());
        let pending = waiting.is_some();
        let path = waiting.unwrap_or_else(|| self.folder.join(&name));
        let digest = Digest {
            count: row.get::<_, i64>(4)?.cast_unsigned(),
            sum: row.get::<_, i64>(5)?.cast_unsigned(),
        };
        let bytes = row.get::<_, i64>(3)?.cast_unsigned();
        let partly_forgotten = row.get::<_, i64>(6)?.cast_unsigned() < digest.count;
        Ok(ObjectEntry { name, path, bytes, digest, pending, partly_forgotten, number: row.get(0)? })
    }

    /// Objects whose file is gone or has another size than the one that was archived.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn damaged(&self) -> Result<Vec<ObjectEntry>, Error> {
        let mut damaged = Vec::new();
        self.objects(&mut |object| {
            // Between the listing and this look a running process may have moved it.
            let place = || std::fs::metadata(self.folder.join(&object.name));
            let size = std::fs::metadata(&object.path).or_else(|_| place()).map(|file| file.len());
            if size.ok() != Some(object.bytes) {
                damaged.push(object);
            }
            Ok(())
        })?;
        // A running retention may have removed some since they were listed.
        let mut still = Vec::with_capacity(damaged.len());
        for object in damaged {
            if self.is_listed_object(object.number)? {
                still.push(object);
            }
        }
        Ok(still)
    }

    fn is_listed_object(&self, number: i64) -> Result<bool, Error> {
        let read = || {
            let sql = "SELECT 1 FROM objects WHERE id = ?1 AND removing = 0";
            self.connection.prepare_cached(sql)?.exists([number])
        };
        read().map_err(|error| Error::from(error).at(&self.index))
    }

    /// All ids in rising order, but for those in the objects `without`. Memory does not grow with their number; ids
    /// that come while it runs may or may not be in it.
    pub fn ids(&self, without: &[ObjectEntry]) -> impl Iterator<Item = Result<MessageId, Error>> + '_ {
        let without: HashSet<i64> = without.iter().map(|object| object.number).collect();
        let mut page = Vec::new().into_iter();
        let mut after: Vec<u8> = Vec::new();
        let mut failed = false;
        std::iter::from_fn(move || {
            if page.len() == 0 && !failed {
                match self.page(&mut after, &without) {
                    Ok(ids) => page = ids.into_iter(),
                    Err(error) => {
                        failed = true;
                        return Some(Err(error));
                    }
                }
            }
            Some(Ok(MessageId::from_bytes(page.next()?)))
        })
    }

    /// The next ids behind `after`, which moves on; empty only at the end.
    fn page(&self, after: &mut Vec<u8>, without: &HashSet<i64>) -> Result<Vec<[u8; 16]>, Error> {
        let read = |after: &[u8]| {
            let sql = "SELECT id, object FROM object_ids WHERE id > ?1 ORDER BY id LIMIT ?2";
            let mut select = self.connection.prepare_cached(sql)?;
            let rows = select.query_map(params![after, PAGE], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<([u8; 16], i64)>>>()
        };
        loop {
            let rows = read(after).map_err(|error| Error::from(error).at(&self.index))?;
            let Some((last, _)) = rows.last() else { return Ok(Vec::new()) };
            *after = last.to_vec();
            let ids: Vec<_> =
                rows.into_iter().filter(|(_, object)| !without.contains(object)).map(|(id, _)| id).collect();
            if !ids.is_empty() {
                return Ok(ids);
            }
        }
    }

    /// Files in the archive folder that the index does not list. Readers who glob the folder would count them.
    ///
    /// # Errors
    /// When the index or a folder cannot be read.
    pub fn foreign_files(&self) -> Result<Vec<PathBuf>, Error> {
        let mut listed = HashSet::new();
        self.objects(&mut |object| {
            listed.insert(self.folder.join(&object.name));
            Ok(())
        })?;
        let mut foreign = Vec::new();
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            let failed = |error| Error::io("read", &folder, error);
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let path = entry.path();
                if entry.file_type().map_err(failed)?.is_dir() {
                    folders.push(path);
                } else if !listed.contains(&path) {
                    foreign.push(path);
                }
            }
        }
        Ok(foreign)
    }

    /// Reads every object again and compares its lines with the index: ids, payloads, counts. An object that is
    /// damaged or gone is a problem, not an error.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn verify(&self) -> Result<Verification, Error> {
        let mut verification = Verification::default();
        self.objects(&mut |object| {
            verification.objects += 1;
            let mut found = Digest::default();
            let outcome = self.verify_object(&object, &mut found)?;
            verification.digest += found;
            let problem = match outcome {
                Some(problem) => problem,
                None if found != object.digest => {
                    format!("{} lines with digest {found}, listed with {}", found.count, object.digest)
                }
                None => return Ok(()),
            };
            if verification.problems.len() < MAX_PROBLEMS {
                verification.problems.push(format!("{}: {problem}", object.path.display()));
            }
            Ok(())
        })?;
        Ok(verification)
    }

    /// What is wrong with one object, if anything; adds the ids of its lines to `found`.
    fn verify_object(&self, object: &ObjectEntry, found: &mut Digest) -> Result<Option<String>, Error> {
        // As in `damaged`: it may have been moved since it was listed.
        let file = File::open(&object.path).or_else(|_| File::open(self.folder.join(&object.name)));
        let file = match file {
            Ok(file) => file,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let mut lines = match decompress(&object.name, file) {
            Ok(lines) => BufReader::with_capacity(64 * 1024, lines),
            Err(error) => return Ok(Some(error.to_string())),
        };
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            match (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Ok(Some(format!("line {number}: {error}"))),
            }
            let message = match decode_line(&line) {
                Ok(message) => message,
                Err(error) => return Ok(Some(format!("line {number}: {error}"))),
            };
            found.insert(&message.id);
            let fingerprint = payload_fingerprint(&message.payload);
            if !self.is_listed(&message.id, object, fingerprint)? {
                return Ok(Some(format!(
                    "line {number}: message {} is not listed in this object so",
                    message.id
                )));
            }
        }
        Ok(None)
    }

    /// A line whose id is forgotten is proved by the object's digest alone.
    fn is_listed(&self, id: &MessageId, object: &ObjectEntry, fingerprint: u64) -> Result<bool, Error> {
        let read = || {
            let sql = "SELECT object, fingerprint FROM object_ids WHERE id = ?1";
            let mut select = self.connection.prepare_cached(sql)?;
            select.query_row([id.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?))).optional()
        };
        let listed: Option<(i64, i64)> = read().map_err(|error| Error::from(error).at(&self.index))?;
        Ok(match listed {
            Some((number, stored)) if number == object.number => stored == fingerprint.cast_signed(),
            _ => object.partly_forgotten,
        })
    }
}

//! Importing devices.

use super::lines::{BadFile, Lines};
use super::{Device, schema};
use crate::{Error, sqlite};
use messagepipeline::{Clock, ErrorClass};
use rusqlite::{Connection, TransactionBehavior, params};
use std::fmt;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Lines in one transaction: about a second of work, so that another import does not wait long. Not fewer, because
/// ids in random order touch every page of the table in each transaction.
const STEP_LINES: usize = 50_000;
/// Bytes of lines that a transaction holds in memory.
const STEP_BYTES: usize = 4 * 1024 * 1024;
/// Refusals kept with their reasons; more are only counted.
const KEPT_REFUSALS: usize = 1_000;

const PUT: &str = "INSERT INTO devices(device_id, client_id, location_id, category, extra, updated_at)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6)
     ON CONFLICT(device_id) DO UPDATE SET client_id = excluded.client_id, location_id = excluded.location_id,
         category = excluded.category, extra = excluded.extra, updated_at = excluded.updated_at";

/// Writes devices into a registry.
pub struct Importer {
    connection: Connection,
    path: PathBuf,
    clock: Arc<dyn Clock>,
}

/// What an import did. Every line that is not blank, the header apart, is in exactly one of the first four.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// Devices that were not there before.
    pub added: u64,
    /// Devices that were there with other data, those of an earlier line of the same file included.
    pub changed: u64,
    /// Devices that were there with the same data.
    pub unchanged: u64,
    /// Lines that give no valid device.
    pub refused: u64,
    /// The first 1,000 of the refused lines.
    pub refusals: Vec<Refusal>,
}

/// A line that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its number in the file, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl ImportReport {
    /// Lines read so far.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.added + self.changed + self.unchanged + self.refused
    }

    fn refuse(&mut self, line: u64, reason: String) {
        self.refused += 1;
        if self.refusals.len() < KEPT_REFUSALS {
            self.refusals.push(Refusal { line, reason });
        }
    }
}

impl Importer {
    /// Opens the registry at `path` for writing; creates it where there is none. A running pipeline may read it, and
    /// another import may write it, meanwhile.
    ///
    /// # Errors
    /// When the file cannot be opened or is no registry of a known format.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let connection = sqlite::open(path, &schema::SCHEMA)?;
        Ok(Self { connection, path: path.to_owned(), clock })
    }

    /// Reads devices as CSV with a header or as NDJSON, told by the first line, and stores them. Blocks; `progress`
    /// is called after each step of up to 50,000 lines with the report so far.
    ///
    /// A line replaces everything that is known about its device: a column that the file does not have, or that is
    /// empty, becomes absent. Where a file names a device twice, the last line stays. Columns beyond `device_id`,
    /// `client_id`, `location_id` and `category` are kept under their names. Blank lines count for nothing.
    ///
    /// # Errors
    /// When the file has no usable header, cannot be read further, or the registry cannot be written. The steps
    /// until then are stored; importing again is harmless.
    pub fn import(
        &mut self,
        source: impl BufRead,
        progress: &mut dyn FnMut(&ImportReport),
    ) -> Result<ImportReport, Error> {
        let mut lines = Lines::new(source).map_err(unreadable)?;
        let mut report = ImportReport::default();
        while self.step(&mut lines, &mut report)? {
            progress(&report);
        }
        progress(&report);
        Ok(report)
    }

    /// Stores the next lines; false at the end of the file.
    fn step(&mut self, lines: &mut Lines<impl BufRead>, report: &mut ImportReport) -> Result<bool, Error> {
        // Read before the transaction begins: the source may be slow, and nobody else can write meanwhile.
        let mut devices = Vec::new();
        let (mut read, mut bytes, mut more) = (0, 0, true);
        while read < STEP_LINES && bytes < STEP_BYTES {
            match lines.next().map_err(|error| unreadable(error.into()))? {
                Some((_, Ok(device))) => devices.push(device),
                Some((line, Err(bad))) => report.refuse(line, bad.to_string()),
                None => {
                    more = false;
                    break;
                }
            }
            read += 1;
            bytes += lines.bytes();
        }
        // In the table's order each page is read and written once. Stable: of two lines for a device the later stays.
        devices.sort_by(|left, right| left.device_id.cmp(&right.device_id));
        self.store(&devices, report).map_err(|error| Error::from(error).at(&self.path))?;
        Ok(more)
    }

    fn store(&mut self, devices: &[Device], report: &mut ImportReport) -> rusqlite::Result<()> {
        let updated_at = self.clock.now().to_string();
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut added, mut changed, mut unchanged) = (0, 0, 0);
        for device in devices {
            match schema::get(&transaction, &device.device_id)? {
                Some(known) if known == *device => {
                    unchanged += 1;
                    continue;
                }
                Some(_) => changed += 1,
                None => added += 1,
            }
            transaction.prepare_cached(PUT)?.execute(params![
                device.device_id,
                device.client_id,
                device.location_id,
                device.category,
                device.extra_json(),
                updated_at,
            ])?;
        }
        transaction.commit()?;
        report.added += added;
        report.changed += changed;
        report.unchanged += unchanged;
        Ok(())
    }
}

impl fmt::Debug for Importer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Importer").field("path", &self.path).finish_non_exhaustive()
    }
}

fn unreadable(error: BadFile) -> Error {
    Error::refused(ErrorClass::Configuration, "import-file", error.to_string())
}

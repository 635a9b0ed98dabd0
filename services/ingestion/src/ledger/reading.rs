//! Reading ledgers, for the books.

use super::{ID, MARK, MARK_EVERY, Reached, day_of, start_of};
use messagepipeline::{MessageId, Timestamp};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What ledgers hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledgers {
    /// The ids of everything that was taken on, sorted, each once.
    pub ids: Vec<MessageId>,
    /// Those of them that were published lately, sorted, each once.
    pub recent: Vec<MessageId>,
    /// Those of them that a spool has and the bus has not yet, sorted, each once.
    pub spooled: Vec<MessageId>,
    /// They hold everything since then: of each folder the first time it tells, and of these the last. Nothing where
    /// no folder tells one.
    pub since: Option<Timestamp>,
}

impl Ledgers {
    /// Reads the ledgers of `folders`. An id counts as recent when it was published at `recent_since` or later, by the
    /// time of the process that did. Needs 16 bytes of memory for each id, and as many again for what went through a
    /// spool.
    ///
    /// # Errors
    /// The folder, when it or a file in it cannot be read.
    pub fn read<'a>(
        folders: impl IntoIterator<Item = &'a Path>,
        recent_since: Timestamp,
    ) -> Result<Self, (&'a Path, io::Error)> {
        let mut ledgers = Self::default();
        for folder in folders {
            let first = ledgers.read_folder(folder, recent_since).map_err(|error| (folder, error))?;
            ledgers.since = ledgers.since.max(first);
        }
        for ids in [&mut ledgers.ids, &mut ledgers.recent, &mut ledgers.spooled] {
            ids.sort_unstable();
            ids.dedup();
        }
        let Self { ids, spooled, .. } = &mut ledgers;
        spooled.retain(|id| ids.binary_search(id).is_err());
        ids.extend_from_slice(spooled);
        ids.sort_unstable();
        Ok(ledgers)
    }

    /// The first time that the files of `folder` tell.
    fn read_folder(&mut self, folder: &Path, recent_since: Timestamp) -> io::Result<Option<Timestamp>> {
        let mut first: Option<Timestamp> = None;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let Some(reached) = Reached::of(&path) else { continue };
            let mut bytes = Vec::new();
            match File::open(&path) {
                Ok(mut file) => file.read_to_end(&mut bytes)?,
                // Old files are deleted while ingestion runs.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // An id that is being written stands there in part.
            let begins = self.add(bytes.as_chunks::<ID>().0, reached, recent_since);
            // A clock that was set later tells no time since which the ledger is whole.
            let begins = begins.max(day_of(&path).and_then(start_of).filter(|_| begins.is_some()));
            first = [first, begins].into_iter().flatten().min();
        }
        Ok(first)
    }

    /// The first time that `entries` tell.
    fn add(&mut self, entries: &[[u8; ID]], reached: Reached, recent_since: Timestamp) -> Option<Timestamp> {
        let mut is_recent = false;
        let mut first: Option<Timestamp> = None;
        for entry in entries {
            if let Some(time) = entry.strip_prefix(&MARK).and_then(|time| time.try_into().ok()) {
                let time = Timestamp::from_micros(i64::from_be_bytes(time));
                // What follows was published before the next mark is due.
                is_recent = time.plus(MARK_EVERY) >= recent_since;
                first = Some(first.map_or(time, |first| first.min(time)));
                continue;
            }
            let id = MessageId::from_bytes(*entry);
            match reached {
                Reached::Spool => self.spooled.push(id),
                Reached::Bus => {
                    self.ids.push(id);
                    if is_recent {
                        self.recent.push(id);
                    }
                }
            }
        }
        first
    }
}

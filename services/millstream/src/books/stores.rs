//! Reading the stores for the books.

use super::reconcile::{Past, Reconciled, Set, Source, reconcile};
use super::report::{
    ArchiveLine, DeadLetterLine, FoldedLine, PendingLine, Report, StageLine, TopicLine, WarehouseLine,
};
use crate::check::{ENRICHED, RAW};
use crate::system::{ARCHIVE, WAREHOUSE};
use embedded::Error;
use embedded::archive::{ArchiveReader, ArchiveSummary, ObjectEntry, RemovedObjects};
use embedded::bus::{BusReader, Folded, LetterCount};
use embedded::folder::DataFolder;
use embedded::warehouse::WarehouseReader;
use messagepipeline::{Digest, MessageId};
use std::collections::HashSet;
use std::time::Duration;

/// The stages in the order of the path, with the set their endings belong to.
const STAGES: [(&str, Set); 4] = [
    (ingestion_service::STAGE, Set::EndedIngestion),
    (enrichment_service::STAGE, Set::EndedEnrichment),
    (bigquery_service::STAGE, Set::EndedWarehouse),
    (icestore_service::STAGE, Set::EndedArchive),
];
/// The subscriptions, with the set of what they have not settled.
const SUBSCRIPTIONS: [(&str, &str, Set); 3] = [
    (RAW, enrichment_service::STAGE, Set::PendingEnrichment),
    (ENRICHED, bigquery_service::STAGE, Set::PendingWarehouse),
    (ENRICHED, icestore_service::STAGE, Set::PendingArchive),
];
/// Looks at a running system until an id counts as missing. The stores are read one after the other, and a message
/// that moves on meanwhile seems to be nowhere; it cannot seem so every time.
const LOOKS: u32 = 4;
/// Time between two looks; far longer than a message is between two stores.
const PAUSE: Duration = Duration::from_millis(250);

/// The stores of a data folder, open for reading.
pub struct Books<'f> {
    folder: &'f DataFolder,
    table: String,
    bus: BusReader,
    warehouse: WarehouseReader,
    archive: ArchiveReader,
    remote: Remote,
}

/// Sinks outside the data folder, in place of its own.
#[derive(Debug, Default)]
pub struct Remote {
    /// The table.
    pub rows: Option<RemoteSink>,
    /// The bucket.
    pub lines: Option<RemoteSink>,
}

/// What a sink outside holds.
#[derive(Debug, Default)]
pub struct RemoteSink {
    /// Where it is, for people.
    pub place: String,
    /// Ids in it, sorted, each once.
    pub ids: Vec<MessageId>,
    /// Further rows or lines with an id that has one already.
    pub copies: u64,
    /// Objects, of a bucket.
    pub objects: u64,
}

/// What one look has shown.
struct Look {
    found: Reconciled,
    folded: Folded,
    removed_rows: Digest,
    removed_objects: RemovedObjects,
    /// Of the objects that are sound.
    archive: ArchiveSummary,
}

type Ids<'a> = Box<dyn Iterator<Item = Result<MessageId, Error>> + 'a>;

impl<'f> Books<'f> {
    /// Opens the stores of `folder`. Nothing is written, and a running system is not disturbed.
    ///
    /// # Errors
    /// When a store is missing or cannot be read.
    pub fn open(folder: &'f DataFolder, table: &str) -> Result<Self, Error> {
        Ok(Self {
            folder,
            table: table.to_owned(),
            bus: BusReader::open(folder.bus())?,
            warehouse: WarehouseReader::open(&folder.warehouse(), table)?,
            archive: ArchiveReader::open(&folder.archive_index(), &folder.archive(), &folder.archive_tmp())?,
            remote: Remote::default(),
        })
    }

    /// The same with sinks outside the data folder, as they were read just now.
    #[must_use]
    pub fn with(mut self, remote: Remote) -> Self {
        self.remote = remote;
        self
    }

    /// Compares all stores. While the system runs (`running`), what is on its way keeps the books balanced.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub fn report(&self, running: bool) -> Result<Report, Error> {
        let mut look = self.look()?;
        for _ in 1..LOOKS {
            if !running || look.found.unaccounted_count == 0 {
                break;
            }
            std::thread::sleep(PAUSE);
            let before = look.found;
            look = self.look()?;
            look.found = still_missing(&before, look.found);
        }
        self.write(look, running)
    }

    /// Reads every archive object again and looks for files beside them; answers what is wrong, for people.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn verify_archive(&self) -> Result<Vec<String>, Error> {
        let mut problems = self.archive.verify()?.problems;
        let foreign = self.archive.foreign_files()?;
        problems.extend(
            foreign.iter().map(|path| format!("{}: not one of the archive's objects", path.display())),
        );
        Ok(problems)
    }

    fn look(&self) -> Result<Look, Error> {
        let damaged = self.archive.damaged()?;
        // Sums and ids of one store must be of the same moment, and the stores' moments close together.
        let _held = (self.bus.hold()?, self.warehouse.hold()?, self.archive.hold()?);
        let (folded, removed_rows) = (self.bus.folded()?, self.warehouse.removed()?);
        let (removed_objects, archive) = (self.archive.removed()?, self.archive.summary()? - &damaged[..]);
        let past = Past {
            horizon: folded.horizon,
            rows: folded.stored(WAREHOUSE) - removed_rows,
            lines: folded.stored(ARCHIVE) - removed_objects.digest,
            objects: Some(match &self.remote.lines {
                Some(lines) => lines.ids.iter().collect(),
                None => archive.digest,
            }),
        };
        let mut found = reconcile(self.sources(&damaged)?, &past)?;
        for (topic, set) in [(RAW, Set::Raw), (ENRICHED, Set::Enriched)] {
            let published = self.bus.topics()?.into_iter().find(|found| found.name == topic);
            let published = published.map(|topic| topic.published).unwrap_or_default();
            found.disagree(
                &format!("topic {topic}"),
                "ids",
                found.digest(set) + folded.topic(topic),
                published,
            );
        }
        Ok(Look { found, folded, removed_rows, removed_objects, archive })
    }

    fn sources(&self, damaged: &[ObjectEntry]) -> Result<Vec<Source<'_, Error>>, Error> {
        let mut sources: Vec<Source<'_, Error>> = Vec::new();
        for (topic, subscription, set) in SUBSCRIPTIONS {
            if let Some(ids) = self.unsettled(topic, subscription)? {
                sources.push(Source { set, ids });
            }
        }
        sources.push(Source { set: Set::Parked, ids: Box::new(self.bus.parked_ids()) });
        for (stage, set) in STAGES {
            sources.push(Source { set, ids: Box::new(self.bus.dead_letter_ids(stage, "dead")) });
            sources.push(Source { set, ids: Box::new(self.bus.dead_letter_ids(stage, "dropped")) });
            sources.push(Source { set, ids: Box::new(self.bus.skipped_ids(stage)) });
        }
        sources.push(Source { set: Set::Raw, ids: self.published(RAW)? });
        sources.push(Source { set: Set::Enriched, ids: self.published(ENRICHED)? });
        let rows: Ids<'_> = match &self.remote.rows {
            Some(rows) => Box::new(rows.ids.iter().copied().map(Ok)),
            None => Box::new(self.warehouse.ids()),
        };
        let lines: Ids<'_> = match &self.remote.lines {
            Some(lines) => Box::new(lines.ids.iter().copied().map(Ok)),
            None => Box::new(self.archive.ids(damaged)),
        };
        sources.push(Source { set: Set::Warehouse, ids: rows });
        sources.push(Source { set: Set::Archive, ids: lines });
        Ok(sources)
    }

    fn published(&self, topic: &str) -> Result<Ids<'_>, Error> {
        let exists = self.bus.topics()?.iter().any(|found| found.name == topic);
        Ok(if exists { Box::new(self.bus.ids_of(topic)?) } else { Box::new(std::iter::empty()) })
    }

    fn unsettled(&self, topic: &str, subscription: &str) -> Result<Option<Ids<'_>>, Error> {
        let known = self.bus.subscriptions()?;
        if !known.iter().any(|found| found.topic == topic && found.name == subscription) {
            return Ok(None);
        }
        Ok(Some(Box::new(self.bus.unsettled_ids(topic, subscription)?)))
    }

    fn write(&self, look: Look, running: bool) -> Result<Report, Error> {
        let Look { found, folded, removed_rows, removed_objects, archive } = look;
        let pending = [
            ("subscription enrichment", found.digest(Set::PendingEnrichment).count),
            ("subscription bigquery", found.digest(Set::PendingWarehouse).count),
            ("subscription icestore", found.digest(Set::PendingArchive).count),
            ("parked", found.digest(Set::Parked).count),
        ]
        .map(|(place, count)| PendingLine { place: place.to_owned(), count });
        let unfinished: u64 =
            pending.iter().filter(|line| line.place != "parked").map(|line| line.count).sum();
        let rows = found.digest(Set::Warehouse);
        Ok(Report {
            balanced: found.unaccounted_count == 0 && (running || unfinished == 0),
            folded: folded.horizon.map(|horizon| FoldedLine::new(horizon, folded.topic(RAW))),
            topics: topics(&found, &folded),
            ledger: None,
            stages: self.stages(&found, &folded)?,
            warehouse: self.warehouse_line(rows, removed_rows),
            archive: self.archive_line(&archive, &removed_objects),
            dead_letters: self.dead_letters()?,
            pending: pending.to_vec(),
            pending_messages: found.pending,
            disagreements: found.disagreements,
            unaccounted: found.unaccounted,
            unaccounted_count: found.unaccounted_count,
        })
    }

    fn warehouse_line(&self, rows: Digest, removed: Digest) -> WarehouseLine {
        let remote = self.remote.rows.as_ref();
        WarehouseLine {
            path: remote
                .map_or_else(|| self.folder.warehouse().display().to_string(), |rows| rows.place.clone()),
            table: self.table.clone(),
            rows: rows.count,
            digest: rows.to_string(),
            copies: remote.map_or(0, |rows| rows.copies),
            removed: removed.count,
        }
    }

    fn archive_line(&self, archive: &ArchiveSummary, removed: &RemovedObjects) -> ArchiveLine {
        let (path, objects, digest, copies) = match &self.remote.lines {
            Some(lines) => (lines.place.clone(), lines.objects, lines.ids.iter().collect(), lines.copies),
            None => (self.folder.archive().display().to_string(), archive.objects, archive.digest, 0),
        };
        ArchiveLine {
            path,
            objects,
            lines: digest.count,
            digest: digest.to_string(),
            copies,
            removed_objects: removed.objects,
            removed_lines: removed.digest.count,
        }
    }

    fn stages(&self, found: &Reconciled, folded: &Folded) -> Result<Vec<StageLine>, Error> {
        let letters = self.dead_letters()?;
        let skips = self.bus.skip_counts()?;
        let topics = self.bus.topics()?;
        let again =
            |topic: &str| topics.iter().find(|found| found.name == topic).map_or(0, |found| found.duplicates);
        let count = |set| found.digest(set).count;
        let line = |name: &str, input: Option<u64>, out: u64, redelivered: u64| {
            let dead_lettered =
                letters.iter().filter(|line| line.stage == name).map(|line| line.count).sum::<u64>();
            let skipped =
                skips.iter().filter(|(stage, ..)| stage == name).map(|(.., count)| count).sum::<u64>();
            let skipped = skipped + folded.skipped(name).count;
            let input = input.unwrap_or(out + dead_lettered + skipped);
            StageLine { name: name.to_owned(), input, out, skipped, dead_lettered, redelivered }
        };
        let (raw, enriched) =
            (count(Set::Raw) + folded.topic(RAW).count, count(Set::Enriched) + folded.topic(ENRICHED).count);
        let (rows, lines) = (
            found.known(Set::Warehouse) + folded.stored(WAREHOUSE),
            found.known(Set::Archive) + folded.stored(ARCHIVE),
        );
        let settled = |published: u64, pending: Set| Some(published.saturating_sub(count(pending)));
        Ok(vec![
            line(ingestion_service::STAGE, None, raw, again(RAW)),
            line(enrichment_service::STAGE, settled(raw, Set::PendingEnrichment), enriched, again(ENRICHED)),
            line(bigquery_service::STAGE, settled(enriched, Set::PendingWarehouse), rows.count, 0),
            line(icestore_service::STAGE, settled(enriched, Set::PendingArchive), lines.count, 0),
        ])
    }

    fn dead_letters(&self) -> Result<Vec<DeadLetterLine>, Error> {
        let mut lines: Vec<DeadLetterLine> = Vec::new();
        // In the order of stage and reason.
        for LetterCount { stage, reason, state, count } in self.bus.dead_letter_counts()? {
            if state == "retried" {
                continue;
            }
            let dropped = if state == "dropped" { count } else { 0 };
            match lines.last_mut() {
                Some(line) if (&line.stage, &line.reason) == (&stage, &reason) => {
                    line.count += count;
                    line.dropped += dropped;
                }
                _ => lines.push(DeadLetterLine { stage, reason, count, dropped }),
            }
        }
        Ok(lines)
    }
}

fn topics(found: &Reconciled, folded: &Folded) -> Vec<TopicLine> {
    let line = |name: &str, set| {
        let digest = found.digest(set) + folded.topic(name);
        TopicLine { name: name.to_owned(), published: Some(digest.count), digest: Some(digest.to_string()) }
    };
    vec![line(RAW, Set::Raw), line(ENRICHED, Set::Enriched)]
}

/// What was missing at both looks. Where there are more missing ids than are named, they cannot be followed from look
/// to look, and the count of the last look stands.
fn still_missing(before: &Reconciled, mut now: Reconciled) -> Reconciled {
    if !before.names_all() || !now.names_all() {
        return now;
    }
    let ids: HashSet<&str> = before.unaccounted.iter().map(|lost| lost.message_id.as_str()).collect();
    now.unaccounted.retain(|lost| ids.contains(lost.message_id.as_str()));
    now.unaccounted_count = now.unaccounted.len() as u64;
    now
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::Unaccounted;

    fn missing(named: &[&str], count: u64) -> Reconciled {
        let lost = |id: &&str| Unaccounted {
            message_id: (*id).to_owned(),
            last_seen: String::new(),
            missing_from: Vec::new(),
        };
        let mut found = Reconciled::default();
        found.unaccounted = named.iter().map(lost).collect();
        found.unaccounted_count = count;
        found
    }

    #[test]
    fn what_moves_on_between_two_looks_is_not_missing_and_more_than_can_be_named_is_counted_all_the_same() {
        let still = still_missing(&missing(&["a", "b"], 2), missing(&["b", "c"], 2));
        assert_eq!((still.unaccounted.len(), still.unaccounted_count), (1, 1));
        let still = still_missing(&missing(&["a", "b"], 500_000), missing(&["c", "d"], 400_000));
        assert_eq!(still.unaccounted_count, 400_000);
    }
}

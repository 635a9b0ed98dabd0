//! Forgetting and removing what is old: first ids, then rows and objects.
//!
//! ```text
//!  an id       settled by every subscription for `retention.ids`, and finished by the books' own judgement
//!              ─► bus.db: out of the ledgers, into sums ─► archive.db: out of the index
//!  a row       stored `retention.warehouse` ago, its id forgotten ─► removed, into a sum
//!  an object   received `retention.archive` ago, all its ids forgotten ─► removed, into a sum
//! ```
//!
//! So the books still add up: what was folded and is not in a sink any more is what retention removed from it. What
//! is not finished is never forgotten, whatever its age, and stays named by the books.
//!
//! Ages are counted by the wall clock. When it is set while the program runs, what was noted with the time moves along
//! ([`WatchedClock`]), so that nothing gets older by it.
//!
//! Everything is done in small steps, with a pause after each as long as the step took, so that messages on their way
//! wait for one step at most.

mod clock;

use super::open::{OpenError, Stores};
use crate::books::{Membership, Set};
use crate::check::{ENRICHED, RAW};
use crate::config::{Config, RetentionConfig};
use clock::WatchedClock;
use embedded::Error;
use embedded::archive::{ArchiveReader, ObjectRetention};
use embedded::bus::{BusReader, Candidate, CandidatePage, Finished, IdLedger};
use embedded::folder::DataFolder;
use embedded::warehouse::{OldRow, RowRetention, WarehouseReader};
use messagepipeline::metric_names::{HORIZON_SECONDS, IDS_FOLDED};
use messagepipeline::{Clock, MessageId, Shutdown, Timestamp};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The sinks, as the sums call them.
pub(crate) const WAREHOUSE: &str = "warehouse";
/// See [`WAREHOUSE`].
pub(crate) const ARCHIVE: &str = "archive";

/// Ids or rows in one step; some milliseconds of the writer's time.
const STEP: usize = 512;
/// Objects in one step; each one costs syncs of its own.
const OBJECTS: usize = 16;
/// A retention is looked at this often within its time, so that it is late by no more than a 64th.
const LOOKS: u32 = 64;
/// Shortest and longest time between two looks.
const SPACING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// The background task.
pub(super) struct Retention {
    config: RetentionConfig,
    ids: Duration,
    ledger: IdLedger,
    rows: RowRetention,
    objects: ObjectRetention,
    readers: Arc<Mutex<Readers>>,
    clock: WatchedClock,
}

/// Connections of its own: what it reads must not wait for the writers, nor they for it.
struct Readers {
    bus: BusReader,
    warehouse: WarehouseReader,
    archive: ArchiveReader,
}

/// Where a pass looks for ids.
#[derive(Clone, Copy)]
enum Ids {
    /// In the ledger of topic `raw`.
    Ledger,
    /// Among those that a rule ended before they reached it.
    Refused,
}

/// Why a pass ended early.
enum Cut {
    Stopped,
    Failed(Error),
    /// A read did, and has said why.
    Panicked,
}

impl From<Error> for Cut {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Retention {
    /// The task; `None` when ids are kept for ever, and with them all else.
    pub(super) fn new(
        config: &Config,
        folder: &DataFolder,
        stores: &Stores,
        clock: Arc<dyn Clock>,
    ) -> Result<Option<Self>, OpenError> {
        let Some(ids) = config.retention.ids else { return Ok(None) };
        let readers = Readers {
            bus: BusReader::open(folder.bus())?,
            warehouse: WarehouseReader::open(&folder.warehouse(), &config.bigquery.table)?,
            archive: ArchiveReader::open(&folder.archive_index(), &folder.archive(), &folder.archive_tmp())?,
        };
        Ok(Some(Self {
            config: config.retention.clone(),
            ids: ids.get(),
            ledger: stores.bus.id_ledger(),
            rows: stores.warehouse.retention(),
            objects: stores.archive.retention(),
            readers: Arc::new(Mutex::new(readers)),
            clock: WatchedClock::new(clock),
        }))
    }

    /// Works until the shutdown begins.
    pub(super) async fn run(mut self, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(spacing(self.ids));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut foreign_at: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                _ = ticks.tick() => {}
            }
            let started = Instant::now();
            let with_foreign = foreign_at.is_none_or(|last| started - last >= self.ids / LOOKS);
            match self.pass(with_foreign, &shutdown).await {
                Ok(()) if with_foreign => foreign_at = Some(started),
                Ok(()) => {}
                Err(Cut::Stopped) => return,
                Err(Cut::Failed(error)) => {
                    tracing::warn!(%error, "retention did not come to its end; it goes on at its next turn");
                }
                // Files that grow for a turn do less harm than a pipeline that ends.
                Err(Cut::Panicked) => {
                    tracing::error!("a read of retention panicked; retention goes on at its next turn");
                }
            }
        }
    }

    /// Everything that is due.
    async fn pass(&mut self, with_foreign: bool, shutdown: &Shutdown) -> Result<(), Cut> {
        let now = self.now().await?;
        let horizon = before(now, self.ids);
        self.ledger.note_floors(now, horizon, spacing(self.ids)).await?;
        // What the process before this one did not finish.
        self.objects.forget(self.ledger.folding().await?).await?;
        self.ledger.fold_done().await?;
        // Ids made here carry their time and lie in its order: those made after the horizon are left out unread.
        self.fold(Ids::Ledger, (None, first_id_at(horizon)), horizon, shutdown).await?;
        self.fold(Ids::Refused, (None, first_id_at(horizon)), horizon, shutdown).await?;
        if with_foreign {
            let rest = (Some(first_id_at(now)), MessageId::from_bytes([0xff; 16]));
            self.fold(Ids::Ledger, rest, horizon, shutdown).await?;
        }
        self.ledger.fold_done().await?;
        if let Some(kept) = self.config.warehouse {
            // Forgetting may have taken long: what was stored meanwhile is of now.
            let now = self.now().await?;
            self.remove_rows(now, kept.get(), shutdown).await?;
        }
        if let Some(kept) = self.config.archive {
            self.remove_objects(before(now, kept.get()), shutdown).await?;
        }
        metrics::gauge!(HORIZON_SECONDS).set(self.now().await?.since(horizon).as_secs_f64());
        Ok(())
    }

    /// The present moment. When the clock was set, the notes of both stores are moved first.
    async fn now(&mut self) -> Result<Timestamp, Cut> {
        let reading = self.clock.read();
        if let Some(from) = reading.set_from {
            tracing::warn!(%from, to = %reading.now, "the clock was set; nothing gets older for retention by it");
            self.ledger.clock_was_set(from, reading.now).await?;
            self.rows.clock_was_set(from, reading.now).await?;
        }
        self.clock.accept(reading);
        Ok(reading.now)
    }

    async fn fold(
        &self,
        source: Ids,
        (mut after, to): (Option<MessageId>, MessageId),
        horizon: Timestamp,
        shutdown: &Shutdown,
    ) -> Result<(), Cut> {
        loop {
            let started = Instant::now();
            let (finished, last) =
                self.read(move |readers| readers.finished(source, (after, to), horizon)).await?;
            let Some(last) = last else { return Ok(()) };
            after = Some(last);
            if !finished.is_empty() {
                let folded = self.ledger.fold(finished, horizon).await?;
                metrics::counter!(IDS_FOLDED).increment(folded.len() as u64);
                self.objects.forget(folded).await?;
            }
            rest(started, shutdown).await?;
        }
    }

    async fn remove_rows(&self, now: Timestamp, kept: Duration, shutdown: &Shutdown) -> Result<(), Cut> {
        let horizon = before(now, kept);
        self.rows.mark(now, horizon, spacing(kept)).await?;
        let mut after = 0;
        loop {
            let started = Instant::now();
            let (rows, last) = self.read(move |readers| readers.forgotten_rows(horizon, after)).await?;
            let Some(last) = last else { return Ok(()) };
            after = last;
            if !rows.is_empty() {
                let readers = Arc::clone(&self.readers);
                self.rows.remove(rows, move |ids| readers.lock().bus.in_ledger(ids)).await?;
            }
            rest(started, shutdown).await?;
        }
    }

    async fn remove_objects(&self, horizon: Timestamp, shutdown: &Shutdown) -> Result<(), Cut> {
        loop {
            let started = Instant::now();
            if self.objects.remove(horizon, OBJECTS).await? == 0 {
                return Ok(());
            }
            rest(started, shutdown).await?;
        }
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Readers) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Cut> {
        let readers = Arc::clone(&self.readers);
        match tokio::task::spawn_blocking(move || work(&readers.lock())).await {
            Ok(result) => Ok(result?),
            Err(error) if error.is_panic() => Err(Cut::Panicked),
            // The program is ending.
            Err(_) => Err(Cut::Stopped),
        }
    }
}

impl Readers {
    /// The ids of the next page that are finished everywhere, and the last id of the page.
    fn finished(
        &self,
        source: Ids,
        range: (Option<MessageId>, MessageId),
        horizon: Timestamp,
    ) -> Result<(Vec<Finished>, Option<MessageId>), Error> {
        let CandidatePage { candidates, last } = match source {
            Ids::Ledger => self.bus.candidates(RAW, range, horizon, STEP)?,
            Ids::Refused => self.bus.skipped_candidates(ingestion_service::STAGE, range, horizon, STEP)?,
        };
        let ids: Vec<_> = candidates.iter().map(|candidate| candidate.id).collect();
        let (rows, lines) = (self.warehouse.has(&ids)?, self.archive.has(&ids)?);
        let mut finished = Vec::new();
        for ((candidate, row), line) in candidates.into_iter().zip(rows).zip(lines) {
            if membership(&candidate, row, line).is_finished() {
                let stored = [(row, WAREHOUSE), (line, ARCHIVE)];
                let stored = stored.into_iter().filter(|(there, _)| *there).map(|(_, sink)| sink).collect();
                finished.push(Finished { candidate, stored });
            }
        }
        Ok((finished, last))
    }

    /// The rows of the next page whose ids are forgotten, and the page's last number.
    fn forgotten_rows(&self, horizon: Timestamp, after: i64) -> Result<(Vec<OldRow>, Option<i64>), Error> {
        let rows = self.warehouse.rows_before(horizon, after, STEP)?;
        let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
        let known = self.bus.in_ledger(&ids)?;
        let last = rows.last().map(|row| row.number);
        Ok((rows.into_iter().zip(known).filter(|(_, known)| !known).map(|(row, _)| row).collect(), last))
    }
}

/// The sets of the books that a candidate is in. It is settled and not parked, so it is in no set of what is pending.
fn membership(candidate: &Candidate, row: bool, line: bool) -> Membership {
    let mut sets = Membership::default();
    for topic in &candidate.topics {
        match topic.as_str() {
            RAW => sets.insert(Set::Raw),
            ENRICHED => sets.insert(Set::Enriched),
            _ => {}
        }
    }
    for stage in &candidate.skipped_at {
        match stage.as_str() {
            ingestion_service::STAGE => sets.insert(Set::EndedIngestion),
            enrichment_service::STAGE => sets.insert(Set::EndedEnrichment),
            bigquery_service::STAGE => sets.insert(Set::EndedWarehouse),
            icestore_service::STAGE => sets.insert(Set::EndedArchive),
            _ => {}
        }
    }
    if row {
        sets.insert(Set::Warehouse);
    }
    if line {
        sets.insert(Set::Archive);
    }
    sets
}

fn spacing(kept: Duration) -> Duration {
    (kept / LOOKS).clamp(SPACING.0, SPACING.1)
}

fn before(now: Timestamp, kept: Duration) -> Timestamp {
    Timestamp::from_micros(
        now.as_micros().saturating_sub(i64::try_from(kept.as_micros()).unwrap_or(i64::MAX)),
    )
}

/// The smallest id that can have been made at `time`: a UUIDv7 begins with its milliseconds.
fn first_id_at(time: Timestamp) -> MessageId {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&time.as_millis().max(0).to_be_bytes()[2..]);
    MessageId::from_bytes(bytes)
}

/// Leaves the stores to the messages for as long as the step took.
async fn rest(started: Instant, shutdown: &Shutdown) -> Result<(), Cut> {
    tokio::select! {
        biased;
        () = shutdown.begun() => Err(Cut::Stopped),
        () = tokio::time::sleep(started.elapsed()) => Ok(()),
    }
}

#[cfg(test)]
mod tests;

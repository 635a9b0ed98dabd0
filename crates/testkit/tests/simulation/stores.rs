//! Everything that outlives the process: bus, table, archive, registry, shared cache, parking lot, endings.

use crate::world::{Kind, Op, World, simulated_panic};
use bqstore::{Columns, Row, RowInserter, RowOutcome};
use cache::{FetchError, FetchResult, Fetched, Fetcher, Store};
use enrichment::{Parked, ParkingLot, Placed};
use futures_util::future::{BoxFuture, FutureExt, ready};
use icestore::{ArchiveObject, ObjectStore, PutOutcome};
use messagepipeline::{Bytes, DeadLetter, Enrichment, MessageId, Skipped, StageError, Timestamp};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use testkit::cache_suite::device;
use testkit::memory::MemoryBus;
use testkit::sink_suite::MemoryTable;
use tokio::sync::watch;
use tokio::time::Instant;

/// The device over whose look-up the registry panics.
pub(crate) const POISON_DEVICE: &str = "poison";

/// What the shared layer of look-ups keeps, with when each entry ends.
type Kept = BTreeMap<Box<str>, (Fetched<Enrichment>, Instant)>;

/// Cloning shares them.
#[derive(Clone)]
pub(crate) struct Stores {
    pub(crate) bus: MemoryBus,
    pub(crate) table: Arc<MemoryTable>,
    pub(crate) archive: Arc<Mutex<ArchiveState>>,
    pub(crate) registry: Arc<RegistryState>,
    pub(crate) layer: Arc<Mutex<Kept>>,
    pub(crate) lot: Arc<Mutex<Vec<Parked>>>,
    pub(crate) lot_room: usize,
    pub(crate) endings: Arc<Endings>,
}

impl Stores {
    pub(crate) fn new(bus: MemoryBus, lot_room: usize, unknown_may_end: bool) -> Self {
        Self {
            bus,
            table: Arc::new(MemoryTable::new(&Columns::default())),
            archive: Arc::default(),
            registry: Arc::new(RegistryState { devices: Mutex::default(), changes: watch::Sender::new(0) }),
            layer: Arc::default(),
            lot: Arc::default(),
            lot_room,
            endings: Arc::new(Endings { unknown_may_end, ..Endings::default() }),
        }
    }

    /// Whether what `stage` had to do for `id` is durable.
    pub(crate) fn has_ended_at(&self, stage: &str, id: MessageId) -> bool {
        let done = match stage {
            "ingestion" => self.bus.holds("raw", id) || self.endings.skips.lock().contains_key(&id),
            "enrichment" => {
                self.bus.holds("enriched", id) || self.lot.lock().iter().any(|parked| parked.message.id == id)
            }
            "bigquery" => self.table.holds(id),
            _ => self.archive.lock().listed.contains_key(&id),
        };
        done || self.endings.has_letter(stage, id)
    }
}

/// Dead letters and skips.
#[derive(Default)]
pub(crate) struct Endings {
    letters: Mutex<BTreeMap<MessageId, BTreeMap<String, String>>>,
    pub(crate) skips: Mutex<BTreeMap<MessageId, Skipped>>,
    /// Whether a good message may end because its device is unknown.
    unknown_may_end: bool,
}

impl Endings {
    pub(crate) fn has_letter(&self, stage: &str, id: MessageId) -> bool {
        self.letters.lock().get(&id).is_some_and(|letters| letters.contains_key(stage))
    }

    /// Stage and reason of each letter of `id`.
    pub(crate) fn letters(&self, id: MessageId) -> BTreeMap<String, String> {
        self.letters.lock().get(&id).cloned().unwrap_or_default()
    }

    pub(crate) fn letter(&self, world: &World, letter: DeadLetter) {
        let (id, reason) = (letter.message.id, letter.reason.to_string());
        let is_rule = self.unknown_may_end && reason == "unknown-device";
        if world.kind(id) == Kind::Good && !is_rule {
            world.violation(format!(
                "{}: {id} is good and went to the dead letters: {reason} after {} attempts: {}",
                letter.stage, letter.attempts, letter.detail
            ));
        }
        self.letters.lock().entry(id).or_default().entry(letter.stage.into_owned()).or_insert(reason);
    }

    /// Whether a message of `kind` has no letter of `stage` yet.
    pub(crate) fn misses(&self, world: &World, kind: Kind, stage: &str) -> bool {
        world.kinds().into_iter().any(|(id, other)| other == kind && !self.has_letter(stage, id))
    }

    pub(crate) fn skip(&self, skip: Skipped) {
        self.skips.lock().entry(skip.id).or_insert(skip);
    }
}

/// The table under faults.
pub(crate) struct FaultyTable {
    pub(crate) world: World,
    pub(crate) life: u32,
    pub(crate) table: Arc<MemoryTable>,
}

impl FaultyTable {
    fn store(&self, row: Row) -> Result<RowOutcome, StageError> {
        match self.world.kind(row.id) {
            Kind::BadRow => return Err(StageError::permanent("bad-row", "the table does not take it")),
            Kind::FlakyRow => {
                return Err(StageError::transient("flaky-row", "the table does not take it now"));
            }
            Kind::PoisonRow => simulated_panic(),
            _ => {}
        }
        match self.table.store(row) {
            RowOutcome::Refused(error) => Err(error),
            outcome => Ok(outcome),
        }
    }
}

impl RowInserter for FaultyTable {
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>> {
        ready(Ok(())).boxed()
    }

    fn insert(&self, rows: Vec<Row>) -> BoxFuture<'_, Result<Vec<RowOutcome>, StageError>> {
        async move {
            let results = self.world.call_each(self.life, Op::Insert, rows, |row| self.store(row)).await?;
            Ok(results.into_iter().map(|result| result.unwrap_or_else(RowOutcome::Refused)).collect())
        }
        .boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StageError>> {
        ready(Ok(())).boxed()
    }
}

/// The archive as it lies on the disk.
#[derive(Default)]
pub(crate) struct ArchiveState {
    temporary: BTreeMap<u64, ArchiveObject>,
    next: u64,
    /// Every id in a listed object.
    pub(crate) listed: BTreeMap<MessageId, u64>,
    /// Listed, not renamed.
    pending: BTreeSet<u64>,
    /// What a reader sees.
    pub(crate) objects: BTreeMap<String, Bytes>,
}

impl ArchiveState {
    fn list(&mut self, number: u64) -> PutOutcome {
        let Some(object) = self.temporary.get(&number) else { return PutOutcome::Overlaps };
        if object.lines.iter().any(|line| self.listed.contains_key(&line.id)) {
            self.temporary.remove(&number);
            return PutOutcome::Overlaps;
        }
        self.listed.extend(object.lines.iter().map(|line| (line.id, line.fingerprint)));
        self.pending.insert(number);
        PutOutcome::Stored
    }

    /// What the start of a process does: listed objects are finished, other temporary ones removed.
    pub(crate) fn open(&mut self) {
        self.rename();
        self.temporary.clear();
    }

    /// Gives listed objects their names.
    fn rename(&mut self) {
        for number in std::mem::take(&mut self.pending) {
            if let Some(object) = self.temporary.remove(&number) {
                self.objects.insert(object.name.to_string(), object.bytes);
            }
        }
    }
}

/// The archive under faults: written, listed, renamed.
pub(crate) struct FaultyArchive {
    pub(crate) world: World,
    pub(crate) life: u32,
    pub(crate) archive: Arc<Mutex<ArchiveState>>,
}

impl FaultyArchive {
    async fn store(&self, object: ArchiveObject) -> Result<PutOutcome, StageError> {
        let (world, life, lines) = (&self.world, self.life, object.lines.len());
        for line in &object.lines {
            match world.kind(line.id) {
                Kind::BadLine => return Err(StageError::permanent("bad-line", "no object with it is taken")),
                Kind::PoisonLine => simulated_panic(),
                _ => {}
            }
        }
        let write = || {
            let mut archive = self.archive.lock();
            archive.next += 1;
            let number = archive.next;
            archive.temporary.insert(number, object);
            Ok(number)
        };
        let number = world.call(life, Op::WriteObject, lines, write).await?;
        let listed = world.call(life, Op::ListObject, lines, || Ok(self.archive.lock().list(number))).await?;
        if listed == PutOutcome::Stored {
            self.rename().await;
        }
        Ok(listed)
    }

    /// A rename that fails is made up for later.
    async fn rename(&self) {
        let rename = || {
            self.archive.lock().rename();
            Ok(())
        };
        let _ = self.world.call(self.life, Op::RenameObject, 1, rename).await;
    }
}

impl ObjectStore for FaultyArchive {
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>> {
        self.archive.lock().open();
        ready(Ok(())).boxed()
    }

    fn known(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Option<u64>>, StageError>> {
        let count = ids.len();
        let known = move || {
            let archive = self.archive.lock();
            Ok(ids.iter().map(|id| archive.listed.get(id).copied()).collect())
        };
        self.world.call(self.life, Op::Known, count, known).boxed()
    }

    fn put(&self, object: ArchiveObject) -> BoxFuture<'_, Result<PutOutcome, StageError>> {
        self.store(object).boxed()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StageError>> {
        ready(Ok(())).boxed()
    }
}

/// The registry; it tells of every change.
pub(crate) struct RegistryState {
    devices: Mutex<BTreeMap<String, Enrichment>>,
    pub(crate) changes: watch::Sender<u64>,
}

impl RegistryState {
    pub(crate) fn add(&self, name: &str) {
        self.devices.lock().insert(name.to_owned(), device(name));
        self.changes.send_modify(|version| *version += 1);
    }
}

/// The registry under faults.
pub(crate) struct FaultyRegistry {
    pub(crate) world: World,
    pub(crate) life: u32,
    pub(crate) registry: Arc<RegistryState>,
}

impl Fetcher<Enrichment> for FaultyRegistry {
    fn fetch<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Vec<FetchResult<Enrichment>>> {
        async move {
            if keys.contains(&POISON_DEVICE) {
                simulated_panic();
            }
            let mut found = Vec::with_capacity(keys.len());
            let look = |key: &str| {
                found.push(self.registry.devices.lock().get(key).cloned());
                Ok(())
            };
            let results = self.world.call_each(self.life, Op::Registry, keys.to_vec(), look).await;
            match results {
                Err(error) => {
                    let error = FetchError::from(error);
                    keys.iter().map(|_| Err(error.clone())).collect()
                }
                // Answers that were made to fail may have looked or not; what is right is looked up again.
                Ok(results) => {
                    let answer = |(key, result): (&&str, Result<(), StageError>)| {
                        result?;
                        Ok(Fetched::new(self.registry.devices.lock().get(*key).cloned()))
                    };
                    keys.iter().zip(results).map(answer).collect()
                }
            }
        }
        .boxed()
    }
}

/// The cache that several processes share, with ages of its own, under faults.
pub(crate) struct FaultyLayer {
    pub(crate) world: World,
    pub(crate) life: u32,
    pub(crate) layer: Arc<Mutex<Kept>>,
}

impl Store<Enrichment> for FaultyLayer {
    fn name(&self) -> &'static str {
        "shared"
    }

    fn get<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Vec<Option<Fetched<Enrichment>>>, FetchError>> {
        let look = |key: &&str| {
            let layer = self.layer.lock();
            let (fetched, until) = layer.get(*key)?;
            let fresh_for = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            Some(Fetched { value: fetched.value.clone(), fresh_for })
        };
        let get = move || Ok(keys.iter().map(look).collect());
        async move { Ok(self.world.call(self.life, Op::LayerGet, keys.len(), get).await?) }.boxed()
    }

    fn put(&self, entries: Vec<(Box<str>, Fetched<Enrichment>)>) {
        if self.world.life() != self.life {
            return;
        }
        let mut layer = self.layer.lock();
        for (key, fetched) in entries {
            let age = Duration::from_secs(if fetched.value.is_some() { 300 } else { 10 });
            let until = Instant::now() + age.min(fetched.fresh_for);
            layer.insert(key, (fetched, until));
        }
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        let remove = || {
            self.layer.lock().remove(key);
            Ok(())
        };
        async move { Ok(self.world.call(self.life, Op::LayerRemove, 1, remove).await?) }.boxed()
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        let clear = || {
            self.layer.lock().clear();
            Ok(())
        };
        async move { Ok(self.world.call(self.life, Op::LayerRemove, 1, clear).await?) }.boxed()
    }
}

/// The parking lot under faults.
pub(crate) struct FaultyLot {
    pub(crate) world: World,
    pub(crate) life: u32,
    pub(crate) lot: Arc<Mutex<Vec<Parked>>>,
    pub(crate) room: usize,
}

impl FaultyLot {
    fn place(&self, message: Parked) -> Placed {
        let mut lot = self.lot.lock();
        if lot.iter().any(|known| known.message.id == message.message.id) {
            return Placed::Held;
        }
        if lot.len() >= self.room {
            return Placed::Full;
        }
        lot.push(message);
        Placed::Held
    }

    fn select(
        &self,
        limit: usize,
        wanted: impl Fn(&Parked) -> bool + Send + 'static,
    ) -> BoxFuture<'_, Result<Vec<Parked>, StageError>> {
        let select =
            move || Ok(self.lot.lock().iter().filter(|parked| wanted(parked)).take(limit).cloned().collect());
        self.world.call(self.life, Op::LotRead, limit, select).boxed()
    }
}

impl ParkingLot for FaultyLot {
    fn park(&self, messages: Vec<Parked>) -> BoxFuture<'_, Result<Vec<Placed>, StageError>> {
        let count = messages.len();
        let park = move || Ok(messages.into_iter().map(|message| self.place(message)).collect());
        self.world.call(self.life, Op::Park, count, park).boxed()
    }

    fn keys<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Box<str>>, StageError>> {
        let keys = move || {
            let keys: BTreeSet<_> = self.lot.lock().iter().map(|parked| parked.key.clone()).collect();
            Ok(keys.into_iter().filter(|key| after.is_none_or(|after| **key > *after)).take(limit).collect())
        };
        self.world.call(self.life, Op::LotRead, limit, keys).boxed()
    }

    fn of_keys(&self, keys: Vec<Box<str>>, limit: usize) -> BoxFuture<'_, Result<Vec<Parked>, StageError>> {
        self.select(limit, move |parked| keys.contains(&parked.key))
    }

    fn parked_before(
        &self,
        cutoff: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Parked>, StageError>> {
        self.select(limit, move |parked| parked.since < cutoff)
    }

    fn remove(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<(), StageError>> {
        let count = ids.len();
        let remove = move || {
            self.lot.lock().retain(|parked| !ids.contains(&parked.message.id));
            Ok(())
        };
        self.world.call(self.life, Op::LotRemove, count, remove).boxed()
    }

    fn count(&self) -> BoxFuture<'_, Result<u64, StageError>> {
        self.world.call(self.life, Op::LotRead, 0, || Ok(self.lot.lock().len() as u64)).boxed()
    }
}

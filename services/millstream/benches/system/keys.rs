//! Memory of the archive's groups when each of 100,000 locations has one open, and how old the oldest becomes.
//!
//! The service is the one that `icestore` runs, with its processor; only the store behind it keeps nothing. It runs in this
//! process, so the figure is best taken alone: what the allocator kept of earlier scenarios is used again and not counted.

use crate::kernel::{own_cpu, peak_of, reset_peak};
use crate::{figure, scaled};
use futures_util::future::BoxFuture;
use icestore::{ArchiveObject, ObjectStore, PutOutcome};
use icestore_service::{ArchiveBatchConfig, ArchiveConfig, Parts, Plan};
use messagepipeline::{
    BoxConsumer, Bytes, Chunk, Consumer, Delivery, FlushRequest, Health, IdGenerator, Message, MessageId,
    Settle, Settlement, Shutdown, StageError, SystemClock, Timestamp, Token,
};
use service_kit::config::{ByteSize, Duration as Setting};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use testkit::memory::MemoryDeadLetters;

const KEYS: usize = 100_000;
/// Each location is heard of once in this time, which is also the age limit: so all of them are open at once.
const AGE: Duration = Duration::from_secs(10);
const TURN: Duration = Duration::from_millis(10);
const PAYLOAD: usize = 250;
const BUDGET: u64 = 64;

pub(crate) fn run() {
    let keys = scaled(KEYS);
    // Scenarios before this one may have needed more.
    reset_peak();
    let before = peak_of("self");
    let counts = Arc::new(Counts::default());
    let archive = ArchiveConfig {
        location: vec!["attribute:location_id".to_owned()],
        batch: ArchiveBatchConfig { age: Setting::from_secs(AGE.as_secs()), ..ArchiveBatchConfig::default() },
        memory: ByteSize::from_mib(BUDGET),
        ..ArchiveConfig::default()
    };
    let parts = Parts {
        consumer: BoxConsumer::new(Fleet {
            keys,
            sent: 0,
            ids: IdGenerator::default(),
            turns: None,
            counts: Arc::clone(&counts),
        }),
        store: Arc::new(Nowhere(Arc::clone(&counts))),
        dead_letters: Arc::new(MemoryDeadLetters::new()),
        clock: Arc::new(SystemClock),
        health: Health::new().stage("icestore"),
        flush: FlushRequest::new(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let cpu = own_cpu();
    let service = Plan::new(&archive).unwrap().build(parts);
    let summary = runtime.block_on(service.run(Shutdown::new())).unwrap();
    figure("messages archived one to an object", summary.done as f64, "messages");
    figure("CPU of that", (own_cpu() - cpu) * 1e5 / summary.done as f64, "CPU-s per 100,000");
    figure("open keys, most at once", counts.most_open.load(Ordering::Relaxed) as f64, "keys");
    figure("peak memory with that many open keys, more than before", peak_of("self") - before, "MiB");
    figure("oldest message when its object was made", counts.oldest.load(Ordering::Relaxed) as f64, "ms");
    figure("age limit", AGE.as_millis() as f64, "ms");
}

#[derive(Default)]
struct Counts {
    open: AtomicUsize,
    most_open: AtomicUsize,
    /// Milliseconds.
    oldest: AtomicU64,
}

impl Settle for Counts {
    fn settle(&self, settlements: &[Settlement]) {
        self.open.fetch_sub(settlements.len(), Ordering::Relaxed);
    }
}

/// Every location in turn, three times.
struct Fleet {
    keys: usize,
    sent: usize,
    ids: IdGenerator,
    turns: Option<tokio::time::Interval>,
    counts: Arc<Counts>,
}

impl Consumer for Fleet {
    async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        if self.sent >= 3 * self.keys {
            return Ok(None);
        }
        self.turns.get_or_insert_with(|| tokio::time::interval(TURN)).tick().await;
        let count = self.keys / (AGE.as_millis() / TURN.as_millis()) as usize;
        let deliveries = (self.sent..self.sent + count.max(1)).map(|n| {
            let payload = Bytes::from(vec![b'x'; PAYLOAD]);
            let mut message = Message::new(self.ids.next_id(), payload, Timestamp::from_millis(now() as i64));
            message.attributes =
                [("location_id", format!("location-{}", n % self.keys).as_str())].into_iter().collect();
            Delivery { message, token: Token(n as u64) }
        });
        let deliveries: Vec<_> = deliveries.collect();
        self.sent += deliveries.len();
        let open = self.counts.open.fetch_add(deliveries.len(), Ordering::Relaxed) + deliveries.len();
        self.counts.most_open.fetch_max(open, Ordering::Relaxed);
        Ok(Some(Chunk::new(self.counts.clone(), deliveries)))
    }
}

/// Stores nothing and notes how long the messages have waited.
struct Nowhere(Arc<Counts>);

impl ObjectStore for Nowhere {
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }

    fn known(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Option<u64>>, StageError>> {
        Box::pin(async move { Ok(vec![None; ids.len()]) })
    }

    fn put(&self, object: ArchiveObject) -> BoxFuture<'_, Result<PutOutcome, StageError>> {
        for line in &object.lines {
            self.0.oldest.fetch_max(now().saturating_sub(made(line.id)), Ordering::Relaxed);
        }
        Box::pin(async { Ok(PutOutcome::Stored) })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Milliseconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The same of the moment at which a generated id was made: its first 48 bits (RFC 9562, section 5.7).
fn made(id: MessageId) -> u64 {
    id.as_bytes()[..6].iter().fold(0, |time, byte| time << 8 | u64::from(*byte))
}

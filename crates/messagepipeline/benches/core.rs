//! Messages per CPU-second that the two services move, with nothing around them:
//! `cargo bench -p messagepipeline [-- MESSAGES] [PART-OF-A-NAME]`.
//!
//! The source builds each message (payloads are slices of one buffer), keeps an ordered window of acknowledgements
//! behind a lock and bounds what is outstanding, as a real consumer does. Every settlement is counted. CPU time is the
//! process's, so that helper threads count too.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program that prints a table")]

use messagepipeline::{
    Attributes, BatchLimits, BatchOutcome, BatchProcessor, BatchingService, Bytes, Chunk, Consumer, Delivery,
    IdGenerator, Item, Message, MessageId, Outcome, ServiceOptions, Settle, Settlement, Shutdown, StageError,
    StreamProcessor, StreamingService, Summary, Timestamp, Token, Verdict, transform_fn,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

const OUTSTANDING: usize = 32_768;
const PAYLOAD: usize = 1_000;
const CHUNK: usize = 256;

/// What is outstanding: a ring of flags between the oldest unsettled message and the newest.
struct Window {
    first: u64,
    next: u64,
    settled: Vec<bool>,
}

impl Default for Window {
    fn default() -> Self {
        Self { first: 0, next: 0, settled: vec![false; OUTSTANDING] }
    }
}

impl Window {
    /// The first of `count` new places, if there is room.
    fn take(&mut self, count: usize) -> Option<u64> {
        if !self.has_room(count) {
            return None;
        }
        let first = self.next;
        self.next += count as u64;
        Some(first)
    }

    fn has_room(&self, count: usize) -> bool {
        (self.next - self.first) as usize + count <= OUTSTANDING
    }

    fn settle(&mut self, token: Token) {
        assert!((self.first..self.next).contains(&token.0), "settled twice");
        let place = token.0 as usize % OUTSTANDING;
        assert!(!std::mem::replace(&mut self.settled[place], true), "settled twice");
    }

    /// Lets go of all that is settled at the front, in order.
    fn advance(&mut self) {
        while self.first < self.next && std::mem::take(&mut self.settled[self.first as usize % OUTSTANDING]) {
            self.first += 1;
        }
    }
}

#[derive(Default)]
struct Shared {
    window: Mutex<Window>,
    room: Notify,
}

impl Settle for Shared {
    fn settle(&self, settlements: &[Settlement]) {
        let mut window = self.window.lock();
        let was_full = !window.has_room(CHUNK);
        for settlement in settlements {
            window.settle(settlement.token);
        }
        window.advance();
        let has_room = window.has_room(CHUNK);
        drop(window);
        if was_full && has_room {
            self.room.notify_one();
        }
    }
}

struct Source {
    left: usize,
    buffers: Vec<Bytes>,
    at: usize,
    id: MessageId,
    attributes: bool,
    shared: Arc<Shared>,
}

impl Source {
    fn new(count: usize, attributes: bool) -> Self {
        let id = IdGenerator::default().next_id();
        // A buffer per 64 messages, as a socket fills them; two threads then rarely count the same references.
        let buffer = |_| Bytes::from(vec![b'x'; 64 * PAYLOAD]);
        let buffers = (0..64).map(buffer).collect();
        Self { left: count, buffers, at: 0, id, attributes, shared: Arc::default() }
    }

    #[inline(always)]
    fn message(&mut self) -> Message {
        self.at = (self.at + 1) % (64 * 64);
        let start = self.at % 64 * PAYLOAD;
        let payload = self.buffers[self.at / 64].slice(start..start + PAYLOAD);
        let mut message = Message::new(self.id, payload, Timestamp::from_millis(1));
        if self.attributes {
            message.attributes = five_attributes();
        }
        message
    }
}

fn five_attributes() -> Attributes {
    Attributes::from_pairs(&[
        ("mqtt_topic", "devices/0102030405060708/up"),
        ("device_id", "0102030405060708"),
        ("route_name", "default"),
        ("mqtt_qos", "1"),
        ("mqtt_client_id", "gateway-7"),
    ])
}

impl Consumer for Source {
    async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        if self.left == 0 {
            return Ok(None);
        }
        let count = CHUNK.min(self.left);
        let shared = Arc::clone(&self.shared);
        let first = loop {
            let first = shared.window.lock().take(count);
            if let Some(first) = first {
                break first;
            }
            shared.room.notified().await;
        };
        self.left -= count;
        let deliveries = (0..count as u64)
            .map(|n| Delivery { message: self.message(), token: Token(first + n) })
            .collect();
        Ok(Some(Chunk::new(shared, deliveries)))
    }
}

struct PassThrough;

impl StreamProcessor<usize> for PassThrough {
    async fn process(&self, message: &Message, value: usize) -> Result<(), StageError> {
        std::hint::black_box((message, value));
        Ok(())
    }
}

impl BatchProcessor<usize> for PassThrough {
    async fn process(&self, batch: &[Item<usize>]) -> BatchOutcome {
        std::hint::black_box(batch);
        BatchOutcome::Done
    }
}

/// The same, but every call waits once.
struct Yielding;

impl StreamProcessor<usize> for Yielding {
    async fn process(&self, message: &Message, value: usize) -> Result<(), StageError> {
        tokio::task::yield_now().await;
        std::hint::black_box((message, value));
        Ok(())
    }
}

fn length(message: &Message) -> Outcome<usize> {
    Outcome::Emit(message.payload.len())
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

fn measure<F>(name: &str, threads: usize, count: usize, work: impl Fn() -> F)
where
    F: Future<Output = Summary> + Send + 'static,
{
    let wanted =
        std::env::args().skip(1).find(|word| !word.starts_with('-') && word.parse::<usize>().is_err());
    if wanted.is_some_and(|part| !format!("{name} {threads}").contains(&part)) {
        return;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(threads).enable_time().build().unwrap();
    let mut rates: Vec<f64> = (0..3)
        .map(|_| {
            let begun = cpu_seconds();
            let summary = runtime.block_on(async { tokio::spawn(work()).await.unwrap() });
            assert_eq!(summary.done, count as u64, "{summary}");
            count as f64 / 1e6 / (cpu_seconds() - begun)
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    println!("{name:<44} {threads} thread(s)  {:6.1} M messages per CPU-second", rates[1]);
}

/// What the source costs by itself: everything but the service.
async fn drain(mut source: Source) -> Summary {
    let mut done = 0;
    while let Some(chunk) = source.next().await.unwrap() {
        let (settle, deliveries) = chunk.into_parts();
        let acks = deliveries.iter().map(|d| Settlement { token: d.token, verdict: Verdict::Ack });
        settle.settle(&acks.collect::<Vec<_>>());
        done += deliveries.len() as u64;
    }
    Summary { done, ..Summary::default() }
}

fn options(workers: usize) -> ServiceOptions {
    ServiceOptions { workers, ..ServiceOptions::new("bench") }
}

fn main() {
    let count = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(20_000_000);
    for threads in [1, 2] {
        measure("the source alone", threads, count, || drain(Source::new(count, false)));
        measure("the source alone, 5 attributes", threads, count, || drain(Source::new(count, true)));
        for (attributes, workers) in [(false, 1), (false, 5), (false, 16), (true, 5)] {
            let name =
                format!("streaming, {workers} workers{}", if attributes { ", 5 attributes" } else { "" });
            measure(&name, threads, count, || async move {
                let source = Source::new(count, attributes);
                let service =
                    StreamingService::new(options(workers), source, transform_fn(length), PassThrough);
                service.run(Shutdown::new()).await.unwrap()
            });
        }
        measure("streaming, 16 workers, each call waits", threads, count / 4, || async move {
            let source = Source::new(count / 4, false);
            let service = StreamingService::new(options(16), source, transform_fn(length), Yielding);
            service.run(Shutdown::new()).await.unwrap()
        });
        for size in [100, 1_000] {
            measure(&format!("batching, {size} a batch"), threads, count, || async move {
                let limits =
                    BatchLimits { count: size, age: Duration::from_secs(1), ..BatchLimits::default() };
                let source = Source::new(count, false);
                let service =
                    BatchingService::new(options(5), limits, source, transform_fn(length), PassThrough);
                service.run(Shutdown::new()).await.unwrap()
            });
        }
    }
}

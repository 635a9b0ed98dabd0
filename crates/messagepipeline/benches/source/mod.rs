//! A source that costs as little as a real one can: payloads are slices of buffers, acknowledgements go into an
//! ordered window behind a lock, and what is outstanding is bounded.

use messagepipeline::{
    Attributes, BatchOutcome, BatchProcessor, Bytes, Chunk, Consumer, Delivery, Enrichment, IdGenerator,
    Item, Message, MessageId, Settle, Settlement, StageError, StreamProcessor, Summary, Timestamp, Token,
    Verdict,
};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;

const PAYLOAD: usize = 1_000;
const CHUNK: usize = 256;
/// Chunks outstanding, at most: 32,768 messages.
const CHUNKS: usize = 128;

/// Does nothing with a message.
pub(crate) struct PassThrough;

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

/// The outstanding chunks: how many of each one's messages have no verdict yet.
struct Window {
    first: u64,
    next: u64,
    unsettled: [u32; CHUNKS],
    acks: u64,
    /// Sum of the tokens, modulo 2^64: with their count it tells a verdict given twice from each given once.
    sum: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { first: 0, next: 0, unsettled: [0; CHUNKS], acks: 0, sum: 0 }
    }
}

impl Window {
    fn has_room(&self) -> bool {
        self.next - self.first < CHUNKS as u64
    }

    /// The number of the next chunk, of `count` messages, if there is room.
    fn take(&mut self, count: usize) -> Option<u64> {
        if !self.has_room() {
            return None;
        }
        let number = self.next;
        self.unsettled[number as usize % CHUNKS] = count as u32;
        self.next += 1;
        Some(number)
    }

    #[inline]
    fn settle(&mut self, settlement: Settlement) {
        self.unsettled[settlement.token.0 as usize / CHUNK % CHUNKS] -= 1;
        self.acks += u64::from(settlement.verdict == Verdict::Ack);
        self.sum = self.sum.wrapping_add(settlement.token.0);
    }

    /// Lets go of all chunks that are settled at the front, in order.
    fn advance(&mut self) {
        while self.first < self.next && self.unsettled[self.first as usize % CHUNKS] == 0 {
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
        let was_full = !window.has_room();
        for settlement in settlements {
            window.settle(*settlement);
        }
        window.advance();
        let has_room = window.has_room();
        drop(window);
        if was_full && has_room {
            self.room.notify_one();
        }
    }
}

/// What became of a source's messages; outlives the source.
pub(crate) struct Books(Arc<Shared>);

impl Books {
    /// Panics unless each of `count` messages was acknowledged exactly once.
    pub(crate) fn check(&self, count: usize) {
        let window = self.0.window.lock();
        let count = count as u64;
        assert_eq!((window.acks, window.first), (count, window.next), "messages without a verdict");
        let sum = u128::from(count) * u128::from(count.saturating_sub(1)) / 2;
        assert_eq!(u128::from(window.sum), sum & u128::from(u64::MAX), "a message was settled twice");
    }
}

/// A consumer that hands out `left` messages.
pub(crate) struct Source {
    left: usize,
    /// Handed out in turn.
    payloads: Vec<Bytes>,
    at: usize,
    id: MessageId,
    attributes: bool,
    shared: Arc<Shared>,
}

impl Source {
    pub(crate) fn new(count: usize, attributes: bool) -> Self {
        // A buffer per 64 messages, as a socket fills them; two threads then rarely count the same references.
        let buffers = (0..64).map(|_| Bytes::from(vec![b'x'; 64 * PAYLOAD]));
        let slices = |buffer: Bytes| (0..64).map(move |n| buffer.slice(n * PAYLOAD..(n + 1) * PAYLOAD));
        Self { attributes, ..Self::of_payloads(count, buffers.flat_map(slices).collect()) }
    }

    pub(crate) fn of_payloads(count: usize, payloads: Vec<Bytes>) -> Self {
        let id = IdGenerator::default().next_id();
        Self { left: count, payloads, at: 0, id, attributes: false, shared: Arc::default() }
    }

    pub(crate) fn books(&self) -> Books {
        Books(Arc::clone(&self.shared))
    }

    fn deliveries(&mut self, first: u64, count: usize) -> Vec<Delivery> {
        if self.payloads.len() - self.at < count {
            self.at = 0;
        }
        let payloads = &self.payloads[self.at..][..count];
        self.at += count;
        let (id, publish_time) = (self.id, Timestamp::from_millis(1));
        let has_attributes = self.attributes;
        let delivery = |(payload, token): (&Bytes, u64)| Delivery {
            message: Message {
                id,
                payload: payload.clone(),
                attributes: if has_attributes { five_attributes() } else { Attributes::new() },
                publish_time,
                enrichment: Enrichment::none(),
                attempt: 1,
            },
            token: Token(token),
        };
        let mut deliveries = Vec::with_capacity(count);
        deliveries.extend(payloads.iter().zip(first..).map(delivery));
        deliveries
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
        let number = loop {
            let number = shared.window.lock().take(count);
            if let Some(number) = number {
                break number;
            }
            shared.room.notified().await;
        };
        self.left -= count;
        let deliveries = self.deliveries(number * CHUNK as u64, count);
        Ok(Some(Chunk::new(shared, deliveries)))
    }
}

/// What the source costs by itself: everything but the service.
pub(crate) async fn drain(mut source: Source) -> Summary {
    let mut done = 0;
    while let Some(chunk) = source.next().await.unwrap() {
        let (settle, deliveries) = chunk.into_parts();
        let acks = deliveries.iter().map(|d| Settlement { token: d.token, verdict: Verdict::Ack });
        settle.settle(&acks.collect::<Vec<_>>());
        done += deliveries.len() as u64;
    }
    Summary { done, ..Summary::default() }
}

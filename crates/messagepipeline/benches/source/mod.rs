//! A source that costs as little as a real one can: payloads are slices of buffers, acknowledgements go into an
//! ordered window behind a lock, and what is outstanding is bounded.

use messagepipeline::{
    Attributes, Bytes, Chunk, Consumer, Delivery, IdGenerator, Message, MessageId, Settle, Settlement,
    StageError, Summary, Timestamp, Token, Verdict,
};
use parking_lot::Mutex;
use std::sync::Arc;
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

    #[inline(always)]
    fn message(&mut self) -> Message {
        self.at = if self.at + 1 < self.payloads.len() { self.at + 1 } else { 0 };
        let payload = self.payloads[self.at].clone();
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

//! What a feed has done so far, readable while it runs.

use super::source::Numbering;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// How many problems are kept one by one; the rest is only counted.
pub const KEPT_PROBLEMS: usize = 20;

/// A line that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Its running number.
    pub number: u64,
    /// File and line, as in `day1.ndjson.gz:17`.
    pub place: String,
    /// Why.
    pub reason: String,
}

/// Counters at one moment. Messages, unless said otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Handed to a connection for the first time.
    pub sent: u64,
    /// Payload bytes of those.
    pub bytes: u64,
    /// Acknowledged by the broker with success.
    pub acked: u64,
    /// Sent again after a broken connection.
    pub resent: u64,
    /// Refused by the broker, or larger than it takes.
    pub refused: u64,
    /// Lines without a usable topic, not sent.
    pub skipped: u64,
    /// Connections that stand.
    pub connected: u64,
    /// Connections that have stood at least once.
    pub connections: u64,
    /// Connections that broke.
    pub reconnects: u64,
}

#[derive(Debug, Default)]
struct Shared {
    sent: AtomicU64,
    bytes: AtomicU64,
    acked: AtomicU64,
    resent: AtomicU64,
    refused: AtomicU64,
    skipped: AtomicU64,
    connected: AtomicU64,
    connections: AtomicU64,
    first: Notify,
    reconnects: AtomicU64,
    problems: Mutex<Vec<Problem>>,
}

/// The counters of one feed. Cloning shares them; look at them as often as you like.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Shared>);

impl Progress {
    /// The counters now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            sent: read(&self.0.sent),
            bytes: read(&self.0.bytes),
            acked: read(&self.0.acked),
            resent: read(&self.0.resent),
            refused: read(&self.0.refused),
            skipped: read(&self.0.skipped),
            connected: read(&self.0.connected),
            connections: read(&self.0.connections),
            reconnects: read(&self.0.reconnects),
        }
    }

    /// The first lines that were not taken, at most [`KEPT_PROBLEMS`].
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.0.problems.lock().clone()
    }

    pub(super) fn written(&self, sent: u64, bytes: u64, resent: u64) {
        self.0.sent.fetch_add(sent, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.0.resent.fetch_add(resent, Ordering::Relaxed);
    }

    pub(super) fn acked(&self, count: u64) {
        self.0.acked.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, numbering: &Numbering, number: u64, reason: String) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
        self.note(numbering, number, reason);
    }

    pub(super) fn skipped(&self, numbering: &Numbering, number: u64, reason: String) {
        self.0.skipped.fetch_add(1, Ordering::Relaxed);
        self.note(numbering, number, reason);
    }

    /// A connection stands that has never stood before.
    pub(super) fn connected_first(&self) {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        // For the one who waits, also when that comes later.
        self.0.first.notify_one();
    }

    /// Waits until a connection has stood; for one caller.
    pub(super) async fn any_connected(&self) {
        self.0.first.notified().await;
    }

    pub(super) fn connected(&self) {
        self.0.connected.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn disconnected(&self, broken: bool) {
        self.0.connected.fetch_sub(1, Ordering::Relaxed);
        self.0.reconnects.fetch_add(u64::from(broken), Ordering::Relaxed);
    }

    fn note(&self, numbering: &Numbering, number: u64, reason: String) {
        let mut problems = self.0.problems.lock();
        if problems.len() < KEPT_PROBLEMS {
            problems.push(Problem { number, place: numbering.place(number), reason });
        }
    }
}

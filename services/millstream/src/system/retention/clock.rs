//! The wall clock, watched: what it was set by is no time that has passed.

use messagepipeline::{Clock, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// The wall clock may differ by this much from what the monotonic one makes of its last reading: the two are not read
/// in the same instant, and a step of this size does not matter.
const TOLERANCE: Duration = Duration::from_secs(1);

/// A wall clock that tells when it was set, as a board without a clock of its own does once it reaches the network.
pub(super) struct WatchedClock {
    clock: Arc<dyn Clock>,
    last: (Timestamp, Instant),
}

/// One reading.
#[derive(Clone, Copy)]
pub(super) struct Reading {
    pub(super) now: Timestamp,
    /// What the clock would show, when it was set since the last reading.
    pub(super) set_from: Option<Timestamp>,
    at: Instant,
}

impl WatchedClock {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let last = (clock.now(), Instant::now());
        Self { clock, last }
    }

    pub(super) fn read(&self) -> Reading {
        let (now, at) = (self.clock.now(), Instant::now());
        let (then, instant) = self.last;
        let expected = then.plus(at.duration_since(instant));
        let difference = now.since(expected).max(expected.since(now));
        Reading { now, set_from: (difference > TOLERANCE).then_some(expected), at }
    }

    /// The next reading is compared with this one.
    pub(super) fn accept(&mut self, reading: Reading) {
        self.last = (reading.now, reading.at);
    }
}

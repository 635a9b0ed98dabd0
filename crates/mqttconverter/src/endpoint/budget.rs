//! The bound over all connections.

use super::wire::READ_BYTES;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Packets up to this many bytes are assembled without asking; only PUBLISH, SUBSCRIBE and UNSUBSCRIBE may have more.
/// Without a permit a connection holds no more than one such packet and what it read at once.
pub(super) const SMALL_PACKET: usize = 8 * 1024;

/// What a connection may always read at once: some messages of usual size.
pub(super) const LEAST_READ_BYTES: usize = 3 * 1024;

/// Wills up to this many bytes are kept without asking: the number of connections bounds them.
const SMALL_WILL: usize = 1_024;

/// Who sends a large packet at less than this, in bytes a second, makes room when others wait for long.
const SLOWEST: usize = 8 * 1_024;

/// Who sends one at less than this makes room then, too, but one at a time.
const SLOW: usize = 64 * 1_024;

/// What a will that waits costs beside itself: the task that waits.
const WAITING_BYTES: usize = 1_024;

/// The most messages of one chunk: enough to share what a chunk shares, few enough to begin early.
const CHUNK_MESSAGES: usize = 1_024;

/// Messages and bytes that the pipeline may hold, bytes of large packets that arrive or wait for it, and how much is
/// read while others wait for room.
///
/// What a message takes it gives back with its verdict. Large packets have a budget of their own, so that clients
/// that begin them and stall cannot stop everybody else; and so have large CONNECTs, whose senders nobody knows yet.
#[derive(Debug)]
pub(super) struct Budget {
    messages: Semaphore,
    bytes: Semaphore,
    arriving: Arc<Semaphore>,
    connecting: Semaphore,
    queue: Mutex<Queue>,
    /// Of clients that are connected.
    wills: Arc<Semaphore>,
    /// Of clients that are gone, until the wills' delay is over and the pipeline has them.
    waiting_wills: Arc<Semaphore>,
    chunk_messages: usize,
    chunk_bytes: usize,
    /// What the connections that wait for room should hold together.
    waiting_bytes: usize,
    /// Connections that hold what they have read and wait for room, in the pipeline or in their session.
    waiting: AtomicUsize,
}

/// Who receives a large packet, and who waits to.
#[derive(Debug, Default)]
struct Queue {
    /// Since when those wait who do, in the order in which they get their turn.
    waiting: BTreeMap<u64, Instant>,
    /// Since when nobody of those has had a turn.
    stuck_since: Option<Instant>,
    /// Numbers of those that have room, in the order in which they got it.
    holders: BTreeSet<u64>,
    next: u64,
}

impl Queue {
    fn next(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The quarter that has been there for longest ends what it began, however many wait: so all do in the end.
    fn is_old(&self, number: u64) -> bool {
        self.holders.iter().take(self.holders.len().div_ceil(4)).any(|holder| *holder == number)
    }
}

impl Budget {
    pub(super) fn new(messages: usize, bytes: usize) -> Self {
        let bytes = bytes.min(u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        Self {
            messages: Semaphore::new(messages.min(Semaphore::MAX_PERMITS)),
            bytes: Semaphore::new(bytes),
            arriving: Arc::new(Semaphore::new(bytes)),
            // Of the least budget, 1 MiB, this is one CONNECT of the greatest length, 128 KiB.
            connecting: Semaphore::new(bytes / 8),
            wills: Arc::new(Semaphore::new(bytes / 2)),
            waiting_wills: Arc::new(Semaphore::new(bytes)),
            chunk_messages: messages.min(CHUNK_MESSAGES),
            chunk_bytes: bytes / 4,
            waiting_bytes: bytes / 128,
            waiting: AtomicUsize::new(0),
            queue: Mutex::default(),
        }
    }

    /// How many bytes a connection may read at once. What it has read waits with it while the pipeline is full, so the
    /// more wait, the less the others read.
    pub(super) fn read_share(&self) -> usize {
        let holders = self.waiting.load(Ordering::Relaxed) + 1;
        (self.waiting_bytes / holders).clamp(LEAST_READ_BYTES, READ_BYTES)
    }

    /// A chunk with this many messages is full.
    pub(super) fn chunk_messages(&self) -> usize {
        self.chunk_messages
    }

    /// A chunk that weighs this much is full: small messages weigh many times what was read, and wait as they were read.
    pub(super) fn chunk_bytes(&self) -> usize {
        self.chunk_bytes.min(2 * self.read_share())
    }

    /// Counts a connection that holds what it has read and cannot hand it over, until what this gives is dropped.
    pub(super) fn begin_wait(self: &Arc<Self>) -> Waits {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waits(Arc::clone(self))
    }

    /// Waits for room. It is given back by [`Budget::release`], not by dropping something.
    pub(super) async fn reserve(self: &Arc<Self>, messages: u32, bytes: u32) -> Result<(), AcquireError> {
        let waits = self.begin_wait();
        let messages = self.messages.acquire_many(messages).await?;
        let bytes = self.bytes.acquire_many(bytes).await?;
        drop(waits);
        messages.forget();
        bytes.forget();
        Ok(())
    }

    pub(super) fn release(&self, messages: usize, bytes: usize) {
        self.messages.add_permits(messages);
        self.bytes.add_permits(bytes);
    }

    /// Waits for room for a large packet of `bytes` while it arrives and until the pipeline takes it.
    pub(super) async fn arriving(self: &Arc<Self>, bytes: u32) -> Result<Arriving, AcquireError> {
        let permit = match Arc::clone(&self.arriving).try_acquire_many_owned(bytes) {
            Ok(permit) => permit,
            Err(_) => {
                let _queued = Queued::new(self);
                let permit = Arc::clone(&self.arriving).acquire_many_owned(bytes).await?;
                self.queue.lock().stuck_since = Some(Instant::now());
                permit
            }
        };
        let mut queue = self.queue.lock();
        let number = queue.next();
        queue.holders.insert(number);
        Ok(Arriving { _permit: permit, budget: Arc::clone(self), number, since: Instant::now() })
    }

    /// Room for the will of a client that connects, if there is any.
    pub(super) fn will(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        try_take(&self.wills, if bytes > SMALL_WILL { bytes } else { 0 })
    }

    /// Room for a will whose client is gone, while it waits for its delay and for the pipeline, if there is any.
    pub(super) fn waiting_will(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        try_take(&self.waiting_wills, bytes + WAITING_BYTES)
    }

    /// Waits for room for a large CONNECT of `bytes`.
    pub(super) async fn connecting(&self, bytes: usize) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.connecting.acquire_many(u32::try_from(bytes).unwrap_or(u32::MAX)).await
    }
}

fn try_take(room: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    Arc::clone(room).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
}

/// See [`Budget::begin_wait`].
#[derive(Debug)]
pub(super) struct Waits(Arc<Budget>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Somebody who waits for the room of a large packet.
struct Queued {
    waits: Waits,
    number: u64,
}

impl Queued {
    fn new(budget: &Arc<Budget>) -> Self {
        let mut queue = budget.queue.lock();
        let (number, now) = (queue.next(), Instant::now());
        queue.waiting.insert(number, now);
        queue.stuck_since.get_or_insert(now);
        Self { waits: budget.begin_wait(), number }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        let mut queue = self.waits.0.queue.lock();
        queue.waiting.remove(&self.number);
        if queue.waiting.is_empty() {
            queue.stuck_since = None;
        }
    }
}

/// The room of a large packet; see [`Budget::arriving`].
#[derive(Debug)]
pub(super) struct Arriving {
    _permit: OwnedSemaphorePermit,
    budget: Arc<Budget>,
    number: u64,
    since: Instant,
}

impl Arriving {
    /// Whether the packet, of which so many bytes have come, must make room for those that wait, because it comes slowly.
    /// One of the slowest makes room when it and somebody who waits have had `patience`; another when nobody who waits has
    /// had a turn for as long. With `for_good` its connection ends then, and another makes room only if that has not helped.
    pub(super) fn must_yield(&self, received: usize, patience: Duration, for_good: bool) -> bool {
        let elapsed = self.since.elapsed();
        let is_slower_than = |rate: usize| (received as f64) < rate as f64 * elapsed.as_secs_f64();
        let has_passed = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() >= patience);
        let mut queue = self.budget.queue.lock();
        let longest_wait = queue.waiting.values().next().copied();
        let is_slowest = is_slower_than(SLOWEST) && elapsed >= patience && has_passed(longest_wait);
        let is_slow = is_slower_than(SLOW) && has_passed(queue.stuck_since);
        if !(is_slowest || is_slow) || queue.is_old(self.number) {
            return false;
        }
        if for_good && !is_slowest {
            queue.stuck_since = Some(Instant::now());
        }
        true
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.budget.queue.lock().holders.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use tokio::time::advance;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn the_more_connections_wait_for_room_the_less_the_others_read() {
        let budget = Arc::new(Budget::new(1, 32 << 20));
        budget.reserve(1, 1).now_or_never().expect("there is room").unwrap();
        assert_eq!(budget.read_share(), READ_BYTES, "nobody waits");
        let mut waiting = Vec::new();
        let mut held = 0;
        for _ in 0..2_000 {
            held += budget.read_share();
            let mut reserve = Box::pin(budget.reserve(1, 1));
            assert!(reserve.as_mut().now_or_never().is_none());
            waiting.push(reserve);
        }
        assert_eq!(budget.read_share(), LEAST_READ_BYTES);
        assert!(held < 16 << 20, "{held} bytes wait beside the 32 MiB");
        waiting.clear();
        assert_eq!(budget.read_share(), READ_BYTES, "who gave up waits no more");
    }

    #[test]
    fn a_few_large_wills_shut_out_large_ones_only() {
        let budget = Budget::new(1, 1 << 20);
        let large: Vec<_> = (0..8).map(|_| budget.will(64 << 10)).collect();
        assert!(large.iter().all(Option::is_some));
        assert!(budget.will(SMALL_WILL + 1).is_none());
        assert!(budget.will(SMALL_WILL).is_some());
    }

    /// A budget that eight large packets have taken.
    async fn full() -> (Arc<Budget>, Vec<Arriving>) {
        let budget = Arc::new(Budget::new(1, 8));
        let mut holders = Vec::new();
        for _ in 0..8 {
            holders.push(budget.arriving(1).await.unwrap());
        }
        (budget, holders)
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_makes_room_for_large_packets_that_wait_one_at_a_time_and_the_oldest_last() {
        let (budget, holders) = full().await;
        let received = |seconds: usize| 30_000 * seconds;
        let yielding = |seconds, for_good| {
            let must = |holder: &Arriving| holder.must_yield(received(seconds), PATIENCE, for_good);
            holders.iter().map(must).collect::<Vec<_>>()
        };
        advance(PATIENCE).await;
        assert_eq!(yielding(10, true), [false; 8], "nobody waits");
        let mut waiting = Box::pin(budget.arriving(1));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(yielding(10, true), [false; 8], "nobody has waited for long");
        advance(PATIENCE).await;
        let young = [false, false, true, true, true, true, true, true];
        assert_eq!(yielding(20, false), young);
        assert_eq!(yielding(20, true), [false, false, true, false, false, false, false, false]);
        assert_eq!(yielding(20, true), [false; 8], "whether that has helped is not known yet");
        assert_eq!(yielding(3, true), young, "who is slowest goes at once");
        drop(waiting);
        assert_eq!(yielding(3, true), [false; 8], "nobody waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_are_slowest_make_room_though_one_of_them_has_done_so() {
        let (budget, mut holders) = full().await;
        let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(budget.arriving(1))).collect();
        assert!(waiting.iter_mut().all(|arriving| arriving.as_mut().now_or_never().is_none()));
        advance(PATIENCE).await;
        assert!(holders.pop().expect("eight").must_yield(0, PATIENCE, true));
        let first = waiting.remove(0).await.unwrap();
        assert!(holders.pop().expect("seven").must_yield(0, PATIENCE, true), "another still waits");
        assert!(!first.must_yield(0, PATIENCE, true), "it has only begun");
        advance(PATIENCE).await;
        assert!(first.must_yield(0, PATIENCE, true));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_makes_room_while_each_who_waits_gets_a_turn_soon() {
        let (budget, mut holders) = full().await;
        let mut waiting = Box::pin(budget.arriving(1));
        assert!(waiting.as_mut().now_or_never().is_none());
        for _ in 0..30 {
            let mut next = Box::pin(budget.arriving(1));
            assert!(next.as_mut().now_or_never().is_none());
            advance(PATIENCE / 10).await;
            holders.pop();
            holders.push(waiting.await.unwrap());
            waiting = next;
        }
        assert!(holders.iter().all(|holder| !holder.must_yield(0, PATIENCE, true)));
    }
}

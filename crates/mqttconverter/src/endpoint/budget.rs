//! The bound over all connections.

use super::wire::READ_BYTES;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Packets up to this many bytes are assembled without asking, and no packet but a PUBLISH may have more. Without a
/// permit a connection holds no more than one such packet and what it read at once.
pub(super) const SMALL_PACKET: usize = 8 * 1024;

/// What a connection may always read at once: some messages of usual size.
pub(super) const LEAST_READ_BYTES: usize = 3 * 1024;

/// What a will that waits costs beside itself: the task that waits.
const DELAYED_BYTES: usize = 1_024;

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
    /// Of clients that are connected.
    wills: Arc<Semaphore>,
    /// Of clients that are gone, until the wills' delay is over.
    delayed_wills: Arc<Semaphore>,
    chunk_messages: usize,
    chunk_bytes: usize,
    /// What the connections that wait for room should hold together.
    waiting_bytes: usize,
    /// Connections that hold what they have read and wait for room, in the pipeline or in their session.
    waiting: AtomicUsize,
    /// Connections that wait to receive a large packet.
    queued: AtomicUsize,
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
            delayed_wills: Arc::new(Semaphore::new(bytes)),
            chunk_messages: messages.min(CHUNK_MESSAGES),
            chunk_bytes: bytes / 4,
            waiting_bytes: bytes / 128,
            waiting: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
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
        self.count(false)
    }

    fn count(self: &Arc<Self>, is_queued: bool) -> Waits {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.queued.fetch_add(is_queued.into(), Ordering::Relaxed);
        Waits { budget: Arc::clone(self), is_queued }
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
    pub(super) async fn arriving(self: &Arc<Self>, bytes: u32) -> Result<OwnedSemaphorePermit, AcquireError> {
        if let Ok(permit) = Arc::clone(&self.arriving).try_acquire_many_owned(bytes) {
            return Ok(permit);
        }
        let _waits = self.count(true);
        Arc::clone(&self.arriving).acquire_many_owned(bytes).await
    }

    /// Whether somebody waits to receive a large packet.
    pub(super) fn is_crowded(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > 0
    }

    /// Room for the will of a client that connects, if there is any.
    pub(super) fn will(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        try_take(&self.wills, bytes)
    }

    /// Room for a will that waits for its delay, if there is any.
    pub(super) fn delayed_will(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        try_take(&self.delayed_wills, bytes + DELAYED_BYTES)
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
pub(super) struct Waits {
    budget: Arc<Budget>,
    /// For the room of a large packet.
    is_queued: bool,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.budget.waiting.fetch_sub(1, Ordering::Relaxed);
        self.budget.queued.fetch_sub(self.is_queued.into(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

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
}

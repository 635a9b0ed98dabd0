//! The bound over all connections.

use super::wire::READ_BYTES;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};

/// Packets up to this many bytes are assembled without asking; a connection holds no more than this without a
/// permit.
pub(super) const SMALL_PACKET: usize = 64 * 1024;

/// Messages and bytes that the pipeline may hold, and bytes of large packets that are still arriving.
///
/// What a message takes it gives back with its verdict. Large packets have a budget of their own, so that clients
/// that begin them and stall cannot stop everybody else.
#[derive(Debug)]
pub(super) struct Budget {
    messages: Semaphore,
    bytes: Semaphore,
    arriving: Semaphore,
    chunk_messages: usize,
    chunk_bytes: usize,
    /// Bytes that all connections together read at once.
    read_bytes: usize,
    connections: AtomicUsize,
}

/// What a connection may always read at once: some messages of usual size.
const LEAST_READ_BYTES: usize = 4 * 1024;

/// The most messages of one chunk: enough to share what a chunk shares, few enough to begin early.
const CHUNK_MESSAGES: usize = 1_024;

impl Budget {
    pub(super) fn new(messages: usize, bytes: usize) -> Self {
        let bytes = bytes.min(u32::MAX as usize).min(Semaphore::MAX_PERMITS);
        Self {
            messages: Semaphore::new(messages.min(Semaphore::MAX_PERMITS)),
            bytes: Semaphore::new(bytes),
            arriving: Semaphore::new(bytes),
            chunk_messages: messages.min(CHUNK_MESSAGES),
            chunk_bytes: bytes / 4,
            read_bytes: bytes / 4,
            connections: AtomicUsize::new(0),
        }
    }

    /// A connection begins to read.
    pub(super) fn join(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection that joined reads no more.
    pub(super) fn leave(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many bytes a connection may read at once. What it has read waits with it until the pipeline has room, so
    /// that all of them together must not read much more than the pipeline takes.
    pub(super) fn share(&self) -> usize {
        let connections = self.connections.load(Ordering::Relaxed).max(1);
        (self.read_bytes / connections).clamp(LEAST_READ_BYTES, READ_BYTES)
    }

    /// A chunk with this many messages is full.
    pub(super) fn chunk_messages(&self) -> usize {
        self.chunk_messages
    }

    /// A chunk that weighs this much is full.
    pub(super) fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// Waits for room. It is given back by [`Budget::release`], not by dropping something.
    pub(super) async fn reserve(&self, messages: u32, bytes: u32) -> Result<(), AcquireError> {
        let messages = self.messages.acquire_many(messages).await?;
        let bytes = self.bytes.acquire_many(bytes).await?;
        messages.forget();
        bytes.forget();
        Ok(())
    }

    pub(super) fn release(&self, messages: usize, bytes: usize) {
        self.messages.add_permits(messages);
        self.bytes.add_permits(bytes);
    }

    /// Waits for room for a large packet of `bytes` while it arrives.
    pub(super) async fn arriving(&self, bytes: u32) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.arriving.acquire_many(bytes).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_read_no_more_together_than_a_quarter_of_the_budget_or_4_kib_each() {
        let budget = Budget::new(1_000, 32 << 20);
        for connections in 1..=20_000 {
            budget.join();
            let share = budget.share();
            assert!((LEAST_READ_BYTES..=READ_BYTES).contains(&share), "{connections}: {share}");
            assert!(
                share == LEAST_READ_BYTES || share * connections <= 8 << 20,
                "{connections} times {share}"
            );
        }
        (1..20_000).for_each(|_| budget.leave());
        assert_eq!(budget.share(), READ_BYTES, "one is left");
    }
}

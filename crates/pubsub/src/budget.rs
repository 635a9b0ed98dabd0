//! Room for what waits for the service's answer, in messages and bytes.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in units of so many, because a semaphore counts to 2^32 at a time.
const UNIT: usize = 256;

/// Two bounds that are taken together. Whoever asks first is served first.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    messages: Arc<Semaphore>,
    units: Arc<Semaphore>,
    most: (u32, u32),
}

/// A share of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub(crate) struct Share {
    _messages: OwnedSemaphorePermit,
    _units: OwnedSemaphorePermit,
}

impl Budget {
    pub(crate) fn new(messages: usize, bytes: usize) -> Self {
        let most = (count(messages), count(bytes.div_ceil(UNIT)));
        let semaphore = |most: u32| Arc::new(Semaphore::new(most as usize));
        Self { messages: semaphore(most.0), units: semaphore(most.1), most }
    }

    /// Waits for room. What is more than all room passes alone. `None` never comes: nobody closes the semaphores.
    pub(crate) async fn take(&self, messages: usize, bytes: usize) -> Option<Share> {
        let messages = count(messages).min(self.most.0);
        let units = count(bytes.div_ceil(UNIT)).min(self.most.1);
        Some(Share {
            _messages: Arc::clone(&self.messages).acquire_many_owned(messages).await.ok()?,
            _units: Arc::clone(&self.units).acquire_many_owned(units).await.ok()?,
        })
    }

    /// The same if there is room now.
    pub(crate) fn try_take(&self, messages: usize, bytes: usize) -> Option<Share> {
        let messages = count(messages).min(self.most.0);
        let units = count(bytes.div_ceil(UNIT)).min(self.most.1);
        Some(Share {
            _messages: Arc::clone(&self.messages).try_acquire_many_owned(messages).ok()?,
            _units: Arc::clone(&self.units).try_acquire_many_owned(units).ok()?,
        })
    }
}

/// A count between 1 and what a semaphore takes.
fn count(value: usize) -> u32 {
    u32::try_from(value.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_bounds_hold_and_what_is_more_than_all_room_passes_alone() {
        let budget = Budget::new(10, 10_000);
        let first = budget.try_take(4, 9_000).expect("there is room");
        assert!(budget.try_take(1, 2_000).is_none(), "beyond the bytes");
        assert!(budget.try_take(7, 10).is_none(), "beyond the messages");
        let second = budget.try_take(6, 10).expect("there is room");
        drop((first, second));
        let all = budget.take(1_000, 1_000_000).await.expect("alone");
        assert!(budget.try_take(1, 1).is_none(), "nothing beside it");
        drop(all);
        assert!(budget.try_take(1, 1).is_some());
    }
}

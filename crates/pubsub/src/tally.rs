//! How often messages have failed here, without any I/O.
//!
//! Pub/Sub counts deliveries only for subscriptions with a dead letter policy. Without one this count stands in, so that
//! a message that fails every time reaches the dead letters; it is this process's own and begins anew with it.

use messagepipeline::MessageId;
use std::collections::{HashMap, VecDeque};

/// Messages that are remembered; the one that failed first makes room.
const KEPT: usize = 10_000;

/// Failures by message id.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    failures: HashMap<MessageId, u32>,
    order: VecDeque<MessageId>,
}

impl Tally {
    /// Which delivery the next one of `id` is, counted from 1.
    pub(crate) fn attempt(&self, id: MessageId) -> u32 {
        if self.failures.is_empty() {
            return 1;
        }
        self.failures.get(&id).map_or(1, |failures| failures.saturating_add(1))
    }

    /// A delivery of `id` failed.
    pub(crate) fn fail(&mut self, id: MessageId) {
        let failures = self.failures.entry(id).or_insert(0);
        *failures = failures.saturating_add(1);
        if *failures == 1 {
            self.order.push_back(id);
        }
        while self.order.len() > KEPT {
            if let Some(oldest) = self.order.pop_front() {
                self.failures.remove(&oldest);
            }
        }
    }

    /// `id` is done with.
    pub(crate) fn forget(&mut self, id: MessageId) {
        if !self.failures.is_empty() && self.failures.remove(&id).is_some() {
            self.order.retain(|known| *known != id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_message_until_it_is_done_and_the_memory_is_bounded() {
        let id = |n: usize| MessageId::from_bytes((n as u128).to_be_bytes());
        let mut tally = Tally::default();
        assert_eq!(tally.attempt(id(1)), 1);
        tally.fail(id(1));
        tally.fail(id(1));
        assert_eq!((tally.attempt(id(1)), tally.attempt(id(2))), (3, 1));
        tally.forget(id(1));
        assert_eq!(tally.attempt(id(1)), 1);
        (0..KEPT + 5).for_each(|n| tally.fail(id(n)));
        assert_eq!((tally.attempt(id(4)), tally.attempt(id(5))), (1, 2));
        assert_eq!((tally.failures.len(), tally.order.len()), (KEPT, KEPT));
    }
}

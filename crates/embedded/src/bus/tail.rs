//! The newest messages of a topic in memory: a consumer that has caught up need not read back what was just written.
//!
//! It holds copies of committed messages only, with consecutive numbers up to the newest. Whoever needs an older one
//! reads the log, which is the truth; the tail may be empty at any time.

use messagepipeline::Message;
use parking_lot::Mutex;
use std::collections::VecDeque;

/// Messages kept of one topic, at most.
const MESSAGES: usize = 8_192;
/// Bytes of messages kept of one topic, at most. While consumers keep up these are the bytes they work on anyway.
const BYTES: usize = 8 * 1024 * 1024;

/// The tail of one topic.
#[derive(Debug, Default)]
pub(super) struct Tail {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Number of the first message; the others follow without a gap.
    first: u64,
    messages: VecDeque<Message>,
    bytes: usize,
}

/// Messages with their numbers, read in order.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) messages: Vec<(u64, Message)>,
    /// All that was asked for was looked at.
    pub(super) complete: bool,
}

impl Tail {
    /// Adds messages that are committed, `first` and following. Older ones make room.
    pub(super) fn extend(&self, first: u64, messages: Vec<Message>) {
        let mut kept = self.kept.lock();
        if kept.next() != first {
            // Somebody else wrote to the log in between.
            *kept = Kept { first, ..Kept::default() };
        }
        for message in messages {
            kept.bytes += message.weight();
            kept.messages.push_back(message);
        }
        while kept.messages.len() > MESSAGES || kept.bytes > BYTES {
            kept.drop_first();
        }
    }

    /// Messages `from` to `to` as far as they are here, at most `bytes` of payloads and attributes unless the first
    /// alone has more. `None` when `from` is not here.
    pub(super) fn read(&self, from: u64, to: u64, bytes: usize) -> Option<Numbered> {
        let kept = self.kept.lock();
        let start = usize::try_from(from.checked_sub(kept.first)?).ok()?;
        let mut messages = Vec::new();
        let mut taken = 0;
        for (seq, message) in (from..=to).zip(kept.messages.range(start.min(kept.messages.len())..)) {
            taken += message.payload.len() + message.attributes.size();
            messages.push((seq, message.clone()));
            if taken >= bytes {
                break;
            }
        }
        let (last, _) = messages.last()?;
        let complete = *last == to;
        Some(Numbered { messages, complete })
    }

    /// Forgets messages up to `to`, which nobody will ask for any more.
    pub(super) fn forget(&self, to: u64) {
        let mut kept = self.kept.lock();
        while kept.first <= to && !kept.messages.is_empty() {
            kept.drop_first();
        }
    }
}

impl Kept {
    fn next(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    fn drop_first(&mut self) {
        if let Some(message) = self.messages.pop_front() {
            self.bytes -= message.weight();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use messagepipeline::{IdGenerator, Timestamp};

    fn messages(count: usize, bytes: usize) -> Vec<Message> {
        let ids = IdGenerator::default();
        let payload = Bytes::from(vec![b'x'; bytes]);
        let message = || Message::new(ids.next_id(), payload.clone(), Timestamp::from_micros(1));
        std::iter::repeat_with(message).take(count).collect()
    }

    fn numbers(read: &Numbered) -> Vec<u64> {
        read.messages.iter().map(|(seq, _)| *seq).collect()
    }

    #[test]
    fn what_is_asked_for_comes_in_order_and_says_whether_it_is_all() {
        let tail = Tail::default();
        tail.extend(5, messages(4, 10));
        let read = tail.read(6, 8, 1_000).unwrap();
        assert_eq!((numbers(&read), read.complete), (vec![6, 7, 8], true));
        let read = tail.read(6, 20, 1_000).unwrap();
        assert_eq!((numbers(&read), read.complete), (vec![6, 7, 8], false));
        let read = tail.read(5, 8, 11).unwrap();
        assert_eq!((numbers(&read), read.complete), (vec![5, 6], false));
        assert!(tail.read(4, 8, 1_000).is_none() && tail.read(9, 9, 1_000).is_none());
        tail.forget(7);
        assert!(tail.read(7, 8, 1_000).is_none() && tail.read(8, 8, 1_000).is_some());
    }

    #[test]
    fn numbers_that_somebody_else_gave_are_never_taken_for_others() {
        let tail = Tail::default();
        tail.extend(1, messages(3, 10));
        tail.extend(5, messages(2, 10));
        assert!(tail.read(1, 6, 1_000).is_none() && tail.read(4, 6, 1_000).is_none());
        assert_eq!(numbers(&tail.read(5, 6, 1_000).unwrap()), [5, 6]);
    }

    #[test]
    fn it_is_bounded_by_messages_and_by_bytes() {
        let tail = Tail::default();
        tail.extend(1, messages(MESSAGES + 1, 10));
        assert!(tail.read(1, 1, 10).is_none() && tail.read(2, 2, 10).is_some());
        tail.extend(MESSAGES as u64 + 2, messages(10, BYTES / 4));
        assert_eq!(tail.kept.lock().messages.len(), 3);
    }
}

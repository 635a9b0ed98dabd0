//! The streams whose verdicts a close waits for, without any I/O.

use std::collections::{BTreeMap, VecDeque};

/// Streams that ended and may still have verdicts to send. Beyond it the oldest is forgotten.
const ENDED: usize = 256;

/// The stream that stands for each pump, and those that ended.
#[derive(Debug)]
pub(crate) struct Streams<T> {
    standing: BTreeMap<u64, T>,
    ended: VecDeque<T>,
}

impl<T> Default for Streams<T> {
    fn default() -> Self {
        Self { standing: BTreeMap::new(), ended: VecDeque::new() }
    }
}

impl<T: Clone> Streams<T> {
    /// The pump `number` opened `stream`; the one it had has ended. Of those that ended, the ones that are `done` are
    /// forgotten.
    pub(crate) fn keep(&mut self, number: u64, stream: T, done: impl Fn(&T) -> bool) {
        self.ended.extend(self.standing.insert(number, stream));
        self.ended.retain(|ended| !done(ended));
        while self.ended.len() > ENDED {
            self.ended.pop_front();
        }
    }

    pub(crate) fn all(&self) -> Vec<T> {
        self.ended.iter().chain(self.standing.values()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_stands_is_waited_for_however_often_another_one_ends() {
        let mut streams = Streams::default();
        streams.keep(0, "stands".to_owned(), |_| false);
        for opened in 0..10 * ENDED {
            streams.keep(1, opened.to_string(), |_| false);
        }
        let all = streams.all();
        assert!(all.contains(&"stands".to_owned()));
        assert_eq!(all.len(), ENDED + 2);
    }

    #[test]
    fn what_ended_and_sent_everything_is_forgotten_and_nothing_that_stands() {
        let mut streams = Streams::default();
        for opened in 0..6 {
            streams.keep(opened % 2, opened, |stream| stream % 2 == 0);
        }
        assert_eq!(streams.all(), [1, 3, 4, 5]);
    }
}

//! How far a group that waits lies behind what was taken last.
//!
//! A consumer hands out messages up to a distance from the oldest one without a verdict. A group that waits for its age
//! holds that oldest message: beside a busy key, a quiet one would stop everything until it is due. So its group is
//! flushed before the distance is used up.

use std::collections::VecDeque;
use tokio::time::Instant;

/// The greatest distance between the newest message that a consumer hands out and the oldest without a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceWindow {
    /// In messages.
    pub messages: usize,
    /// In bytes, counted as [`crate::Message::weight`] does.
    pub bytes: usize,
}

impl SourceWindow {
    /// The distance at which a waiting group is flushed. The rest is for what comes until that is done.
    fn patience(self) -> Self {
        Self { messages: self.messages - self.messages / 4, bytes: self.bytes - self.bytes / 4 }
    }
}

/// Marks in the window beyond which no further one is set.
const MARKS: usize = 64;

/// What had been taken at some moment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    messages: usize,
    bytes: usize,
}

/// Counts what a service takes, and knows how much of it came after a moment, to within a 64th of the window.
#[derive(Debug)]
pub(crate) struct Span {
    patience: Option<SourceWindow>,
    messages: usize,
    bytes: usize,
    marks: VecDeque<Mark>,
}

impl Span {
    pub(crate) fn new(window: Option<SourceWindow>) -> Self {
        Self { patience: window.map(SourceWindow::patience), messages: 0, bytes: 0, marks: VecDeque::new() }
    }

    /// Notes that messages are taken at `now`, before they are grouped.
    pub(crate) fn take(&mut self, now: Instant, messages: usize, bytes: usize) {
        let Some(patience) = self.patience else { return };
        let is_far = self.marks.back().is_none_or(|mark| {
            self.messages.wrapping_sub(mark.messages) >= patience.messages / MARKS
                || self.bytes.wrapping_sub(mark.bytes) >= patience.bytes / MARKS
        });
        if is_far {
            self.marks.push_back(Mark { at: now, messages: self.messages, bytes: self.bytes });
        }
        self.messages = self.messages.wrapping_add(messages);
        self.bytes = self.bytes.wrapping_add(bytes);
    }

    /// Whether so much was taken since `oldest`, when the oldest group was opened, that it must be flushed.
    pub(crate) fn is_used_up(&mut self, oldest: Option<Instant>) -> bool {
        let (Some(patience), Some(oldest)) = (self.patience, oldest) else {
            self.marks.clear();
            return false;
        };
        while self.marks.get(1).is_some_and(|next| next.at < oldest) {
            self.marks.pop_front();
        }
        self.marks.front().is_some_and(|mark| {
            self.messages.wrapping_sub(mark.messages) >= patience.messages
                || self.bytes.wrapping_sub(mark.bytes) >= patience.bytes
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_was_taken_since_a_moment_is_known_to_within_a_64th_of_the_window() {
        let window = SourceWindow { messages: 1_000, bytes: 1_000_000 };
        let start = Instant::now();
        let at = |step: u64| start + Duration::from_millis(step);
        let mut span = Span::new(Some(window));
        let used_up = (0..2_000).find(|step| {
            span.take(at(*step), 1, 10);
            span.is_used_up(Some(at(500.min(*step))))
        });
        let taken = used_up.unwrap() - 500;
        assert!((750 - 750 / 64 - 1..=750).contains(&taken), "{taken} messages");
        let mut span = Span::new(Some(window));
        let used_up = (0..2_000).find(|step| {
            span.take(at(*step), 1, 10_000);
            span.is_used_up(Some(start))
        });
        assert_eq!(used_up, Some(74), "by its bytes");
        assert!(!span.is_used_up(None) && span.marks.is_empty());
        span.take(at(5_000), 1, 1);
        assert!(!span.is_used_up(Some(at(5_000))));
        assert!(span.marks.len() <= MARKS + 1);
    }
}

//! How long a reader waits for more.

use messagepipeline::Timestamp;
use std::time::Duration;
use tokio::time::Instant;

/// Time to connect, beyond what is waited for.
const CONNECTING: Duration = Duration::from_secs(7);
/// So many new messages in a row, and no older one between them, are enough to say that no older one is to come: the
/// service sends what is older first, though not strictly.
const MANY: usize = 1_000;

/// Waits for what was published before the reader began. The service does not say that there is no more of it, so the end
/// is where none has come for a while. What is published later prolongs nothing, because it may come for ever.
#[derive(Debug)]
pub(crate) struct Patience {
    /// When reading began by the service's clock, as far as it is known: not before it did by ours.
    opened: Timestamp,
    begun: Instant,
    last_old: Instant,
    /// Time spent in waiting since then; the caller's own work is none.
    waited: Duration,
    /// New messages since then.
    new: usize,
    has_heard: bool,
}

impl Patience {
    /// Reading begins at `now`.
    pub(crate) fn new(now: Timestamp) -> Self {
        let begun = Instant::now();
        Self { opened: now, begun, last_old: begun, waited: Duration::ZERO, new: 0, has_heard: false }
    }

    /// How much longer to wait when `quiet` is the silence that counts as the end; zero at the end.
    pub(crate) fn left(&self, quiet: Duration) -> Duration {
        // The first one comes after names, TLS and a token.
        let quiet = if self.has_heard { quiet } else { quiet + CONNECTING };
        if self.new >= MANY && self.last_old.elapsed() >= quiet {
            return Duration::ZERO;
        }
        quiet.saturating_sub(self.waited)
    }

    /// A message came that was published at `published`, after a wait of `waited`; whether it is a new one.
    pub(crate) fn heard(&mut self, published: Timestamp, waited: Duration) -> bool {
        // The service's clock was there already, so it was not earlier than this when reading began.
        let elapsed = i64::try_from(self.begun.elapsed().as_micros()).unwrap_or(i64::MAX);
        let earliest = Timestamp::from_micros(published.as_micros().saturating_sub(elapsed));
        self.opened = self.opened.max(earliest);
        let is_new = published > self.opened;
        if !is_new || !self.has_heard {
            (self.waited, self.new, self.last_old) = (Duration::ZERO, 0, Instant::now());
        } else {
            self.waited += waited;
        }
        self.new += usize::from(is_new);
        self.has_heard = true;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const QUIET: Duration = Duration::from_secs(3);
    const SECOND: Duration = Duration::from_secs(1);
    const NOON: Timestamp = Timestamp::from_micros(1_780_000_000_000_000);

    async fn patience() -> Patience {
        let mut patience = Patience::new(NOON);
        advance(SECOND).await;
        assert!(!patience.heard(NOON, SECOND));
        patience
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_there_before_prolongs_the_waiting_and_what_is_new_does_not() {
        let mut patience = patience().await;
        for second in 1..=3 {
            advance(SECOND).await;
            assert!(patience.heard(NOON.plus(SECOND * second), SECOND));
            assert_eq!(patience.left(QUIET), QUIET - SECOND * second);
        }
        assert!(!patience.heard(NOON, SECOND));
        assert_eq!(patience.left(QUIET), QUIET);
    }

    #[tokio::test(start_paused = true)]
    async fn new_messages_that_never_let_anyone_wait_end_it_too() {
        let mut patience = patience().await;
        advance(QUIET).await;
        for _ in 1..MANY {
            patience.heard(NOON.plus(SECOND * 2), Duration::ZERO);
        }
        assert_eq!(patience.left(QUIET), QUIET);
        patience.heard(NOON.plus(SECOND * 2), Duration::ZERO);
        assert_eq!(patience.left(QUIET), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_callers_own_work_is_no_silence() {
        let mut patience = patience().await;
        advance(SECOND * 600).await;
        assert_eq!(patience.left(QUIET), QUIET);
        assert!(patience.heard(NOON.plus(SECOND * 300), Duration::ZERO));
        assert_eq!(patience.left(QUIET), QUIET);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_of_ours_that_is_slow_makes_nothing_new_that_the_service_has_had_for_long() {
        let mut patience = Patience::new(NOON);
        let hour = SECOND * 3_600;
        assert!(!patience.heard(NOON.plus(hour), SECOND));
        advance(SECOND).await;
        assert!(!patience.heard(NOON.plus(hour - SECOND), SECOND));
        assert!(patience.heard(NOON.plus(hour + SECOND * 2), SECOND), "published after the first came");
    }

    #[tokio::test(start_paused = true)]
    async fn connecting_has_time_of_its_own() {
        let mut patience = Patience::new(NOON);
        assert_eq!(patience.left(QUIET), QUIET + CONNECTING);
        advance(SECOND * 5).await;
        patience.heard(NOON.plus(SECOND), SECOND * 5);
        assert_eq!(patience.left(QUIET), QUIET);
    }
}

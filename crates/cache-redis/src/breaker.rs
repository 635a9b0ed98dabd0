//! Whether Redis is asked at all: closed, open for a pause, or half open for one probe.

use std::time::Duration;
use tokio::time::Instant;

/// Answers that may fail to come in a row before the connection is taken for dead.
const TIMEOUTS: u32 = 3;
/// First pause after a probe that failed; doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between two probes.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a caller may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Use the connection.
    Call,
    /// Make a new connection; nobody else does meanwhile.
    Probe,
    /// Leave it; the next probe is due after this time.
    Refused(Duration),
}

/// The state of a connection as its callers see it. It begins open with a probe due at once.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: State,
    /// The pause after the next failed probe.
    pause: Duration,
}

#[derive(Debug)]
enum State {
    Closed { timeouts: u32 },
    Open { until: Instant },
    HalfOpen { until: Instant },
}

impl Breaker {
    pub(crate) fn new(now: Instant) -> Self {
        Self { state: State::Open { until: now }, pause: FIRST_PAUSE }
    }

    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            State::Closed { .. } => Admission::Call,
            State::Open { until } if until <= now => {
                self.state = State::HalfOpen { until };
                Admission::Probe
            }
            State::Open { until } => Admission::Refused(until - now),
            State::HalfOpen { .. } => Admission::Refused(Duration::ZERO),
        }
    }

    /// The probe made a connection.
    pub(crate) fn connected(&mut self) {
        self.state = State::Closed { timeouts: 0 };
    }

    /// The probe failed.
    pub(crate) fn refused(&mut self, now: Instant) {
        self.state = State::Open { until: now + self.pause };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// The probe was abandoned; another one may begin.
    pub(crate) fn abandoned(&mut self) {
        if let State::HalfOpen { until } = self.state {
            self.state = State::Open { until };
        }
    }

    /// A call was answered.
    pub(crate) fn answered(&mut self) {
        if let State::Closed { timeouts } = &mut self.state {
            *timeouts = 0;
            self.pause = FIRST_PAUSE;
        }
    }

    /// A call was not answered in time; true when the connection is to be given up.
    pub(crate) fn timed_out(&mut self, now: Instant) -> bool {
        let State::Closed { timeouts } = &mut self.state else { return false };
        *timeouts += 1;
        let dead = *timeouts >= TIMEOUTS;
        if dead {
            self.refused(now);
        }
        dead
    }

    /// The connection is gone. One that has worked is replaced at once, one that never did after the pause.
    pub(crate) fn lost(&mut self, now: Instant) {
        if self.pause == FIRST_PAUSE {
            self.state = State::Open { until: now };
            self.pause = FIRST_PAUSE * 2;
        } else {
            self.refused(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn while_open_nobody_calls_and_one_probe_at_a_time_finds_out() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        assert_eq!(breaker.admit(now), Admission::Probe);
        assert_eq!(breaker.admit(now), Admission::Refused(Duration::ZERO), "one probe");
        let mut pauses = Vec::new();
        let mut now = now;
        for _ in 0..9 {
            breaker.refused(now);
            let Admission::Refused(pause) = breaker.admit(now) else {
                panic!("asked at once after a failure")
            };
            pauses.push(pause.as_millis());
            now += pause - MS;
            assert_eq!(breaker.admit(now), Admission::Refused(MS));
            now += MS;
            assert_eq!(breaker.admit(now), Admission::Probe);
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        breaker.connected();
        assert_eq!(breaker.admit(now), Admission::Call);
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_probe_leaves_its_place_to_the_next_caller() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        assert_eq!(breaker.admit(now), Admission::Probe);
        breaker.abandoned();
        assert_eq!(breaker.admit(now), Admission::Probe);
    }

    #[tokio::test(start_paused = true)]
    async fn three_timeouts_in_a_row_open_it_and_an_answer_between_them_does_not() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        breaker.admit(now);
        breaker.connected();
        for _ in 0..10 {
            assert!(!breaker.timed_out(now) && !breaker.timed_out(now));
            breaker.answered();
        }
        assert!(!breaker.timed_out(now) && !breaker.timed_out(now) && breaker.timed_out(now));
        assert_eq!(breaker.admit(now), Admission::Refused(FIRST_PAUSE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_working_connection_that_is_lost_is_replaced_at_once_and_one_that_never_worked_is_not() {
        let now = Instant::now();
        let mut breaker = Breaker::new(now);
        breaker.admit(now);
        breaker.connected();
        breaker.answered();
        breaker.lost(now);
        assert_eq!(breaker.admit(now), Admission::Probe);
        breaker.connected();
        breaker.lost(now);
        assert_eq!(breaker.admit(now), Admission::Refused(2 * FIRST_PAUSE));
    }
}

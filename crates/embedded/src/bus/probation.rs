//! Finding the message that kills the process: pure state.
//!
//! After the third unclean start in a row, everything a subscription may have handed out before is suspect. Suspects
//! are handed out in probes, each written down before and waited for until it is settled. A probe during which the
//! process dies is divided by eight at the next start, down to a single message.
//!
//! A message that is out alone when the process dies is not at fault yet: whoever kills the process from outside
//! kills it then too. So from its second probe on, it stands a trial: the process must first live for a while with no
//! suspect out, twice as long as the one before it lived with the message. A death after that, with the message out,
//! counts one failure for it. A death before proves that the process dies without it: the next probe is no trial. So the one at
//! fault reaches the dead letters, and an innocent message does not, however often the process is killed.

use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// Unclean starts in a row from which on messages are suspected.
pub(super) const SUSPICIOUS_STARTS: u32 = 3;
/// Suspects in the first probe.
const LARGEST: u64 = 1_024;
/// What a probe that died is divided by.
const DIVISOR: u64 = 8;
/// Shortest and longest time that the process must live before a trial.
const ALIBI: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The suspects of one subscription, as they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Probation {
    /// The last suspect.
    suspects_to: u64,
    /// Messages in the next probe.
    size: u64,
    /// Up to here the size stays small: the one at fault is among these.
    narrow_to: u64,
    /// The first and last message of the probe under way.
    probe: Option<(u64, u64)>,
    /// How long the process must live before the next probe, which is then a trial.
    #[serde(default)]
    alibi: Option<Duration>,
    /// The probe under way is a trial.
    #[serde(default)]
    trial: bool,
    /// When the probe began, in microseconds since 1970.
    #[serde(default)]
    probed: i64,
    /// When the process started, in microseconds since 1970, and when it asked for messages first.
    #[serde(skip)]
    started: i64,
    #[serde(skip)]
    since: Option<Instant>,
    /// Whether that probe is on the disk.
    #[serde(skip)]
    recorded: bool,
}

/// The start of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// Unclean starts in a row before it.
    pub(super) unclean: u32,
    /// When it is, in microseconds since 1970.
    pub(super) at: i64,
}

/// What may be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Messages up to this number.
    UpTo(u64),
    /// Nothing new before the state is written down, which [`Probation::set_recorded`] reports.
    Record,
    /// Nothing new before this time.
    NotBefore(Instant),
    /// Everything; no suspect is left.
    Open,
}

impl Probation {
    /// The state after `start`, and the message to count a failure for.
    ///
    /// `settled_to` is the subscription's cursor, `delivered_to` the highest number that may have been handed out.
    pub(super) fn start(
        stored: Option<Self>,
        start: Start,
        settled_to: u64,
        delivered_to: u64,
    ) -> (Option<Self>, Option<u64>) {
        let Some(mut state) = stored else {
            let suspicious = start.unclean >= SUSPICIOUS_STARTS && settled_to < delivered_to;
            return (suspicious.then(|| Self::new(delivered_to, start.at)), None);
        };
        let died = start.unclean > 0;
        let probe = state.probe.take().filter(|_| died);
        let is_trial = std::mem::take(&mut state.trial);
        let alone = probe.filter(|(first, last)| first == last).map(|(first, _)| first);
        if let Some((first, last)) = probe {
            state.size = ((last - first + 1) / DIVISOR).max(1);
            state.narrow_to = last;
        }
        let lived = Duration::from_micros(u64::try_from(start.at - state.probed).unwrap_or(0));
        state.alibi = match alone {
            Some(_) => Some((2 * lived).clamp(ALIBI.0, ALIBI.1)),
            // It died with nothing out, or something else was probed since.
            None => state.alibi.filter(|_| !died),
        };
        state.started = start.at;
        let over = settled_to >= state.suspects_to;
        ((!over).then_some(state), alone.filter(|_| is_trial))
    }

    fn new(suspects_to: u64, started: i64) -> Self {
        Self {
            suspects_to,
            size: LARGEST,
            narrow_to: 0,
            probe: None,
            alibi: None,
            trial: false,
            probed: 0,
            started,
            since: None,
            recorded: false,
        }
    }

    /// As it is stored.
    pub(super) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What may be handed out at `now` while everything up to `settled_to` is settled.
    pub(super) fn gate(&mut self, settled_to: u64, now: Instant) -> Gate {
        let since = *self.since.get_or_insert(now);
        match self.probe {
            Some(_) if !self.recorded => return Gate::UpTo(settled_to),
            Some((_, last)) if settled_to < last => return Gate::UpTo(last),
            _ => {}
        }
        self.probe = None;
        self.trial = false;
        if settled_to >= self.suspects_to {
            return Gate::Open;
        }
        if let Some(alibi) = self.alibi
            && now < since + alibi
        {
            return Gate::NotBefore(since + alibi);
        }
        self.trial = self.alibi.take().is_some();
        let lived = i64::try_from(now.duration_since(since).as_micros()).unwrap_or(i64::MAX);
        self.probed = self.started.saturating_add(lived);
        if settled_to >= self.narrow_to {
            self.size = LARGEST;
        }
        self.probe = Some((settled_to + 1, self.suspects_to.min(settled_to + self.size)));
        self.recorded = false;
        Gate::Record
    }

    /// Whether the probe under way has reached the disk. If not, it is not begun.
    pub(super) fn set_recorded(&mut self, recorded: bool) {
        self.recorded = recorded;
        if !recorded {
            self.probe = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const MAX_ATTEMPTS: u32 = 5;

    /// What a process is at.
    enum Moment {
        /// It waits with nothing out before a trial.
        Alibi,
        /// It has the suspects from the first to the last out.
        Out(u64, u64),
    }

    /// Runs processes until the suspects are gone. `dies` says whether a process dies at a moment.
    fn run(suspects: u64, mut dies: impl FnMut(Moment) -> bool) -> (BTreeSet<u64>, u32) {
        let (mut settled_to, mut unclean, mut deaths) = (0, SUSPICIOUS_STARTS, 0);
        let mut now = Instant::now();
        let (mut stored, mut failures, mut dead) = (None, BTreeMap::new(), BTreeSet::new());
        loop {
            assert!(deaths < 10_000, "no end");
            let start = Start { unclean, at: i64::from(deaths) * 10_000 };
            let (state, killer) = Probation::start(stored, start, settled_to, suspects);
            if let Some(seq) = killer {
                let count = failures.entry(seq).or_insert(0);
                *count += 1;
                if *count >= MAX_ATTEMPTS {
                    dead.insert(seq);
                    settled_to = settled_to.max(seq);
                }
            }
            let Some(mut state) = state else { return (dead, deaths) };
            stored = Some(reopened(&state));
            loop {
                match state.gate(settled_to, now) {
                    Gate::Open => return (dead, deaths),
                    Gate::Record => {
                        assert_eq!(
                            state.gate(settled_to, now),
                            Gate::UpTo(settled_to),
                            "handed out before recorded"
                        );
                        stored = Some(reopened(&state));
                        state.set_recorded(true);
                    }
                    Gate::NotBefore(time) => {
                        assert!(time > now);
                        if dies(Moment::Alibi) {
                            break;
                        }
                        now = time;
                    }
                    Gate::UpTo(last) => {
                        if dies(Moment::Out(settled_to + 1, last)) {
                            break;
                        }
                        settled_to = last;
                    }
                }
            }
            deaths += 1;
            unclean += 1;
        }
    }

    fn reopened(state: &Probation) -> Probation {
        serde_json::from_str(&serde_json::to_string(state).unwrap()).unwrap()
    }

    proptest! {
        #[test]
        fn exactly_the_messages_that_kill_are_given_up(
            suspects in 1_u64..5_000, killers in prop::collection::btree_set(1_u64..5_000, 0..4),
        ) {
            let killers: BTreeSet<u64> = killers.into_iter().filter(|seq| *seq <= suspects).collect();
            let (dead, deaths) = run(suspects, |moment| match moment {
                Moment::Alibi => false,
                Moment::Out(first, last) => killers.range(first..=last).next().is_some(),
            });
            prop_assert_eq!(&dead, &killers);
            prop_assert!(deaths <= 10 * u32::try_from(killers.len()).unwrap(), "{} deaths", deaths);
        }
    }

    #[test]
    fn kills_from_outside_give_up_no_innocent_message() {
        let mut kills = 0;
        let (dead, _) = run(3_000, |_| {
            kills += 1;
            kills % 3 != 0
        });
        assert!(dead.is_empty(), "{dead:?}");
    }

    #[test]
    fn an_innocent_message_is_not_given_up_when_the_process_dies_whatever_it_does_again_and_again() {
        let mut kills = 0;
        let (dead, deaths) = run(3_000, |_| {
            kills += 1;
            kills < 2_000
        });
        assert!(dead.is_empty() && deaths == 1_999, "{dead:?} after {deaths} deaths");
    }

    #[test]
    fn a_process_that_dies_before_it_hands_anything_out_counts_against_nobody() {
        let at = |n: i64| Start { unclean: SUSPICIOUS_STARTS, at: n * 10_000 };
        let stored = Probation { size: 1, probe: Some((7, 7)), trial: true, ..Probation::new(100, 0) };
        let (first, killer) = Probation::start(Some(stored), at(1), 6, 100);
        assert_eq!(killer, Some(7));
        let (_, killer) = Probation::start(first.as_ref().map(reopened), at(2), 6, 100);
        assert_eq!(killer, None);
    }

    #[test]
    fn nothing_is_suspected_after_a_clean_end_or_a_single_kill() {
        let after = |unclean| Start { unclean, at: 0 };
        assert_eq!(Probation::start(None, after(0), 0, 100), (None, None));
        assert_eq!(Probation::start(None, after(SUSPICIOUS_STARTS - 1), 0, 100), (None, None));
        assert_eq!(Probation::start(None, after(SUSPICIOUS_STARTS), 100, 100), (None, None));
    }
}

//! Finding the message that kills the process: pure state.
//!
//! After the third unclean start in a row, everything a subscription may have handed out before is suspect. Suspects
//! are handed out in probes, each written down before and waited for until it is settled. A probe during which the
//! process dies is divided by eight at the next start; a probe of a single message that dies counts one failure for
//! that message. So the one at fault reaches the dead letters, and a process that is killed from outside, however
//! often, costs an innocent message a failure only when it happens to be probed alone at that moment.

use serde::{Deserialize, Serialize};

/// Unclean starts in a row from which on messages are suspected.
pub(super) const SUSPICIOUS_STARTS: u32 = 3;
/// Suspects in the first probe.
const LARGEST: u64 = 1_024;
/// What a probe that died is divided by.
const DIVISOR: u64 = 8;

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
    /// Whether that probe is on the disk.
    #[serde(skip)]
    recorded: bool,
}

/// What may be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// Messages up to this number.
    UpTo(u64),
    /// Nothing new before the state is written down, which [`Probation::set_recorded`] reports.
    Record,
    /// Everything; no suspect is left.
    Open,
}

impl Probation {
    /// The state after a start with `unclean` unclean starts in a row, and the message to count a failure for.
    ///
    /// `settled_to` is the subscription's cursor, `delivered_to` the highest number that may have been handed out.
    pub(super) fn start(
        stored: Option<Self>,
        unclean: u32,
        settled_to: u64,
        delivered_to: u64,
    ) -> (Option<Self>, Option<u64>) {
        let Some(mut state) = stored else {
            let suspicious = unclean >= SUSPICIOUS_STARTS && settled_to < delivered_to;
            let fresh =
                Self { suspects_to: delivered_to, size: LARGEST, narrow_to: 0, probe: None, recorded: false };
            return (suspicious.then_some(fresh), None);
        };
        let probe = state.probe.take().filter(|_| unclean > 0);
        let killer = probe.filter(|(first, last)| first == last).map(|(first, _)| first);
        if let Some((first, last)) = probe {
            state.size = ((last - first + 1) / DIVISOR).max(1);
            state.narrow_to = last;
        }
        let over = settled_to >= state.suspects_to;
        ((!over).then_some(state), killer)
    }

    /// What may be handed out while everything up to `settled_to` is settled.
    pub(super) fn gate(&mut self, settled_to: u64) -> Gate {
        match self.probe {
            Some(_) if !self.recorded => return Gate::UpTo(settled_to),
            Some((_, last)) if settled_to < last => return Gate::UpTo(last),
            _ => {}
        }
        self.probe = None;
        if settled_to >= self.suspects_to {
            return Gate::Open;
        }
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

    /// Runs processes until the suspects are gone. `dies` says whether a process dies on being handed this probe.
    fn run(suspects: u64, mut dies: impl FnMut(u64, u64) -> bool) -> (BTreeSet<u64>, u32) {
        let (mut settled_to, mut unclean, mut deaths) = (0, SUSPICIOUS_STARTS, 0);
        let (mut stored, mut failures, mut dead) = (None, BTreeMap::new(), BTreeSet::new());
        loop {
            assert!(deaths < 10_000, "no end");
            let (state, killer) = Probation::start(stored, unclean, settled_to, suspects);
            if let Some(seq) = killer {
                let count = failures.entry(seq).or_insert(0);
                *count += 1;
                if *count >= MAX_ATTEMPTS {
                    dead.insert(seq);
                    settled_to = settled_to.max(seq);
                }
            }
            let Some(mut state) = state else { return (dead, deaths) };
            loop {
                match state.gate(settled_to) {
                    Gate::Open => return (dead, deaths),
                    Gate::Record => {
                        assert_eq!(
                            state.gate(settled_to),
                            Gate::UpTo(settled_to),
                            "handed out before recorded"
                        );
                        state.set_recorded(true);
                    }
                    Gate::UpTo(last) => {
                        if dies(settled_to + 1, last) {
                            break;
                        }
                        settled_to = last;
                    }
                }
            }
            deaths += 1;
            unclean += 1;
            let text = serde_json::to_string(&state).unwrap();
            stored = Some(serde_json::from_str(&text).unwrap());
        }
    }

    proptest! {
        #[test]
        fn exactly_the_messages_that_kill_are_given_up(
            suspects in 1_u64..5_000, killers in prop::collection::btree_set(1_u64..5_000, 0..4),
        ) {
            let killers: BTreeSet<u64> = killers.into_iter().filter(|seq| *seq <= suspects).collect();
            let alive = std::cell::RefCell::new(BTreeMap::new());
            let (dead, deaths) = run(suspects, |first, last| match killers.range(first..=last).next() {
                None => false,
                Some(seq) if first == last => {
                    let mut alive = alive.borrow_mut();
                    *alive.entry(*seq).or_insert(0) += 1;
                    true
                }
                Some(_) => true,
            });
            prop_assert_eq!(&dead, &killers);
            prop_assert!(deaths <= 9 * u32::try_from(killers.len()).unwrap(), "{} deaths", deaths);
        }
    }

    #[test]
    fn kills_from_outside_give_up_no_innocent_message() {
        let mut kills = 0;
        let (dead, _) = run(3_000, |_, _| {
            kills += 1;
            kills % 3 != 0
        });
        assert!(dead.is_empty(), "{dead:?}");
    }

    #[test]
    fn nothing_is_suspected_after_a_clean_end_or_a_single_kill() {
        assert_eq!(Probation::start(None, 0, 0, 100), (None, None));
        assert_eq!(Probation::start(None, SUSPICIOUS_STARTS - 1, 0, 100), (None, None));
        assert_eq!(Probation::start(None, SUSPICIOUS_STARTS, 100, 100), (None, None));
    }
}

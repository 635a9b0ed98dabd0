//! When to try again and who is at fault, as pure functions.

use std::time::Duration;

/// How a service repeats what failed for a passing reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The first delay.
    pub base: Duration,
    /// By how much each delay is longer than the one before.
    pub factor: u32,
    /// The longest delay.
    pub max: Duration,
    /// Repeated tries of a single message before the service asks whether the message is at fault.
    pub tries: u32,
    /// Seed of the jitter. Processes that share a sink should have different seeds.
    pub seed: u64,
}

impl Default for RetryPolicy {
    /// 100 ms doubling to 30 s; four tries, so that a passing fault of about a second costs no delivery attempt.
    fn default() -> Self {
        Self { base: Duration::from_millis(100), factor: 2, max: Duration::from_secs(30), tries: 4, seed: 0 }
    }
}

impl RetryPolicy {
    /// A sequence of delays; different `stream`s have different jitter.
    #[must_use]
    pub fn backoff(&self, stream: u64) -> Backoff {
        Backoff { policy: self.clone(), tries: 0, random: self.seed ^ stream.rotate_left(32) }
    }
}

/// A sequence of growing delays with jitter.
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: RetryPolicy,
    tries: u32,
    random: u64,
}

impl Backoff {
    /// The next delay: between half and all of `base * factor^n`, at most `max`.
    pub fn next_delay(&mut self) -> Duration {
        let growth = self.policy.factor.max(1).saturating_pow(self.tries);
        self.tries = self.tries.saturating_add(1);
        let whole = self.policy.base.saturating_mul(growth).min(self.policy.max);
        let half = whole / 2;
        let range = u64::try_from((whole - half).as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(self.next_random() % range.saturating_add(1).max(1))
    }

    /// How many delays were taken.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): jitter needs no better generator.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

/// What a single message's transient failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Too early to say: try again.
    TryAgain,
    /// Nothing has succeeded since it first failed, so the sink is at fault: try again, and say so.
    Outage,
    /// The same for many tries: a batch is given back, so that others get its place. Else a few messages at fault,
    /// each alone with a worker, would look like an outage for ever, since nothing else could succeed.
    GiveBack,
    /// Others succeeded meanwhile, so the message is at fault.
    Blame,
}

/// Judges a message that failed again after `tries` repeated tries. `others_succeeded`: the service had a success
/// since this message first failed.
pub(crate) fn judge(policy: &RetryPolicy, tries: u32, others_succeeded: bool) -> Judgement {
    let many = policy.tries.saturating_mul(2).max(1);
    match (tries >= policy.tries, others_succeeded) {
        (false, _) => Judgement::TryAgain,
        (true, true) => Judgement::Blame,
        (true, false) if tries < many => Judgement::Outage,
        (true, false) => Judgement::GiveBack,
    }
}

/// Whether a message at fault has used up its deliveries. Zero means that it never has.
pub(crate) fn is_exhausted(attempt: u32, max_attempts: u32) -> bool {
    max_attempts > 0 && attempt >= max_attempts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delays_grow_by_the_factor_up_to_the_maximum_and_are_never_less_than_half(
            base in 0u64..5_000, factor in 0u32..5, max in 0u64..60_000, seed: u64, stream: u64,
        ) {
            let policy = RetryPolicy {
                base: Duration::from_millis(base), factor, max: Duration::from_millis(max), tries: 3, seed,
            };
            let mut backoff = policy.backoff(stream);
            let mut same = policy.backoff(stream);
            let mut whole = Duration::from_millis(base).min(policy.max);
            for n in 0..80 {
                let delay = backoff.next_delay();
                prop_assert!(delay >= whole / 2 && delay <= whole, "delay {n} is {delay:?} of {whole:?}");
                prop_assert_eq!(delay, same.next_delay());
                whole = whole.saturating_mul(factor.max(1)).min(policy.max);
            }
        }
    }

    #[test]
    fn a_message_is_blamed_only_after_its_tries_and_only_when_others_succeeded() {
        let policy = RetryPolicy { tries: 2, ..RetryPolicy::default() };
        assert_eq!(judge(&policy, 1, true), Judgement::TryAgain);
        assert_eq!(judge(&policy, 2, false), Judgement::Outage);
        assert_eq!(judge(&policy, 3, false), Judgement::Outage);
        assert_eq!(judge(&policy, 4, false), Judgement::GiveBack);
        assert_eq!(judge(&policy, 2, true), Judgement::Blame);
    }

    #[test]
    fn a_source_that_does_not_count_never_exhausts_a_message() {
        assert!(!is_exhausted(1, 5) && is_exhausted(5, 5) && is_exhausted(6, 5) && !is_exhausted(1_000, 0));
    }
}

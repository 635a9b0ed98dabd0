//! The pauses between attempts to connect.

use std::time::Duration;

/// A connection that held this long ends a row of failures.
const STABLE: Duration = Duration::from_secs(30);

/// Pauses that double from a shortest to a longest one; each is shortened at random by up to a half, so that many
/// clients that lost the same broker do not return in step.
#[derive(Debug)]
pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: u64,
}

impl Backoff {
    pub(super) fn new(min: Duration, max: Duration, seed: u64) -> Self {
        Self { min, max, next: min, random: seed }
    }

    /// The pause before the next attempt, after a connection that held for `held` (zero if there was none). A
    /// connection that was made and soon lost again does not end the row: a packet that breaks it each time, or a
    /// second client with the same id, would make it spin.
    pub(super) fn pause(&mut self, held: Duration) -> Duration {
        if held >= STABLE {
            self.next = self.min;
        }
        let full = self.next;
        self.next = full.saturating_mul(2).min(self.max);
        full.mul_f64(1.0 - self.fraction() / 2.0)
    }

    /// Evenly in 0..1 (SplitMix64, Steele, Lea and Flood 2014).
    fn fraction(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        let high = u32::try_from(mixed >> 32).unwrap_or(0);
        f64::from(high) / (f64::from(u32::MAX) + 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_longest_and_start_again_only_after_a_stable_connection() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(120));
        let mut backoff = Backoff::new(min, max, 7);
        let mut full = min;
        for _ in 0..12 {
            let pause = backoff.pause(Duration::from_secs(3));
            assert!(pause <= full && pause >= full / 2, "{pause:?} of {full:?}");
            full = (full * 2).min(max);
        }
        assert!(backoff.pause(STABLE) <= min);
    }
}

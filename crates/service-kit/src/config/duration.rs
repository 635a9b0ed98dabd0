//! Lengths of time as people write them.

use super::units::{UnitError, split_number, written_as_text};
use std::fmt;
use std::str::FromStr;
use std::time::Duration as StdDuration;

/// Units from the largest to the smallest, in microseconds.
const UNITS: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// The format name in the JSON Schema.
pub(super) const FORMAT: &str = "millstream-duration";

/// A length of time, written with its unit: `250ms`, `5s`, `1m30s`, `2h`, `7d`. Resolution: one microsecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(StdDuration);

impl Duration {
    /// No time at all, `0s`.
    pub const ZERO: Self = Self(StdDuration::ZERO);

    /// A number of milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(StdDuration::from_millis(millis))
    }

    /// A number of seconds.
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        Self(StdDuration::from_secs(seconds))
    }

    /// A number of minutes.
    #[must_use]
    pub const fn from_mins(minutes: u64) -> Self {
        Self(StdDuration::from_secs(minutes * 60))
    }

    /// A number of hours.
    #[must_use]
    pub const fn from_hours(hours: u64) -> Self {
        Self(StdDuration::from_secs(hours * 3_600))
    }

    /// The standard library's form.
    #[must_use]
    pub const fn get(self) -> StdDuration {
        self.0
    }

    /// Whether it is `0s`.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl From<Duration> for StdDuration {
    fn from(value: Duration) -> Self {
        value.0
    }
}

/// Cuts off what is finer than a microsecond and clamps at 2^64 - 1 microseconds (584,000 years).
impl From<StdDuration> for Duration {
    fn from(value: StdDuration) -> Self {
        Self(StdDuration::from_micros(u64::try_from(value.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// The shortest exact form, largest unit first: `1m30s`.
impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str("0s");
        }
        let mut rest = self.0.as_micros();
        for (unit, micros) in UNITS {
            let count = rest / u128::from(micros);
            rest %= u128::from(micros);
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for Duration {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refuse = |why: &str| UnitError::new(format!("{why}; write it like 250ms, 5s, 1m30s, 2h or 7d"));
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(refuse("a duration is missing"));
        }
        let mut total: u64 = 0;
        let mut units_left = &UNITS[..];
        while !rest.is_empty() {
            let Some((number, tail)) = split_number(rest)? else {
                return Err(refuse("not a duration"));
            };
            let unit_end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            if unit.is_empty() {
                let hint =
                    if tail.is_empty() { format!(" (did you mean {number}s?)") } else { String::new() };
                return Err(refuse(&format!("a duration needs a unit{hint}")));
            }
            let Some(position) = units_left.iter().position(|(name, _)| *name == unit) else {
                return Err(refuse(&unit_problem(unit)));
            };
            total = number
                .checked_mul(units_left[position].1)
                .and_then(|micros| total.checked_add(micros))
                .ok_or_else(|| refuse("longer than can be represented"))?;
            units_left = &units_left[position + 1..];
            rest = tail;
        }
        Ok(Self(StdDuration::from_micros(total)))
    }
}

fn unit_problem(unit: &str) -> String {
    if UNITS.iter().any(|(name, _)| *name == unit) {
        format!("the unit {unit:?} stands behind a smaller one or twice")
    } else {
        format!("unknown unit {unit:?} (known: d, h, m, s, ms, us)")
    }
}

written_as_text!(
    Duration,
    "format": FORMAT,
    "pattern": "^([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?([0-9]+us)?$",
    "minLength": 2,
    "examples": ["250ms", "5s", "1m30s", "2h"],
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, millis) in [
            ("5s", 5_000),
            ("1m30s", 90_000),
            ("250ms", 250),
            ("2h", 7_200_000),
            ("0s", 0),
            ("1d1ms", 86_400_001),
        ] {
            assert_eq!(text.parse::<Duration>().unwrap(), Duration::from_millis(millis), "{text}");
        }
    }

    #[test]
    fn a_refused_duration_says_what_would_be_right() {
        for (text, word) in [
            ("90", "did you mean 90s?"),
            ("1.5s", "whole number"),
            ("5 parsecs", "needs a unit"),
            ("5x", "unknown unit \"x\""),
            ("30s1m", "behind a smaller one"),
            ("5s5s", "twice"),
            ("-5s", "not a duration"),
            ("", "missing"),
            ("99999999999999999999s", "too large"),
            ("999999999999999d", "longer than"),
        ] {
            let error = text.parse::<Duration>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_duration_reads_back_as_the_same(micros in any::<u64>()) {
            let duration = Duration::from(StdDuration::from_micros(micros));
            prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in ".{0,24}") {
            let _ = text.parse::<Duration>();
        }
    }
}

//! How fast recordings are played.

use crate::pointer::{Pointers, Scalar};
use messagepipeline::Timestamp;
use std::str::FromStr;
use std::time::Duration;

/// Where a record's own time is looked for unless said otherwise.
pub const DEFAULT_TIME_POINTERS: &str = "/_timestamp,/timestamp,/time,/ts";

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rate {
    /// As fast as the broker takes it.
    Max,
    /// So many messages per second.
    PerSecond(f64),
    /// By the records' own times, so many times as fast as they were.
    Times(f64),
}

/// A text that is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no rate; write `max`, messages per second as in `500/s`, or a multiple of the records' own speed as in `60x`"
)]
pub struct RateError(String);

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let wrong = || RateError(text.to_owned());
        if text == "max" {
            return Ok(Self::Max);
        }
        let (number, rate): (&str, fn(f64) -> Self) = if let Some(number) = text.strip_suffix("/s") {
            (number, Self::PerSecond)
        } else {
            (text.strip_suffix('x').ok_or_else(wrong)?, Self::Times)
        };
        if !number.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(wrong());
        }
        let number: f64 = number.parse().map_err(|_| wrong())?;
        // Beyond a nanosecond per message, or slower than a message in a day, it is a slip of the hand.
        if !(1e-5..=1e9).contains(&number) {
            return Err(wrong());
        }
        Ok(rate(number))
    }
}

/// Says when each message is due. It reads no clock: it answers with the time since the start.
#[derive(Clone, Debug)]
pub struct Pacer {
    rate: Rate,
    given: u64,
    /// When the newest message is due; nothing is due before it, so that order is kept.
    latest: Duration,
    /// The record time from which this recording counts, and when that is.
    base: Option<(Timestamp, Duration)>,
}

impl Pacer {
    /// A pacer at its start.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, given: 0, latest: Duration::ZERO, base: None }
    }

    /// Whether [`Pacer::due`] wants to know the records' own times.
    #[must_use]
    pub fn needs_record_times(&self) -> bool {
        matches!(self.rate, Rate::Times(_))
    }

    /// Another recording begins: its first record follows the last one of the recording before at once, whatever
    /// years lie between them.
    pub fn begin_recording(&mut self) {
        self.base = None;
    }

    /// When the next message is due, counted from the start. A record without a time, or with one before its
    /// predecessor's, is due together with its predecessor.
    pub fn due(&mut self, record_time: Option<Timestamp>) -> Duration {
        let due = match self.rate {
            Rate::Max => Duration::ZERO,
            Rate::PerSecond(rate) => seconds(self.given, rate),
            Rate::Times(factor) => self.by_record_time(record_time, factor),
        };
        self.given += 1;
        self.latest = self.latest.max(due);
        self.latest
    }

    fn by_record_time(&mut self, record_time: Option<Timestamp>, factor: f64) -> Duration {
        let Some(time) = record_time else { return self.latest };
        let (first, start) = *self.base.get_or_insert((time, self.latest));
        // Saturates: a broken time far in the future must not end the program.
        let offset = Duration::try_from_secs_f64(time.since(first).as_secs_f64() / factor);
        start.saturating_add(offset.unwrap_or(Duration::MAX))
    }
}

#[allow(clippy::cast_precision_loss, reason = "2^53 messages are never reached")]
fn seconds(messages: u64, rate: f64) -> Duration {
    Duration::try_from_secs_f64(messages as f64 / rate).unwrap_or(Duration::MAX)
}

/// The record's own time: RFC 3339, or a number taken as seconds, milliseconds or microseconds by its size.
#[must_use]
pub fn record_time(pointers: &Pointers, line: &[u8]) -> Option<Timestamp> {
    match pointers.find(std::str::from_utf8(line).ok()?)? {
        Scalar::Text(text) => text.parse().ok(),
        Scalar::Number(text) => time_from_number(text.parse().ok()?),
    }
}

/// Below 10^11 (the year 5138) it is seconds, below 10^14 milliseconds, else microseconds.
fn time_from_number(number: f64) -> Option<Timestamp> {
    let micros = match number.abs() {
        size if size < 1e11 => number * 1e6,
        size if size < 1e14 => number * 1e3,
        _ => number,
    };
    #[allow(clippy::cast_possible_truncation, reason = "the range was checked")]
    (micros.abs() < 9.2e18).then(|| Timestamp::from_micros(micros.round() as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp::from_millis(seconds * 1000))
    }

    #[test]
    fn rates_are_read_as_people_write_them() {
        assert_eq!("max".parse(), Ok(Rate::Max));
        assert_eq!("500/s".parse(), Ok(Rate::PerSecond(500.0)));
        assert_eq!("0.5/s".parse(), Ok(Rate::PerSecond(0.5)));
        assert_eq!("60x".parse(), Ok(Rate::Times(60.0)));
        for wrong in ["", "fast", "500", "0/s", "-1x", "x", "/s", "infx", "1e99/s", "NaNx", "500 /s"] {
            let error = wrong.parse::<Rate>().unwrap_err().to_string();
            assert!(error.contains("`500/s`"), "{error}");
        }
    }

    #[test]
    fn messages_per_second_are_spread_evenly() {
        let mut pacer = Pacer::new(Rate::PerSecond(4.0));
        let due: Vec<_> = (0..5).map(|_| pacer.due(None).as_millis()).collect();
        assert_eq!(due, [0, 250, 500, 750, 1000]);
    }

    #[test]
    fn records_keep_their_own_spacing_divided_by_the_factor() {
        let mut pacer = Pacer::new(Rate::Times(60.0));
        let times = [at(1000), at(1060), None, at(1030), at(1600)];
        let due: Vec<_> = times.into_iter().map(|time| pacer.due(time).as_secs()).collect();
        assert_eq!(due, [0, 1, 1, 1, 10]);
        pacer.begin_recording();
        assert_eq!(pacer.due(at(5)).as_secs(), 10);
        assert_eq!(pacer.due(at(65)).as_secs(), 11);
    }

    #[test]
    fn a_record_time_is_text_or_a_number_by_its_size() {
        let pointers = Pointers::parse(DEFAULT_TIME_POINTERS).unwrap();
        let expected = Some(Timestamp::from_micros(1_630_589_706_724_000));
        for line in [
            r#"{"_timestamp":1630589706724}"#,
            r#"{"timestamp":1630589706.724}"#,
            r#"{"ts":1630589706724000}"#,
            r#"{"time":"2021-09-02T13:35:06.724Z"}"#,
            r#"{"_timestamp":null,"time":"2021-09-02T15:35:06.724+02:00"}"#,
        ] {
            assert_eq!(record_time(&pointers, line.as_bytes()), expected, "{line}");
        }
        for line in ["x", "{}", r#"{"time":"yesterday"}"#, r#"{"ts":1e300}"#] {
            assert_eq!(record_time(&pointers, line.as_bytes()), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn what_is_due_never_goes_back(rate in 0..3, times in proptest::collection::vec(any::<Option<i64>>(), 1..30)) {
            let mut pacer = Pacer::new([Rate::Max, Rate::PerSecond(7.0), Rate::Times(1e-5)][rate as usize]);
            let mut latest = Duration::ZERO;
            for time in times {
                let due = pacer.due(time.map(Timestamp::from_micros));
                prop_assert!(due >= latest);
                latest = due;
            }
        }
    }
}

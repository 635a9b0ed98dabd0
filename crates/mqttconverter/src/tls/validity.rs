//! From when to when a certificate is valid. The TLS library judges the certificates of others by it and does not tell
//! it about our own, so the two dates are read here, without a parser for all the rest of X.509.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use messagepipeline::Timestamp;
use std::time::Duration;

/// Before its end a certificate is worth a warning for this long. Renewal is usual a third of the lifetime before, which
/// is 30 days for the common 90.
const NOTICE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// When a certificate is valid (RFC 5280, section 4.1.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: Timestamp,
    /// The last moment.
    pub not_after: Timestamp,
}

impl Validity {
    /// Reads it from a certificate in DER; nothing if that is no certificate.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (certificate, _) = element(certificate, SEQUENCE)?;
        let (mut fields, _) = element(certificate, SEQUENCE)?;
        if let Some((_version, rest)) = element(fields, VERSION) {
            fields = rest;
        }
        // Serial number, signature algorithm and issuer stand before it.
        for tag in [INTEGER, SEQUENCE, SEQUENCE] {
            fields = element(fields, tag)?.1;
        }
        let (dates, _) = element(fields, SEQUENCE)?;
        let (not_before, dates) = date(dates)?;
        let (not_after, _) = date(dates)?;
        Some(Self { not_before, not_after })
    }

    /// The time in which both are valid.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            not_before: self.not_before.max(other.not_before),
            not_after: self.not_after.min(other.not_after),
        }
    }

    /// What a person should know about it at `now`, if anything: it has ended, ends within two weeks, or has not begun.
    #[must_use]
    pub fn concern(self, now: Timestamp) -> Option<String> {
        let Self { not_before, not_after } = self;
        if now > not_after {
            return Some(format!("has expired on {}; clients that verify it refuse it", not_after.to_jiff()));
        }
        if now < not_before {
            return Some(format!(
                "is not valid before {}; clients that verify it refuse it",
                not_before.to_jiff()
            ));
        }
        let left = not_after.since(now);
        let days = left.as_secs() / (24 * 60 * 60);
        (left < NOTICE).then(|| format!("expires on {}, in {days} days; renew it", not_after.to_jiff()))
    }
}

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xA0;

/// The content of the first element, if it has this tag, and what stands behind it (X.690, sections 8.1.2 and 8.1.3).
fn element(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (first, rest) = input.split_first()?;
    let (&length, mut rest) = rest.split_first()?;
    if *first != tag {
        return None;
    }
    let mut size = usize::from(length);
    if length >= 0x80 {
        let (bytes, behind) = rest.split_at_checked(usize::from(length & 0x7F))?;
        if bytes.len() > 4 {
            return None;
        }
        size = bytes.iter().fold(0, |size, byte| size << 8 | usize::from(*byte));
        rest = behind;
    }
    rest.split_at_checked(size)
}

/// A date and what stands behind it. Years of two digits mean 1950 to 2049.
fn date(input: &[u8]) -> Option<(Timestamp, &[u8])> {
    let (text, century, rest) = match element(input, UTC_TIME) {
        Some((text, rest)) => (text, if text.first()? < &b'5' { "20" } else { "19" }, rest),
        None => element(input, GENERALIZED_TIME).map(|(text, rest)| (text, "", rest))?,
    };
    let text = format!("{century}{}", std::str::from_utf8(text).ok()?);
    let at = DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
    let at = at.to_zoned(TimeZone::UTC).ok()?.timestamp();
    Some((Timestamp::from(at), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn certificate(from: (i32, u8, u8), to: (i32, u8, u8)) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(to.0, to.1, to.2);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn at(text: &str) -> Timestamp {
        text.parse::<jiff::Timestamp>().unwrap().into()
    }

    #[test]
    fn the_dates_of_a_certificate_are_read_in_both_forms() {
        let read = Validity::of(&certificate((1999, 12, 31), (2055, 1, 2))).unwrap();
        assert_eq!(read.not_before, at("1999-12-31T00:00:00Z"));
        assert_eq!(read.not_after, at("2055-01-02T00:00:00Z"));
    }

    #[test]
    fn a_certificate_near_its_end_past_it_or_before_its_beginning_is_a_concern() {
        let validity =
            Validity { not_before: at("2026-01-01T00:00:00Z"), not_after: at("2026-06-30T00:00:00Z") };
        let concern = |now| validity.concern(at(now)).unwrap_or_default();
        assert_eq!(concern("2026-03-01T00:00:00Z"), "");
        assert_eq!(concern("2026-06-16T00:00:00Z"), "");
        assert_eq!(concern("2026-06-25T00:00:01Z"), "expires on 2026-06-30T00:00:00Z, in 4 days; renew it");
        assert!(concern("2026-06-30T00:00:01Z").starts_with("has expired on 2026-06-30"));
        assert!(concern("2025-12-31T23:59:59Z").starts_with("is not valid before 2026-01-01"));
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_is_read_or_not_and_never_panics(place in 0_usize..300, byte: u8, end in 0_usize..500) {
            let mut der = certificate((2020, 1, 1), (2030, 1, 1));
            der[place] = byte;
            der.truncate(end);
            let _ = Validity::of(&der);
        }
    }
}

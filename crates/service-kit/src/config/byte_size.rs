//! Numbers of bytes as people write them.

use super::units::{UnitError, split_number, written_as_text};
use std::fmt;
use std::str::FromStr;

/// Binary units (IEC 80000-13) and decimal ones (SI).
const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// The format name in the JSON Schema.
pub(super) const FORMAT: &str = "millstream-byte-size";

/// A number of bytes, written with its unit: `64MiB` (binary), `10MB` (decimal), `512KiB`, `100B`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// A number of bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A number of kibibytes (1,024 bytes).
    #[must_use]
    pub const fn from_kib(kib: u64) -> Self {
        Self(kib << 10)
    }

    /// A number of mebibytes (1,048,576 bytes).
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// A number of gibibytes (1,073,741,824 bytes).
    #[must_use]
    pub const fn from_gib(gib: u64) -> Self {
        Self(gib << 30)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes as a size in memory; the largest one where the machine's word is shorter.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// The exact form with the smallest number: `64MiB`, `10MB`.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().filter(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        let (unit, factor) = exact.max_by_key(|(_, factor)| *factor).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / factor)
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refuse = |why: &str| UnitError::new(format!("{why}; write it like 64MiB, 10MB or 512KiB"));
        let text = text.trim();
        if text.is_empty() {
            return Err(refuse("a size is missing"));
        }
        let Some((number, unit)) = split_number(text)? else {
            return Err(refuse("not a size"));
        };
        let unit = unit.trim_start();
        if unit.is_empty() {
            return Err(refuse(&format!("a size needs a unit (did you mean {number}B?)")));
        }
        let unit = if unit == "KB" { "kB" } else { unit };
        let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(refuse(&unknown_unit(number, unit)));
        };
        let bytes = number.checked_mul(*factor).ok_or_else(|| refuse("more than can be represented"))?;
        Ok(Self(bytes))
    }
}

fn unknown_unit(number: u64, unit: &str) -> String {
    let wanted = unit.to_ascii_lowercase();
    let near = UNITS.iter().find(|(name, _)| {
        let name = name.to_ascii_lowercase();
        name == wanted || name.strip_suffix('b') == Some(wanted.as_str())
    });
    match near {
        Some((name, _)) => format!("unknown unit {unit:?} (did you mean {number}{name}?)"),
        None => format!("unknown unit {unit:?} (known: B, KiB, MiB, GiB, TiB, kB, MB, GB, TB)"),
    }
}

written_as_text!(
    ByteSize,
    "format": FORMAT,
    "pattern": "^[0-9]+ *(TiB|TB|GiB|GB|MiB|MB|KiB|kB|KB|B)$",
    "examples": ["64MiB", "10MB", "512KiB"],
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        for (text, bytes) in
            [("64MiB", 64 << 20), ("10MB", 10_000_000), ("512KiB", 512 << 10), ("0B", 0), ("1 GiB", 1 << 30)]
        {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        assert_eq!(ByteSize::from_mib(64).to_string(), "64MiB");
        assert_eq!(ByteSize::from_bytes(10_000_000).to_string(), "10MB");
    }

    #[test]
    fn a_refused_size_says_what_would_be_right() {
        for (text, word) in [
            ("1024", "did you mean 1024B?"),
            ("1.5GiB", "whole number"),
            ("64mib", "did you mean 64MiB?"),
            ("64M", "did you mean 64MB?"),
            ("64 bananas", "unknown unit"),
            ("-1B", "not a size"),
            ("99999999999TiB", "more than"),
        ] {
            let error = text.parse::<ByteSize>().unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_printed_size_reads_back_as_the_same(bytes in any::<u64>(), shift in 0_u32..50) {
            let size = ByteSize::from_bytes(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }
    }
}

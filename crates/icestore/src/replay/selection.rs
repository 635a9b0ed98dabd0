//! Which part of an archive is replayed.

use crate::{BatchKey, Error, NameRange, Prefix};
use messagepipeline::{Message, Timestamp};
use std::fmt;
use std::str::FromStr;

/// Length of `YYYY/MM/DD`.
const DAY: usize = 10;

/// A day in UTC, written `2026-11-21`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(Timestamp);

impl Day {
    /// As the archive's folders say it: `2026/11/21`.
    fn folder(&self) -> String {
        BatchKey::new(self.0, None).to_string()
    }

    fn next(&self) -> Self {
        Self(self.0.plus(std::time::Duration::from_secs(24 * 60 * 60)))
    }
}

impl FromStr for Day {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::InvalidDay(text.to_owned());
        if text.len() != DAY {
            return Err(wrong());
        }
        format!("{text}T00:00:00Z").parse().map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.folder().replace('/', "-"))
    }
}

/// Which objects and messages are replayed. The default selects everything.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Folder of the archive below which all its objects lie.
    pub prefix: Prefix,
    /// The first day of first receipt.
    pub from: Option<Day>,
    /// The last day of first receipt.
    pub until: Option<Day>,
    /// Only these locations; empty: any, and messages without one.
    pub locations: Vec<String>,
    /// Only these devices; empty: any, and messages without one.
    pub devices: Vec<String>,
}

impl Selection {
    /// The names of its objects, and of others between them.
    pub(super) fn range(&self) -> NameRange {
        let prefix = self.prefix.to_string();
        let day = |day: Day| format!("{prefix}{}", day.folder());
        NameRange {
            from: self.from.clone().map(day).unwrap_or_default(),
            until: self.until.as_ref().map(Day::next).map(day).unwrap_or_default(),
            prefix: prefix.clone(),
        }
    }

    /// The day of the object `name`, as its folders say it; `None` for what is not the archive's.
    pub(super) fn day_of<'n>(&self, name: &'n str) -> Option<&'n str> {
        let prefix = self.prefix.to_string();
        let (day, rest) = name.strip_prefix(prefix.as_str())?.split_at_checked(DAY)?;
        let is_day = day.replace('/', "-").parse::<Day>().is_ok_and(|parsed| parsed.folder() == day);
        (is_day && rest.starts_with('/')).then_some(day)
    }

    /// Whether the object `name` of the archive can hold what is wanted.
    pub(super) fn wants(&self, name: &str) -> bool {
        if self.locations.is_empty() {
            return true;
        }
        let Some(day) = self.day_of(name) else { return false };
        let behind = &name[self.prefix.to_string().len() + day.len() + 1..];
        let folder = |location: &String| {
            let key = BatchKey::new(Timestamp::default(), Some(location));
            key.as_str()[DAY + 1..].to_owned()
        };
        match behind.split_once('/') {
            Some((location, _)) => self.locations.iter().any(|wanted| folder(wanted) == location),
            None => false,
        }
    }

    /// Whether `message` is wanted.
    pub(super) fn takes(&self, message: &Message) -> bool {
        let device = message.device_id();
        self.devices.is_empty() || self.devices.iter().any(|wanted| Some(wanted.as_str()) == device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_of_days_and_locations_finds_the_objects_that_the_archiver_names_so() {
        let selection = Selection {
            prefix: Prefix::parse("site/raw").unwrap(),
            from: Some("2024-02-28".parse().unwrap()),
            until: Some("2024-02-29".parse().unwrap()),
            locations: vec!["hall 1".to_owned()],
            devices: Vec::new(),
        };
        let range = selection.range();
        let wanted = |name: &str| range.holds(name) && selection.wants(name);
        for (key, expected) in [
            ("2024/02/27/hall%201", false),
            ("2024/02/28/hall%201", true),
            ("2024/02/29/hall%201", true),
            ("2024/02/29/hall", false),
            ("2024/02/29", false),
            ("2024/03/01/hall%201", false),
        ] {
            assert_eq!(wanted(&format!("site/raw/{key}/x.jsonl.gz")), expected, "{key}");
        }
        assert!(!wanted("other/2024/02/28/hall%201/x.jsonl.gz"));
        assert_eq!(selection.day_of("site/raw/2024/02/28/a/x.jsonl.gz"), Some("2024/02/28"));
        for foreign in ["site/raw/x.jsonl.gz", "site/raw/2024/02/30/x.jsonl.gz", "2024/02/28/x.jsonl.gz"] {
            assert_eq!(selection.day_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_day_is_written_as_people_write_it_or_refused() {
        assert_eq!("2024-02-29".parse::<Day>().unwrap().to_string(), "2024-02-29");
        for wrong in ["2023-02-29", "2024/02/29", "2024-2-9", "", "yesterday!"] {
            assert!(wrong.parse::<Day>().unwrap_err().to_string().contains("2026-11-21"), "{wrong}");
        }
    }
}

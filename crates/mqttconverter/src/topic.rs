//! Topic names and topic filters (MQTT 3.1.1 and 5, section 4.7).

use std::fmt;

/// The longest topic name or filter that MQTT can carry, in bytes (a two-byte length, section 1.5.4).
pub const MAX_TOPIC_BYTES: usize = 65_535;

/// Why a text is no topic name or no topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Nothing in it.
    #[error("is empty; a topic has at least one character")]
    Empty,
    /// More than [`MAX_TOPIC_BYTES`].
    #[error("is longer than 65,535 bytes")]
    TooLong,
    /// U+0000.
    #[error("contains the character U+0000")]
    Nul,
    /// `+` or `#` in a topic name.
    #[error("contains a wildcard (`+` or `#`); only filters may")]
    WildcardInName,
    /// `+` beside other characters.
    #[error("has a `+` that does not stand alone between slashes, as in `devices/+/up`")]
    PartialPlus,
    /// `#` anywhere but alone at the end.
    #[error("has a `#` that is not the whole last level, as in `devices/#`")]
    MisplacedHash,
    /// `$share/` without a group name and a filter.
    #[error("starts with `$share/` but is not of the form `$share/GROUP/FILTER`")]
    Share,
}

/// Checks a topic name, as a PUBLISH carries it.
///
/// # Errors
/// The first rule that `name` breaks.
pub fn validate_name(name: &str) -> Result<(), TopicError> {
    validate_text(name)?;
    if name.bytes().any(|byte| matches!(byte, b'+' | b'#')) {
        return Err(TopicError::WildcardInName);
    }
    Ok(())
}

fn validate_text(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > MAX_TOPIC_BYTES {
        return Err(TopicError::TooLong);
    }
    if text.bytes().any(|byte| byte == 0) {
        return Err(TopicError::Nul);
    }
    Ok(())
}

/// A valid topic filter, without or with the prefix of a shared subscription.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct TopicFilter {
    text: Box<str>,
    /// Where the filter proper starts: behind `$share/GROUP/`, or 0.
    start: usize,
}

impl TopicFilter {
    /// Reads a filter such as `devices/+/up`, `#` or `$share/group/devices/#`.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        validate_text(text)?;
        let start = share_prefix(text)?;
        let mut levels = text[start..].split('/').peekable();
        while let Some(level) = levels.next() {
            if level.contains('#') && (level != "#" || levels.peek().is_some()) {
                return Err(TopicError::MisplacedHash);
            }
            if level.contains('+') && level != "+" {
                return Err(TopicError::PartialPlus);
            }
        }
        Ok(Self { text: text.into(), start })
    }

    /// The text as it was given, with a `$share/GROUP/` if there is one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The filter that topics are compared with, without `$share/GROUP/`.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.text[self.start..]
    }

    /// Whether it names a shared subscription.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.start > 0
    }

    /// Whether messages of topic `name` match.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        // Section 4.7.2: a leading wildcard does not match topics that start with `$`.
        if name.starts_with('$') && self.pattern().starts_with(['+', '#']) {
            return false;
        }
        covers(self.pattern(), name)
    }

    /// Whether every topic that `other` matches is matched by this filter too.
    #[must_use]
    pub fn includes(&self, other: &Self) -> bool {
        if other.pattern().starts_with('$') && self.pattern().starts_with(['+', '#']) {
            return false;
        }
        covers(self.pattern(), other.pattern())
    }
}

/// Level by level; wildcards in `other` are covered only by the same or a wider wildcard, since `+` and `#` are
/// compared as texts unless the pattern's level is a wildcard itself.
fn covers(pattern: &str, other: &str) -> bool {
    let mut others = other.split('/');
    for level in pattern.split('/') {
        if level == "#" {
            return true;
        }
        match others.next() {
            Some("#") | None => return false,
            Some(_) if level == "+" => {}
            Some(other_level) if level == other_level => {}
            Some(_) => return false,
        }
    }
    others.next().is_none()
}

fn share_prefix(text: &str) -> Result<usize, TopicError> {
    let Some(rest) = text.strip_prefix("$share/") else { return Ok(0) };
    let (group, filter) = rest.split_once('/').ok_or(TopicError::Share)?;
    if group.is_empty() || group.contains(['+', '#']) || filter.is_empty() {
        return Err(TopicError::Share);
    }
    Ok(text.len() - filter.len())
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl std::str::FromStr for TopicFilter {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::parse(text).unwrap()
    }

    #[test]
    fn filters_match_as_the_specifications_examples_say() {
        for (pattern, name, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("sport/#", "sport", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/uptime", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/uptime", true),
            ("$share/group/devices/#", "devices/a/up", true),
            ("a/b", "A/b", false),
        ] {
            assert_eq!(filter(pattern).matches(name), expected, "{pattern} against {name}");
        }
    }

    #[test]
    fn what_is_no_filter_or_no_name_is_refused_with_its_rule() {
        assert_eq!(TopicFilter::parse(""), Err(TopicError::Empty));
        assert_eq!(TopicFilter::parse("a/#/b"), Err(TopicError::MisplacedHash));
        assert_eq!(TopicFilter::parse("a#"), Err(TopicError::MisplacedHash));
        assert_eq!(TopicFilter::parse("a/b+"), Err(TopicError::PartialPlus));
        assert_eq!(TopicFilter::parse("a\0b"), Err(TopicError::Nul));
        assert_eq!(TopicFilter::parse("$share/group"), Err(TopicError::Share));
        assert_eq!(TopicFilter::parse("$share//a"), Err(TopicError::Share));
        assert_eq!(validate_name("a/+"), Err(TopicError::WildcardInName));
        assert_eq!(validate_name(&"x".repeat(65_536)), Err(TopicError::TooLong));
        assert_eq!(validate_name("/"), Ok(()));
    }

    #[test]
    fn a_filter_includes_exactly_what_is_narrower() {
        assert!(filter("#").includes(&filter("a/+/b")));
        assert!(filter("a/+").includes(&filter("a/b")));
        assert!(filter("a/+").includes(&filter("a/+")));
        assert!(filter("a/#").includes(&filter("a")));
        assert!(!filter("a/+").includes(&filter("a/#")));
        assert!(!filter("a/b").includes(&filter("a/+")));
        assert!(!filter("#").includes(&filter("$SYS/a")));
    }

    proptest! {
        #[test]
        fn a_filter_that_includes_another_matches_all_that_the_other_matches(
            wide in "[ab+](/[ab+]){0,3}(/#)?", narrow in "[ab+](/[ab+]){0,3}(/#)?", name in "[ab](/[ab]){0,4}",
        ) {
            let (wide, narrow) = (filter(&wide), filter(&narrow));
            prop_assert!(!(wide.includes(&narrow) && narrow.matches(&name)) || wide.matches(&name));
        }
    }
}

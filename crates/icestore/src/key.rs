//! The batch key: which messages share an object, and in which folder it lies.

use crate::Error;
use messagepipeline::{Message, Timestamp, foreign_id};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// `YYYY/MM/DD` of the first receipt in UTC, and `/<location>` where the location is known. Cloning shares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchKey(Arc<str>);

impl BatchKey {
    /// The key of a message received at `received_at`, from `location` if it is known.
    #[must_use]
    pub fn new(received_at: Timestamp, location: Option<&str>) -> Self {
        let date = received_at.to_jiff().strftime("%Y/%m/%d");
        match location {
            Some(location) if !location.is_empty() => Self(format!("{date}/{}", segment(location)).into()),
            _ => Self(date.to_string().into()),
        }
    }

    /// The key as text; folders are separated by `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BatchKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Longest name of a location's folder, in bytes. File systems take 255.
const MAX_SEGMENT: usize = 180;

/// `text` as the name of one folder, different for different texts.
///
/// ASCII letters, digits, `-` and `_` stay; every other byte becomes `%XX`, so a name holds no separator, no dot
/// (no `..`, nothing hidden, nothing that looks like an object) and nothing that tools must quote. What gets too
/// long is cut and ends in `~` and a hash of the whole text; `~` occurs in no other name.
fn segment(text: &str) -> String {
    let mut name = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    if name.len() > MAX_SEGMENT {
        let hash = foreign_id("location", text).uuid().simple().to_string();
        name.truncate(MAX_SEGMENT - 1 - hash.len());
        name.push('~');
        name.push_str(&hash);
    }
    name
}

/// Where the archive's location comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KeyConfig {
    /// Where a message's location is looked for; the first source that has one wins. `enrichment:<name>`,
    /// `attribute:<name>`, or a JSON Pointer into the payload (what a device says of itself).
    pub location: Vec<String>,
}

impl Default for KeyConfig {
    fn default() -> Self {
        Self { location: default_locations() }
    }
}

/// The sources of the location when the configuration names none.
#[must_use]
pub fn default_locations() -> Vec<String> {
    vec!["enrichment:location_id".to_owned(), "attribute:location_id".to_owned()]
}

/// One place a location may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocationSource {
    /// A field that was looked up.
    Enrichment(String),
    /// A message attribute.
    Attribute(String),
    /// A JSON Pointer into the payload.
    Pointer(String),
}

impl LocationSource {
    /// Reads the form used in configuration.
    ///
    /// # Errors
    /// When it is none of the three forms.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let well_escaped = |pointer: &str| !pointer.replace("~0", "").replace("~1", "").contains('~');
        match text.split_once(':') {
            _ if text.starts_with('/') && well_escaped(text) => Ok(Self::Pointer(text.to_owned())),
            Some(("enrichment", name)) if !name.is_empty() => Ok(Self::Enrichment(name.to_owned())),
            Some(("attribute", name)) if !name.is_empty() => Ok(Self::Attribute(name.to_owned())),
            _ => Err(Error::InvalidSource(text.to_owned())),
        }
    }

    fn find<'m>(&self, message: &'m Message) -> Option<Cow<'m, str>> {
        match self {
            Self::Enrichment(name) => text_of(message.enrichment.get(name)?),
            Self::Attribute(name) => message.attributes.get(name).map(Cow::Borrowed),
            Self::Pointer(pointer) => {
                let document: serde_json::Value = serde_json::from_slice(&message.payload).ok()?;
                text_of(document.pointer(pointer)?).map(|text| Cow::Owned(text.into_owned()))
            }
        }
        .filter(|text| !text.is_empty())
    }
}

/// A location is a text or a number; anything else is none.
fn text_of(value: &serde_json::Value) -> Option<Cow<'_, str>> {
    match value {
        serde_json::Value::String(text) => Some(Cow::Borrowed(text)),
        serde_json::Value::Number(number) => Some(Cow::Owned(number.to_string())),
        _ => None,
    }
}

/// Checked sources in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocationSources(Vec<LocationSource>);

impl LocationSources {
    /// Checks the configuration.
    ///
    /// # Errors
    /// All sources that cannot be read.
    pub fn new(config: &KeyConfig) -> Result<Self, Vec<Error>> {
        let (mut sources, mut problems) = (Vec::new(), Vec::new());
        for text in &config.location {
            match LocationSource::parse(text) {
                Ok(source) => sources.push(source),
                Err(problem) => problems.push(problem),
            }
        }
        if problems.is_empty() { Ok(Self(sources)) } else { Err(problems) }
    }

    /// The location of `message`, as it stands there.
    #[must_use]
    pub fn find<'m>(&self, message: &'m Message) -> Option<Cow<'m, str>> {
        self.0.iter().find_map(|source| source.find(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::{Enrichment, IdGenerator};
    use proptest::prelude::*;

    fn message(enrichment: &str, attribute: Option<&str>, payload: &'static str) -> Message {
        let mut message = Message::new(IdGenerator::default().next_id(), payload, Timestamp::default());
        message.enrichment = Enrichment::from_text(enrichment).unwrap();
        message.attributes = attribute.map(|value| ("location_id", value)).into_iter().collect();
        message
    }

    #[test]
    fn the_key_is_the_utc_day_of_first_receipt_and_the_location() {
        let last_moment: Timestamp = "2024-03-01T01:59:59.999999+02:00".parse().unwrap();
        assert_eq!(BatchKey::new(last_moment, None).as_str(), "2024/02/29");
        assert_eq!(BatchKey::new(last_moment, Some("loc-a")).as_str(), "2024/02/29/loc-a");
        assert_eq!(BatchKey::new(last_moment, Some("")).as_str(), "2024/02/29");
    }

    #[test]
    fn the_location_comes_from_enrichment_then_attributes_then_the_payload_if_configured() {
        let sources = LocationSources::new(&KeyConfig::default()).unwrap();
        let find = |message: &Message| sources.find(message).map(Cow::into_owned);
        assert_eq!(find(&message(r#"{"location_id":"e"}"#, Some("a"), "")).as_deref(), Some("e"));
        assert_eq!(find(&message(r#"{"location_id":7}"#, None, "")).as_deref(), Some("7"));
        assert_eq!(find(&message(r#"{"category":"c"}"#, Some("a"), "")).as_deref(), Some("a"));
        assert_eq!(find(&message(r#"{"location_id":""}"#, Some("a"), "")).as_deref(), Some("a"));
        assert_eq!(find(&message("{}", None, r#"{"location_id":"p"}"#)), None);
        let config = KeyConfig { location: vec!["enrichment:site".into(), "/location_id".into()] };
        let sources = LocationSources::new(&config).unwrap();
        assert_eq!(sources.find(&message("{}", None, r#"{"location_id":"p"}"#)).as_deref(), Some("p"));
    }

    #[test]
    fn every_unreadable_source_is_reported() {
        let config =
            KeyConfig { location: ["location", "/a~2", "attribute:", "/ok"].map(str::to_owned).to_vec() };
        assert_eq!(LocationSources::new(&config).unwrap_err().len(), 3);
    }

    proptest! {
        #[test]
        fn a_location_is_one_harmless_folder_whatever_it_says(
            text in prop_oneof![".{1,300}", r"[./\\~%\x00]{1,9}", Just("../../x".to_owned()), Just("..".to_owned())],
        ) {
            let key = BatchKey::new(Timestamp::default(), Some(&text));
            let folder = key.as_str().strip_prefix("1970/01/01/").unwrap();
            prop_assert!(!folder.is_empty() && folder.len() <= MAX_SEGMENT);
            prop_assert!(folder.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_%~".contains(&b)), "{}", folder);
        }

        #[test]
        fn different_locations_never_share_a_folder(a in "[a%~/.]{1,4}|a{170,190}", b in "[a%~/.]{1,4}|a{170,190}") {
            let folder = |text: &str| BatchKey::new(Timestamp::default(), Some(text));
            prop_assert_eq!(folder(&a) == folder(&b), a == b);
        }
    }
}

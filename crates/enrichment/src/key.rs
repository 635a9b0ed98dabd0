//! Which device a message is from.

use messagepipeline::{Message, names};

/// One place where the look-up key may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// A message attribute of this name.
    Attribute(String),
    /// A field of this name in the enrichment data of an earlier stage; only a text counts.
    Enrichment(String),
}

/// Finds the look-up key of a message: the first of its sources that has a text that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyExtractor {
    sources: Vec<KeySource>,
}

impl KeyExtractor {
    /// Looks at `sources` in this order.
    #[must_use]
    pub fn new(sources: Vec<KeySource>) -> Self {
        Self { sources }
    }

    /// The key of `message`.
    #[must_use]
    pub fn key<'m>(&self, message: &'m Message) -> Option<&'m str> {
        let candidates = self.sources.iter().filter_map(|source| match source {
            KeySource::Attribute(name) => message.attributes.get(name),
            KeySource::Enrichment(field) => message.enrichment.get(field)?.as_str(),
        });
        candidates.into_iter().find(|key| !key.is_empty())
    }
}

impl Default for KeyExtractor {
    /// The attribute `device_id` that ingestion sets, then the names that other senders use: enrichment field
    /// `DeviceID`, attribute `deviceID`, attribute `uid`.
    fn default() -> Self {
        Self::new(vec![
            KeySource::Attribute(names::DEVICE_ID.to_owned()),
            KeySource::Enrichment("DeviceID".to_owned()),
            KeySource::Attribute("deviceID".to_owned()),
            KeySource::Attribute("uid".to_owned()),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::{Enrichment, IdGenerator, Timestamp};

    fn message(attributes: &[(&str, &str)], enrichment: &str) -> Message {
        let mut message = Message::new(IdGenerator::default().next_id(), "{}", Timestamp::default());
        message.attributes = attributes.iter().copied().collect();
        message.enrichment = Enrichment::from_text(enrichment).unwrap();
        message
    }

    #[test]
    fn the_first_source_that_has_a_text_gives_the_key() {
        let keys = KeyExtractor::default();
        let all = [("uid", "u"), ("deviceID", "d"), ("device_id", "own")];
        assert_eq!(keys.key(&message(&all, r#"{"DeviceID":"e"}"#)), Some("own"));
        assert_eq!(keys.key(&message(&all[..2], r#"{"DeviceID":"e"}"#)), Some("e"));
        assert_eq!(keys.key(&message(&all[..2], r#"{"DeviceID":17}"#)), Some("d"));
        assert_eq!(keys.key(&message(&[("device_id", ""), ("uid", "u")], "{}")), Some("u"));
        assert_eq!(keys.key(&message(&[("device_id", "")], "{}")), None);
    }

    #[test]
    fn the_order_is_configuration() {
        let field = KeySource::Enrichment("DeviceID".to_owned());
        let keys = KeyExtractor::new(vec![field, KeySource::Attribute("device_id".to_owned())]);
        let message = message(&[("device_id", "own")], r#"{"DeviceID":"e"}"#);
        assert_eq!(keys.key(&message), Some("e"));
    }
}

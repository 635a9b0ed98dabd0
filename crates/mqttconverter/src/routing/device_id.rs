//! Which device a message is from.

use super::pointer::{Payload, Pointer};
use super::{Mistake, usable_id};
use crate::topic::TopicFilter;
use messagepipeline::{Message, metric_names, names};
use std::borrow::Cow;

/// The level of a template that is the device id.
const PLACEHOLDER: &str = "{device_id}";

/// One place to look for the device id.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceIdSource {
    /// A topic template: a topic filter in which one level is `{device_id}`, as in `devices/{device_id}/#` or
    /// `+/+/{device_id}/up`.
    Topic(String),
    /// A JSON Pointer into the payload, to a string or an integer.
    Pointer(String),
}

/// Where to look for the device id; the first place that has one decides.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct DeviceIdRule(pub Vec<DeviceIdSource>);

impl Default for DeviceIdRule {
    /// The level behind `devices/`, then `/device_id`, `/deviceId`, `/dev_eui` and `/devEUI` of the payload. The topic
    /// comes first: what a client may publish to is what a broker's or endpoint's access rules check, while the payload
    /// can claim anything; and it costs nothing to read.
    fn default() -> Self {
        let mut sources = vec![DeviceIdSource::Topic(format!("devices/{PLACEHOLDER}/#"))];
        for pointer in ["/device_id", "/deviceId", "/dev_eui", "/devEUI"] {
            sources.push(DeviceIdSource::Pointer(pointer.to_owned()));
        }
        Self(sources)
    }
}

/// A checked [`DeviceIdRule`].
#[derive(Clone, Debug)]
pub struct DeviceIds(Vec<Source>);

#[derive(Clone, Debug)]
enum Source {
    Topic { filter: TopicFilter, level: usize },
    Pointer(Pointer),
}

impl DeviceIds {
    /// Checks `rule`. An empty one is allowed: messages then have no device id.
    ///
    /// # Errors
    /// Every mistake at once, with paths such as `device_id[1].pointer`.
    pub fn compile(rule: &DeviceIdRule) -> Result<Self, Vec<Mistake>> {
        let mut sources = Vec::new();
        let mut mistakes = Vec::new();
        for (index, source) in rule.0.iter().enumerate() {
            let (key, parsed) = match source {
                DeviceIdSource::Topic(template) => ("topic", parse_template(template)),
                DeviceIdSource::Pointer(pointer) => ("pointer", Pointer::parse(pointer).map(Source::Pointer)),
            };
            match parsed {
                Ok(source) => sources.push(source),
                Err(message) => mistakes.push(Mistake::new(format!("device_id[{index}].{key}"), message)),
            }
        }
        if mistakes.is_empty() { Ok(Self(sources)) } else { Err(mistakes) }
    }

    /// The device id of `message`, as [`super::IngestTransformer`] finds it.
    #[must_use]
    pub fn of(&self, message: &Message) -> Option<String> {
        let topic = message.attributes.get(names::TOPIC).unwrap_or_default();
        self.find(topic, &mut Payload::new(&message.payload)).map(Cow::into_owned)
    }

    /// The device id of a message on `topic`. An id that is too long, empty or has control characters counts as absent,
    /// and is counted.
    pub(super) fn find<'a>(&self, topic: &'a str, payload: &mut Payload<'_>) -> Option<Cow<'a, str>> {
        for source in &self.0 {
            let found = match source {
                Source::Topic { filter, level } if filter.matches(topic) => {
                    topic.split('/').nth(*level).map(Cow::Borrowed)
                }
                Source::Topic { .. } => None,
                Source::Pointer(pointer) => payload.text(pointer).map(Cow::Owned),
            };
            match found {
                Some(id) if usable_id(&id) => return Some(id),
                Some(_) => metrics::counter!(metric_names::DEVICE_IDS_REFUSED).increment(1),
                None => {}
            }
        }
        None
    }
}

fn parse_template(template: &str) -> Result<Source, String> {
    let mut levels = template.split('/').enumerate().filter(|(_, level)| *level == PLACEHOLDER);
    let (Some((level, _)), None) = (levels.next(), levels.next()) else {
        return Err(format!(
            "`{template}` needs exactly one level {PLACEHOLDER}, as in devices/{PLACEHOLDER}/#"
        ));
    };
    let filter = TopicFilter::parse(&template.replace(PLACEHOLDER, "+"))
        .map_err(|error| format!("`{template}` {error}"))?;
    if filter.is_shared() {
        return Err(format!("`{template}` must not share a subscription; leave $share/GROUP/ out"));
    }
    Ok(Source::Topic { filter, level })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(ids: &DeviceIds, topic: &str, payload: &str) -> Option<String> {
        ids.find(topic, &mut Payload::new(payload.as_bytes())).map(Cow::into_owned)
    }

    #[test]
    fn the_default_takes_the_level_behind_devices_and_then_the_payload() {
        let ids = DeviceIds::compile(&DeviceIdRule::default()).unwrap();
        assert_eq!(find(&ids, "devices/a/up", r#"{"device_id":"b"}"#).as_deref(), Some("a"));
        assert_eq!(find(&ids, "devices/a", "no json").as_deref(), Some("a"));
        assert_eq!(find(&ids, "gateways/x", r#"{"devEUI":"e","deviceId":7}"#).as_deref(), Some("7"));
        assert_eq!(find(&ids, "gateways/x", r#"{"value":1}"#), None);
    }

    #[test]
    fn an_unusable_id_counts_as_absent() {
        let ids = DeviceIds::compile(&DeviceIdRule::default()).unwrap();
        let long = format!("devices/{}/up", "x".repeat(super::super::MAX_ID_BYTES + 1));
        assert_eq!(find(&ids, &long, r#"{"device_id":"b"}"#).as_deref(), Some("b"));
        assert_eq!(find(&ids, "devices//up", r#"{"device_id":"tab\there"}"#), None);
    }

    #[test]
    fn a_template_may_have_the_id_at_any_level() {
        let rule = DeviceIdRule(vec![DeviceIdSource::Topic("+/site/{device_id}/up".to_owned())]);
        let ids = DeviceIds::compile(&rule).unwrap();
        assert_eq!(find(&ids, "eu/site/a/up", "").as_deref(), Some("a"));
        assert_eq!(find(&ids, "eu/site/a/down", ""), None);
    }

    #[test]
    fn every_mistake_is_reported_at_once_with_its_path() {
        let rule = DeviceIdRule(vec![
            DeviceIdSource::Topic("devices/+/up".to_owned()),
            DeviceIdSource::Topic("a/#/{device_id}".to_owned()),
            DeviceIdSource::Pointer("device_id".to_owned()),
            DeviceIdSource::Pointer("/ok".to_owned()),
        ]);
        let paths: Vec<_> = DeviceIds::compile(&rule).unwrap_err().into_iter().map(|m| m.path).collect();
        assert_eq!(paths, ["device_id[0].topic", "device_id[1].topic", "device_id[2].pointer"]);
    }
}

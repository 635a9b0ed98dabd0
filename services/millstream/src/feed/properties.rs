//! What a message that came before says about itself, as MQTT 5 properties.

use super::source::Origin;
use bytes::Bytes;
use messagepipeline::names;
use mqttconverter::message::{CORRELATION_DATA, MAX_USER_PROPERTIES, PAYLOAD_FORMAT, RESPONSE_TOPIC};
use mqttconverter::topic::validate_name;
use rumqttc_v5::mqttbytes::v5::PublishProperties;

/// User property: when the message was first received (RFC 3339).
pub(super) const RECEIVED_AT: &str = "received_at";

/// Longest text in a packet, in bytes (MQTT 5, section 1.5.4).
const MAX_TEXT: usize = u16::MAX as usize;

/// How much of what a message says about itself goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    All,
    /// What its device had set.
    OfDevice,
}

/// The properties of a message with this payload that is published again.
///
/// What its device had set goes as the device had set it. The time of first receipt and our own attributes are user
/// properties under their names, as far as the 64 that the endpoint takes have room. The expiry is one of them: a
/// broker would count it anew and might drop the message.
pub(super) fn properties(origin: &Origin, payload: &[u8], share: Share) -> PublishProperties {
    let mut properties = PublishProperties::default();
    let (mut of_device, mut ours) = (Vec::new(), Vec::new());
    for (name, value) in origin.attributes.iter().filter(|(name, value)| is_text(name) && is_text(value)) {
        match name {
            // The packet says it itself.
            names::TOPIC | names::PACKET_ID | names::DUP => {}
            names::CONTENT_TYPE => properties.content_type = Some(value.to_owned()),
            // A broker may look whether it is true, and not every one did when it came.
            PAYLOAD_FORMAT => {
                properties.payload_format_indicator = std::str::from_utf8(payload).is_ok().then_some(1);
            }
            RESPONSE_TOPIC if validate_name(value).is_ok() => {
                properties.response_topic = Some(value.to_owned())
            }
            RESPONSE_TOPIC => {}
            CORRELATION_DATA => {
                let data = base64_simd::STANDARD.decode_to_vec(value.as_bytes()).ok();
                properties.correlation_data = data.filter(|data| data.len() <= MAX_TEXT).map(Bytes::from);
            }
            _ => match name.strip_prefix(names::USER_PREFIX) {
                Some(name) => of_device.push((name.to_owned(), value.to_owned())),
                None => ours.push((name.to_owned(), value.to_owned())),
            },
        }
    }
    if share == Share::OfDevice {
        properties.user_properties = of_device;
        return properties;
    }
    // Where a replay of a replay says when the message first came, that stands.
    if of_device.iter().all(|(name, _)| name != RECEIVED_AT) {
        ours.insert(0, (RECEIVED_AT.to_owned(), origin.received_at.to_string()));
    }
    ours.retain(|(name, _)| of_device.iter().all(|(known, _)| known != name));
    properties.user_properties = of_device;
    properties.user_properties.extend(ours);
    properties.user_properties.truncate(MAX_USER_PROPERTIES);
    properties
}

/// Whether every broker takes it: one may end the connection for control characters and what is no character (MQTT 5,
/// section 1.5.4), and nothing behind such a message would ever be published.
fn is_text(text: &str) -> bool {
    let is_no_character =
        |char: char| matches!(char, '\u{fdd0}'..='\u{fdef}') || u32::from(char) & 0xfffe == 0xfffe;
    text.len() <= MAX_TEXT && !text.chars().any(|char| char.is_control() || is_no_character(char))
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::{Attributes, Timestamp};
    use mqttconverter::message::MESSAGE_EXPIRY;

    fn origin<'a>(attributes: impl IntoIterator<Item = (&'a str, &'a str)>) -> Origin {
        let attributes: Attributes = attributes.into_iter().collect();
        Origin { attributes, received_at: Timestamp::from_micros(1_672_867_882_661_042) }
    }

    fn all(origin: &Origin) -> PublishProperties {
        properties(origin, b"text", Share::All)
    }

    #[test]
    fn what_a_broker_would_call_an_error_is_left_out() {
        let origin =
            origin([(PAYLOAD_FORMAT, "utf-8"), (RESPONSE_TOPIC, "a/#"), (names::CONTENT_TYPE, "a\nb")]);
        assert_eq!(properties(&origin, b"\xff", Share::OfDevice), PublishProperties::default());
    }

    #[test]
    fn what_the_device_had_set_is_set_again_and_the_rest_goes_under_its_name() {
        let found = all(&origin([
            (names::TOPIC, "devices/a/up"),
            (names::PACKET_ID, "7"),
            (names::DUP, "true"),
            (names::DEVICE_ID, "a"),
            (names::CONTENT_TYPE, "text/plain"),
            (PAYLOAD_FORMAT, "utf-8"),
            (RESPONSE_TOPIC, "answers"),
            (CORRELATION_DATA, "YQA="),
            (MESSAGE_EXPIRY, "5"),
            ("user.unit", "°C"),
            ("user.nul", "\0"),
            ("user.tab", "a\tb"),
            ("user.c1", "\u{85}"),
            ("user.last", "\u{10ffff}"),
            ("user.none", "\u{fdd0}"),
        ]));
        let user = [
            ("unit", "°C"),
            (RECEIVED_AT, "2023-01-04T21:31:22.661042Z"),
            (names::DEVICE_ID, "a"),
            (MESSAGE_EXPIRY, "5"),
        ];
        let expected = PublishProperties {
            payload_format_indicator: Some(1),
            response_topic: Some("answers".to_owned()),
            correlation_data: Some(Bytes::from_static(b"a\0")),
            content_type: Some("text/plain".to_owned()),
            user_properties: user.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            ..PublishProperties::default()
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn no_more_user_properties_are_sent_than_the_endpoint_takes_and_the_device_s_come_first() {
        let names: Vec<_> = (0..MAX_USER_PROPERTIES).map(|n| format!("user.{n}")).collect();
        let attributes = names.iter().map(|name| (name.as_str(), "v")).chain([(names::DEVICE_ID, "a")]);
        let found = all(&origin(attributes)).user_properties;
        assert_eq!(found.len(), MAX_USER_PROPERTIES);
        assert!(found.iter().all(|(_, value)| value == "v"));
    }

    #[test]
    fn a_replay_of_a_replay_keeps_the_first_time() {
        let found =
            all(&origin([("user.received_at", "first"), ("user.device_id", "b"), ("device_id", "a")]));
        let expected = [(RECEIVED_AT, "first"), ("device_id", "b")];
        assert_eq!(found.user_properties, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}

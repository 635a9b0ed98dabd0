//! What a message that came before says about itself, as MQTT 5 properties.

use super::source::Origin;
use bytes::Bytes;
use messagepipeline::names;
use mqttconverter::message::{CORRELATION_DATA, MAX_USER_PROPERTIES, PAYLOAD_FORMAT, RESPONSE_TOPIC};
use rumqttc_v5::mqttbytes::v5::PublishProperties;

/// User property: when the message was first received (RFC 3339).
pub(super) const RECEIVED_AT: &str = "received_at";

/// Longest text in a packet, in bytes (MQTT 5, section 1.5.4).
const MAX_TEXT: usize = u16::MAX as usize;

/// The properties of a message that is published again.
///
/// What its device had set goes as the device had set it. The time of first receipt and our own attributes are user
/// properties under their names, as far as the 64 that the endpoint takes have room. The expiry is one of them: a
/// broker would count it anew and might drop the message.
pub(super) fn properties(origin: &Origin) -> PublishProperties {
    let mut properties = PublishProperties::default();
    let (mut of_device, mut ours) = (Vec::new(), Vec::new());
    for (name, value) in origin.attributes.iter().filter(|(name, value)| is_text(name) && is_text(value)) {
        match name {
            // The packet says it itself.
            names::TOPIC | names::PACKET_ID | names::DUP => {}
            names::CONTENT_TYPE => properties.content_type = Some(value.to_owned()),
            PAYLOAD_FORMAT => properties.payload_format_indicator = Some(1),
            RESPONSE_TOPIC => properties.response_topic = Some(value.to_owned()),
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

/// Whether a packet can hold it.
fn is_text(text: &str) -> bool {
    text.len() <= MAX_TEXT && !text.contains('\0')
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

    #[test]
    fn what_the_device_had_set_is_set_again_and_the_rest_goes_under_its_name() {
        let found = properties(&origin([
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
        let all = names.iter().map(|name| (name.as_str(), "v")).chain([(names::DEVICE_ID, "a")]);
        let found = properties(&origin(all)).user_properties;
        assert_eq!(found.len(), MAX_USER_PROPERTIES);
        assert!(found.iter().all(|(_, value)| value == "v"));
    }

    #[test]
    fn a_replay_of_a_replay_keeps_the_first_time() {
        let found =
            properties(&origin([("user.received_at", "first"), ("user.device_id", "b"), ("device_id", "a")]));
        let expected = [(RECEIVED_AT, "first"), ("device_id", "b")];
        assert_eq!(found.user_properties, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}

//! From an MQTT PUBLISH to attributes, the same for the endpoint and for the client of a broker.

use messagepipeline::{Attributes, AttributesBuilder, names};

/// Attribute: the Message Expiry Interval of MQTT 5, in seconds, as the sender set it.
pub const MESSAGE_EXPIRY: &str = "mqtt_message_expiry_seconds";
/// Attribute: the Response Topic of MQTT 5.
pub const RESPONSE_TOPIC: &str = "mqtt_response_topic";
/// Attribute: the Correlation Data of MQTT 5, in base64 (RFC 4648, section 4, padded).
pub const CORRELATION_DATA: &str = "mqtt_correlation_data";
/// Attribute: `utf-8` when the sender's Payload Format Indicator (MQTT 5) says so; absent otherwise.
pub const PAYLOAD_FORMAT: &str = "mqtt_payload_format";

/// How many user properties of one message become attributes; what comes after them is left out. The endpoint
/// refuses such a message. A bound is needed because setting an attribute looks at all that are set.
pub const MAX_USER_PROPERTIES: usize = 64;

/// Content types with this start say "this is one of our own documents". No device may claim that.
const OWN_CONTENT_TYPES: &str = "application/vnd.millstream.";

/// What a PUBLISH says about itself, borrowed from the packet.
#[derive(Clone, Copy, Debug, Default)]
pub struct PublishInfo<'a> {
    /// Topic name, valid (see [`crate::topic::validate_name`]).
    pub topic: &'a str,
    /// Client identifier of the device, where it is known.
    pub client_id: Option<&'a str>,
    /// Quality of service: 0, 1 or 2.
    pub qos: u8,
    /// Packet identifier; 0 at QoS 0.
    pub packet_id: u16,
    /// The retain flag.
    pub retain: bool,
    /// The dup flag.
    pub dup: bool,
    /// Whether this is the client's will.
    pub will: bool,
    /// MQTT 5 properties other than user properties.
    pub properties: Properties<'a>,
}

/// The properties of an MQTT 5 PUBLISH that are kept; all absent in MQTT 3.1.1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Properties<'a> {
    /// Payload Format Indicator 1.
    pub payload_is_utf8: bool,
    /// Message Expiry Interval in seconds.
    pub message_expiry: Option<u32>,
    /// Content Type.
    pub content_type: Option<&'a str>,
    /// Response Topic.
    pub response_topic: Option<&'a str>,
    /// Correlation Data.
    pub correlation_data: Option<&'a [u8]>,
}

/// The attributes of a message that came as `info` with the user properties `user`.
///
/// A user property `name` becomes the attribute `user.name`, so that no device can set a name of ours. Of a name
/// that is sent twice the last value stands. A content type of ours is not taken over from outside.
#[must_use]
pub fn attributes<'a>(
    info: &PublishInfo<'_>,
    user: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Attributes {
    const FIXED: usize = 112;
    let mut builder =
        AttributesBuilder::with_capacity(FIXED + info.topic.len() + info.client_id.map_or(0, str::len));
    builder.set(names::TOPIC, info.topic);
    builder.set(names::QOS, qos_word(info.qos));
    if let Some(client_id) = info.client_id {
        builder.set(names::CLIENT_ID, client_id);
    }
    if info.packet_id != 0 {
        builder.set(names::PACKET_ID, decimal(info.packet_id.into(), &mut [0; 10]));
    }
    for (name, is_set) in [(names::RETAIN, info.retain), (names::DUP, info.dup), (names::WILL, info.will)] {
        if is_set {
            builder.set(name, "true");
        }
    }
    set_properties(&mut builder, &info.properties);
    set_user_properties(&mut builder, user);
    builder.build()
}

fn set_properties(builder: &mut AttributesBuilder, properties: &Properties<'_>) {
    if properties.payload_is_utf8 {
        builder.set(PAYLOAD_FORMAT, "utf-8");
    }
    if let Some(seconds) = properties.message_expiry {
        builder.set(MESSAGE_EXPIRY, decimal(seconds, &mut [0; 10]));
    }
    if let Some(content_type) = properties.content_type
        && !is_own_content_type(content_type)
    {
        builder.set(names::CONTENT_TYPE, content_type);
    }
    if let Some(topic) = properties.response_topic {
        builder.set(RESPONSE_TOPIC, topic);
    }
    if let Some(data) = properties.correlation_data {
        builder.set(CORRELATION_DATA, &base64_simd::STANDARD.encode_to_string(data));
    }
}

fn set_user_properties<'a>(
    builder: &mut AttributesBuilder,
    user: impl IntoIterator<Item = (&'a str, &'a str)>,
) {
    let mut key = String::new();
    for (name, value) in user.into_iter().take(MAX_USER_PROPERTIES) {
        key.clear();
        key.push_str(names::USER_PREFIX);
        key.push_str(name);
        builder.set(&key, value);
    }
}

fn is_own_content_type(content_type: &str) -> bool {
    content_type
        .get(..OWN_CONTENT_TYPES.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(OWN_CONTENT_TYPES))
}

fn qos_word(qos: u8) -> &'static str {
    match qos {
        0 => "0",
        1 => "1",
        _ => "2",
    }
}

/// `number` in decimal, without an allocation.
fn decimal(mut number: u32, buffer: &mut [u8; 10]) -> &str {
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    std::str::from_utf8(&buffer[start..]).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_a_publish_says_is_kept_under_its_documented_name() {
        let info = PublishInfo {
            topic: "devices/a/up",
            client_id: Some("a"),
            qos: 1,
            packet_id: 65_535,
            retain: true,
            dup: true,
            will: true,
            properties: Properties {
                payload_is_utf8: true,
                message_expiry: Some(u32::MAX),
                content_type: Some("application/json"),
                response_topic: Some("answers/a"),
                correlation_data: Some(b"\0\xff"),
            },
        };
        let attributes = attributes(&info, [("site", "north"), ("site", "south")]);
        for (name, value) in [
            ("mqtt_topic", "devices/a/up"),
            ("mqtt_client_id", "a"),
            ("mqtt_qos", "1"),
            ("mqtt_packet_id", "65535"),
            ("mqtt_retain", "true"),
            ("mqtt_dup", "true"),
            ("mqtt_will", "true"),
            ("mqtt_payload_format", "utf-8"),
            ("mqtt_message_expiry_seconds", "4294967295"),
            ("content_type", "application/json"),
            ("mqtt_response_topic", "answers/a"),
            ("mqtt_correlation_data", "AP8="),
            ("user.site", "south"),
        ] {
            assert_eq!(attributes.get(name), Some(value), "{name}");
        }
        assert_eq!(attributes.iter().count(), 13);
    }

    #[test]
    fn a_bare_qos_0_publish_has_only_topic_and_qos() {
        let attributes = attributes(&PublishInfo { topic: "t", ..PublishInfo::default() }, []);
        assert_eq!(attributes.iter().collect::<Vec<_>>(), [("mqtt_topic", "t"), ("mqtt_qos", "0")]);
    }

    #[test]
    fn a_device_cannot_set_a_name_or_a_content_type_of_ours() {
        let info = PublishInfo {
            topic: "t",
            properties: Properties {
                content_type: Some("Application/vnd.Millstream.message+json"),
                ..Properties::default()
            },
            ..PublishInfo::default()
        };
        let attributes = attributes(&info, [("device_id", "other"), ("mqtt_topic", "elsewhere")]);
        assert_eq!(attributes.get("device_id"), None);
        assert_eq!(attributes.get("mqtt_topic"), Some("t"));
        assert_eq!(attributes.get("content_type"), None);
        assert_eq!(attributes.get("user.device_id"), Some("other"));
    }

    #[test]
    fn user_properties_beyond_the_bound_are_left_out() {
        let names: Vec<String> = (0..100).map(|n| n.to_string()).collect();
        let attributes = attributes(
            &PublishInfo { topic: "t", ..PublishInfo::default() },
            names.iter().map(|n| (n.as_str(), "")),
        );
        assert_eq!(attributes.iter().count(), 2 + MAX_USER_PROPERTIES);
    }
}

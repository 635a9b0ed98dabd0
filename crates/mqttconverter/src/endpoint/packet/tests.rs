use super::*;
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use rumqttc_v4::mqttbytes::v4;
use rumqttc_v5::mqttbytes::{QoS, v5};

fn header_of(bytes: &[u8]) -> FixedHeader {
    FixedHeader::read(bytes).unwrap().unwrap()
}

fn read(version: Version, bytes: &[u8]) -> Result<Packet<'_>, Reason> {
    Packet::read(version, header_of(bytes), bytes)
}

fn publish(version: Version, bytes: &[u8]) -> Publish<'_> {
    match read(version, bytes) {
        Ok(Packet::Publish(publish)) => publish,
        other => panic!("no PUBLISH: {other:?}"),
    }
}

#[test]
fn what_makes_a_packet_malformed_or_a_protocol_error_is_told_apart() {
    use Reason::{Malformed, ProtocolError};
    for (version, bytes, expected) in [
        (Version::V311, &b"\x30\x03\x00\x05a"[..], Malformed),
        (Version::V311, b"\x36\x05\x00\x01a\x00\x01", Malformed),
        (Version::V311, b"\x38\x03\x00\x01a", Malformed),
        (Version::V311, b"\x32\x05\x00\x01a\x00\x00", ProtocolError),
        (Version::V311, b"\x30\x03\x00\x01\xff", Malformed),
        (Version::V311, b"\x30\x03\x00\x01\x00", Malformed),
        (Version::V5, b"\x30\x06\x00\x01a\x02\x01\x02", ProtocolError),
        // The same property twice; a subscription identifier from a client; a property of another packet.
        (Version::V5, b"\x30\x08\x00\x01a\x04\x01\x00\x01\x00", ProtocolError),
        (Version::V5, b"\x30\x06\x00\x01a\x02\x0b\x01", ProtocolError),
        (Version::V5, b"\x30\x07\x00\x01a\x03\x21\x00\x01", Malformed),
        // A text that reaches beyond the length of its property block, into the payload.
        (Version::V5, b"\x30\x09\x00\x01a\x02\x03\x00\x02xy", Malformed),
        (Version::V311, b"\x80\x05\x00\x01\x00\x01a", Malformed),
        (Version::V311, b"\x82\x02\x00\x01", ProtocolError),
        (Version::V311, b"\x82\x05\x00\x01\x00\x01a", Malformed),
        (Version::V311, b"\xe0\x01\x00", Malformed),
        (Version::V5, b"\x40\x02\x00\x01", ProtocolError),
        (Version::V5, b"\xf0\x00", ProtocolError),
        (Version::V5, b"\x10\x00", ProtocolError),
        (Version::V5, b"\x00\x00", Malformed),
        (Version::V5, b"\xc1\x00", Malformed),
    ] {
        assert_eq!(read(version, bytes).err(), Some(expected), "{bytes:02x?}");
    }
}

#[test]
fn a_fixed_header_waits_for_its_bytes_and_refuses_a_fifth_length_byte() {
    assert_eq!(FixedHeader::read(b""), Ok(None));
    assert_eq!(FixedHeader::read(b"\x30\xff\xff\xff"), Ok(None));
    assert_eq!(FixedHeader::read(b"\x30\xff\xff\xff\xff"), Err(Reason::Malformed));
    assert_eq!(header_of(b"\x30\xff\xff\xff\x7f").packet, 268_435_460);
}

#[test]
fn the_version_decides_before_anything_else_of_a_connect_is_read() {
    let refused = |bytes: &[u8]| Connect::read(header_of(bytes), bytes).err();
    let answer = |version, reason| Some(ConnectRefused { answer_in: version, reason });
    let unsupported = Reason::UnsupportedVersion;
    assert_eq!(refused(b"\x10\x09\x00\x06MQIsdp\x03"), answer(Some(Version::V311), unsupported));
    assert_eq!(refused(b"\x10\x07\x00\x04MQTT\x03"), answer(Some(Version::V311), unsupported));
    assert_eq!(refused(b"\x10\x07\x00\x04MQTT\x06"), answer(Some(Version::V5), unsupported));
    assert_eq!(refused(b"\x10\x07\x00\x04HTTP\x04"), answer(None, Reason::Malformed));
    assert_eq!(refused(b"\x10\x07\x00\x04MQTT\x05"), answer(Some(Version::V5), Reason::Malformed));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), first in any::<u8>()) {
        let mut packet = vec![first, u8::try_from(bytes.len() & 0x7f).unwrap()];
        packet.extend_from_slice(&bytes[..bytes.len() & 0x7f]);
        for input in [&bytes[..], &packet[..]] {
            if let Ok(Some(header)) = FixedHeader::read(input) {
                let frame = &input[..header.packet.min(input.len())];
                let _ = Connect::read(header, frame);
                for version in [Version::V311, Version::V5] {
                    if let Ok(Packet::Publish(publish)) = Packet::read(version, header, frame) {
                        prop_assert_eq!(publish.user_properties().count(), publish.user_property_count);
                    }
                }
            }
        }
    }

    #[test]
    fn a_publish_of_the_client_crates_is_read_as_it_was_meant(
        topic in "[a-z]{1,10}(/[a-z]{0,5}){0,3}", payload in proptest::collection::vec(any::<u8>(), 0..300),
        id in 1..u16::MAX, dup in any::<bool>(), retain in any::<bool>(), at_least_once in any::<bool>(),
        expiry in proptest::option::of(any::<u32>()), user in proptest::collection::vec(("[a-z]{0,5}", ".{0,5}"), 0..4),
    ) {
        let user: Vec<_> = user.into_iter().map(|(name, value)| (name, value.replace('\0', ""))).collect();
        let qos = if at_least_once { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let properties = v5::PublishProperties {
            payload_format_indicator: Some(1),
            message_expiry_interval: expiry,
            topic_alias: Some(3),
            response_topic: Some("answer".to_owned()),
            correlation_data: Some(Bytes::from_static(b"\0\x01")),
            user_properties: user.clone(),
            subscription_identifiers: Vec::new(),
            content_type: Some("text/plain".to_owned()),
        };
        let mut sent = v5::Publish::new(topic.clone(), qos, payload.clone(), Some(properties));
        (sent.pkid, sent.dup, sent.retain) = (if at_least_once { id } else { 0 }, dup && at_least_once, retain);
        let mut bytes = BytesMut::new();
        sent.write(&mut bytes).unwrap();
        let got = publish(Version::V5, &bytes);
        prop_assert_eq!((got.topic, got.payload, got.packet_id), (&topic[..], &payload[..], sent.pkid));
        prop_assert_eq!((got.dup, got.retain, got.qos), (sent.dup, retain, u8::from(at_least_once)));
        prop_assert_eq!((got.alias, got.properties.message_expiry), (Some(3), expiry));
        prop_assert_eq!(got.properties.content_type, Some("text/plain"));
        prop_assert_eq!(got.properties.correlation_data, Some(&b"\0\x01"[..]));
        let read: Vec<_> = got.user_properties().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        prop_assert_eq!(read, user);

        let mut older = v4::Publish::new(topic.clone(), rumqttc_v4::QoS::AtLeastOnce, payload.clone());
        older.pkid = id;
        bytes.clear();
        older.write(&mut bytes).unwrap();
        let got = publish(Version::V311, &bytes);
        prop_assert_eq!((got.topic, got.payload, got.packet_id), (&topic[..], &payload[..], id));
    }
}

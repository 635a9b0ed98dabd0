use super::*;
use proptest::prelude::*;

fn message() -> Message {
    let mut message = Message::new(
        "019aa3f0-5f2c-7c3a-9a53-0123456789ab".parse().unwrap(),
        r#"{"device_id":"d1","value":1}"#,
        "2026-03-01T12:00:00.123456Z".parse().unwrap(),
    );
    message.attributes = Attributes::from_iter([("device_id", "d1"), ("mqtt_topic", "devices/d1/up")]);
    message
}

/// As Pub/Sub delivers it.
fn delivered(encoded: Encoded) -> Received {
    Received {
        data: encoded.data,
        attributes: encoded.attributes,
        message_id: "8153".to_owned(),
        publish_time: Timestamp::from_micros(1_800_000_000_000_000),
    }
}

fn raw(data: &'static str, attributes: &[(&str, &str)]) -> Received {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    delivered(Encoded { data: data.into(), attributes: attributes.iter().map(owned).collect() })
}

fn decode(received: Received) -> Decoded {
    Decoder::default().decode(received)
}

fn sort(attributes: &Attributes) -> Attributes {
    let mut pairs: Vec<_> = attributes.iter().collect();
    pairs.sort_unstable();
    Attributes::from_pairs(&pairs)
}

fn assert_allowed(encoded: &Encoded) {
    assert!(encoded.attributes.len() <= MAX_ATTRIBUTES, "{} attributes", encoded.attributes.len());
    for (key, value) in &encoded.attributes {
        assert!(!key.is_empty() && key.len() <= MAX_KEY, "a key of {} bytes", key.len());
        assert!(!key.to_ascii_lowercase().starts_with("goog"), "{key}");
        assert!(value.len() <= MAX_VALUE, "a value of {} bytes", value.len());
    }
    assert!(!encoded.attributes.is_empty(), "Pub/Sub refuses an empty body without attributes");
}

/// Names that are ordinary, ours, Pub/Sub's, empty, too long, or look like pieces.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-z]{1,8}(\\.[a-z]{1,4})?",
        1 => "(millstream_|goog|GOOGLE)[a-z]{0,3}",
        1 => "[a-c]{1,2};[0-9]",
        1 => Just(String::new()),
        1 => Just("content-type".to_owned()),
        1 => "\\PC{1,12}",
        1 => (200usize..300).prop_map(|length| "k".repeat(length)),
    ]
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => ".{0,20}",
        1 => Just(String::new()),
        1 => Just(DOCUMENT.to_owned()),
        1 => "[aäß€🦀\u{0}]{1020,1030}",
        1 => (0usize..12_000).prop_map(|length| "ü".repeat(length)),
    ]
}

proptest! {
    #[test]
    fn every_message_comes_back_exactly_in_both_forms_and_within_the_limits(
        id in any::<[u8; 16]>(),
        payload in proptest::collection::vec(any::<u8>(), 0..200),
        pairs in proptest::collection::vec((key(), value()), 0..12),
        micros in -62_000_000_000_000_000i64..250_000_000_000_000_000,
        enriched in proptest::option::of((0usize..3_000, ".{0,10}")),
    ) {
        let mut message = Message::new(MessageId::from_bytes(id), payload, Timestamp::from_micros(micros));
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        message.attributes = sort(&Attributes::from_iter(pairs));
        if let Some((length, text)) = enriched {
            let fields = [("long", "ö".repeat(length)), ("text", text)];
            let fields = fields.into_iter().map(|(name, value)| (name.to_owned(), value.into()));
            message.enrichment = Enrichment::from_fields(fields.collect());
        }
        for wire in [Wire::Binary, Wire::Json] {
            let encoded = encode(&message, wire, &[]);
            assert_allowed(&encoded);
            let decoded = decode(delivered(encoded));
            prop_assert!(!decoded.is_damaged);
            prop_assert_eq!(&decoded.message, &message);
        }
    }

    #[test]
    fn whatever_arrives_becomes_a_message_with_its_bytes(
        data in proptest::collection::vec(any::<u8>(), 0..100),
        pairs in proptest::collection::hash_map(key(), value(), 0..6),
        id in proptest::option::of(prop_oneof![Just("not-a-uuid".to_owned()), Just("019aa3f0-5f2c-7c3a-9a53-0123456789ab".to_owned())]),
    ) {
        let mut received = delivered(Encoded { data: data.clone().into(), attributes: pairs });
        received.attributes.extend(id.map(|id| (ID.to_owned(), id)));
        let decoded = decode(received);
        prop_assert_eq!(&decoded.message.payload[..], &data[..]);
    }
}

#[test]
fn the_binary_form_is_the_payload_itself_with_readable_attributes() {
    let message = message();
    let encoded = encode(&message, Wire::Binary, &[]);
    assert_eq!(encoded.data.as_ptr(), message.payload.as_ptr(), "the payload was copied");
    let expected = [
        ("millstream_id", "019aa3f0-5f2c-7c3a-9a53-0123456789ab"),
        ("millstream_time", "2026-03-01T12:00:00.123456Z"),
        ("device_id", "d1"),
        ("mqtt_topic", "devices/d1/up"),
    ];
    let expected: HashMap<_, _> = expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(encoded.attributes, expected);
}

#[test]
fn the_json_form_is_the_document_readers_expect_and_carries_the_attributes_as_well() {
    let mut message = message();
    let encoded = encode(&message, Wire::Json, &[]);
    assert_eq!(
        std::str::from_utf8(&encoded.data).unwrap(),
        "{\"id\":\"019aa3f0-5f2c-7c3a-9a53-0123456789ab\",\
          \"payload\":\"eyJkZXZpY2VfaWQiOiJkMSIsInZhbHVlIjoxfQ==\",\
          \"publishTime\":\"2026-03-01T12:00:00.123456Z\"}"
    );
    assert_eq!(encoded.attributes["content-type"], "application/vnd.millstream.message+json");
    assert_eq!(encoded.attributes["device_id"], "d1");
    message.enrichment = Enrichment::from_text(r#"{"location":"harbour"}"#).unwrap();
    let text = encode(&message, Wire::Json, &[]).data;
    assert!(
        text.ends_with(br#","enrichmentData":{"location":"harbour"}}"#),
        "enrichment is left out only when empty"
    );
}

/// Written by hand, as Go's `encoding/json` writes the struct of an earlier program: nanoseconds in the time, the id
/// that Pub/Sub gave, an empty map and a nil slice as `null`.
#[test]
fn a_document_written_by_another_program_is_read() {
    let document = r#"{"id":"1234567890","payload":"/wD+ZGV2aWNlPw==","publishTime":"2025-06-01T10:00:00.123456789Z","enrichmentData":{"clientID":"c-1","nested":{"n":1}}}"#;
    let read = decode(raw(document, &[("content-type", DOCUMENT), ("device_id", "d7")])).message;
    assert_eq!(&read.payload[..], b"\xff\x00\xfedevice?");
    assert_eq!(read.publish_time.to_string(), "2025-06-01T10:00:00.123456Z");
    assert_eq!(read.enrichment, Enrichment::from_text(r#"{"clientID":"c-1","nested":{"n":1}}"#).unwrap());
    assert_eq!(read.device_id(), Some("d7"));
    assert_eq!(read.id, foreign_id(SOURCE, "1234567890"), "an id that is no UUID stands for itself");
    let bare =
        r#"{"id":"x","payload":null,"publishTime":"0001-01-01T00:00:00Z","enrichmentData":null,"more":1}"#;
    let bare = decode(raw(bare, &[("content-type", DOCUMENT)]));
    assert!(!bare.is_damaged && bare.message.payload.is_empty() && bare.message.enrichment.is_empty());
}

#[test]
fn plain_device_json_is_never_mistaken_for_a_document() {
    let payloads = [
        r#"{"device_id":"d1","value":1}"#,
        r#"{"id":"019aa3f0-5f2c-7c3a-9a53-0123456789ab","payload":"eA==","publishTime":"2026-03-01T12:00:00Z"}"#,
    ];
    for payload in payloads {
        for attributes in [&[][..], &[("content-type", "application/json")], &[("id", "7")]] {
            let decoded = decode(raw(payload, attributes));
            assert!(!decoded.is_damaged);
            assert_eq!(&decoded.message.payload[..], payload.as_bytes());
            assert_eq!(decoded.message.attributes, Attributes::from_pairs(attributes));
        }
    }
}

#[test]
fn somebody_elses_message_has_an_id_that_every_delivery_and_subscription_sees_alike() {
    let first = decode(raw("x", &[("a", "1")])).message;
    let again = decode(raw("x", &[("a", "1")])).message;
    assert_eq!(first.id, again.id);
    assert_eq!(first.id.uuid().get_version_num(), 8);
    assert_eq!(first.publish_time, Timestamp::from_micros(1_800_000_000_000_000));
    let mut other = raw("x", &[]);
    other.message_id.push('1');
    assert_ne!(decode(other).message.id, first.id);
}

#[test]
fn what_claims_to_be_ours_and_is_not_is_handed_on_as_it_is() {
    let id = "019aa3f0-5f2c-7c3a-9a53-0123456789ab";
    let time = "2026-03-01T12:00:00Z";
    let cases: [&[(&str, &str)]; 6] = [
        &[("content-type", DOCUMENT)],
        &[(ID, "nonsense"), (TIME, time)],
        &[(ID, id)],
        &[(ID, id), (TIME, "yesterday")],
        &[(ID, id), (TIME, time), (ENRICHMENT, "[1]")],
        &[(ID, id), (TIME, time), (ENRICHMENT, "{")],
    ];
    for attributes in cases {
        let decoded = decode(raw("{\"id\":1}", attributes));
        assert!(decoded.is_damaged, "{attributes:?}");
        assert_eq!(&decoded.message.payload[..], b"{\"id\":1}");
        assert_eq!(decoded.message.attributes, sort(&Attributes::from_pairs(attributes)));
        // The next stage publishes it, and the one after reads the same.
        let next = decode(delivered(encode(&decoded.message, Wire::Binary, &[])));
        assert_eq!(next.message, decoded.message);
    }
}

#[test]
fn a_topic_of_ten_kibibytes_and_a_thousand_properties_survive() {
    let mut message = message();
    let topic = "ä/".repeat(3_500);
    let mut builder = message.attributes.edit();
    builder.set("mqtt_topic", &topic);
    message.attributes = builder.build();
    let encoded = encode(&message, Wire::Binary, &[]);
    assert_eq!(encoded.data, message.payload, "it fits into attributes");
    assert_eq!(decode(delivered(encoded)).message.attributes.get("mqtt_topic"), Some(&*topic));
    let mut builder = message.attributes.edit();
    for n in 0..1_000 {
        builder.set(&format!("user.{n:04}"), "x");
    }
    message.attributes = builder.build();
    let encoded = encode(&message, Wire::Binary, &[("millstream_stage", "bigquery")]);
    assert_allowed(&encoded);
    assert_eq!(encoded.attributes["millstream_stage"], "bigquery");
    assert_eq!(decode(delivered(encoded)).message, message);
}

#[test]
fn facts_of_any_length_are_taken_out_again() {
    let detail = "é".repeat(4_000);
    let facts = [("millstream_detail", detail.as_str()), ("millstream_stage", "bigquery")];
    let mut received = delivered(encode(&message(), Wire::Binary, &facts));
    assert_eq!(take_fact(&mut received, "millstream_detail"), Some(detail));
    assert_eq!(take_fact(&mut received, "millstream_stage").as_deref(), Some("bigquery"));
    assert_eq!(decode(received).message, message());
}

#[test]
fn messages_of_a_device_share_its_data() {
    let mut message = message();
    message.enrichment = Enrichment::from_text(r#"{"location":"harbour"}"#).unwrap();
    let mut decoder = Decoder::default();
    let mut text = || {
        let decoded = decoder.decode(delivered(encode(&message, Wire::Binary, &[])));
        decoded.message.enrichment.text().map(str::as_ptr)
    };
    assert_eq!(text(), text());
}

#[test]
fn what_is_published_again_counts_as_delivered_before_in_both_forms() {
    for wire in [Wire::Binary, Wire::Json] {
        let mut message = message();
        assert_eq!(decode(delivered(encode(&message, wire, &[]))).message.attempt, 1);
        message.attempt = 4;
        let read = decode(delivered(encode(&message, wire, &[]))).message;
        assert_eq!((read.attempt, read.attributes), (2, message.attributes));
    }
}

//! One archive line per message, in two forms; both give back the exact bytes of the payload.

use crate::Error;
use bytes::Bytes;
use messagepipeline::{Attributes, AttributesBuilder, Enrichment, Message, MessageId, Timestamp};
use schemars::JsonSchema;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Form of the archive's lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LineForm {
    /// `{"id","key","receivedAt","attributes","enrichment","payload"}`; a payload that cannot stand as a JSON value
    /// is `payload_base64` instead.
    #[default]
    Json,
    /// `{"id","batchKey","originalPubSubPayload","archivedAt"}` with the payload in Base64.
    Base64,
}

/// Readers of the archive recurse; none of the common ones fails at this depth.
const INLINE_DEPTH: usize = 64;

/// Appends the line of `message` to `buffer`, without a line break.
pub fn encode_line(
    form: LineForm,
    message: &Message,
    key: &str,
    archived_at: Timestamp,
    buffer: &mut Vec<u8>,
) {
    let mut id = [0; 36];
    buffer.extend_from_slice(b"{\"id\":\"");
    buffer.extend_from_slice(message.id.encode(&mut id).as_bytes());
    match form {
        LineForm::Json => json_form(message, key, buffer),
        LineForm::Base64 => base64_form(message, key, archived_at, buffer),
    }
    buffer.push(b'}');
}

fn json_form(message: &Message, key: &str, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(b"\",\"key\":");
    push_string(key, buffer);
    buffer.extend_from_slice(b",\"receivedAt\":\"");
    buffer.extend_from_slice(message.publish_time.to_string().as_bytes());
    buffer.extend_from_slice(b"\",\"attributes\":{");
    for (at, (name, value)) in message.attributes.iter().enumerate() {
        if at > 0 {
            buffer.push(b',');
        }
        push_string(name, buffer);
        buffer.push(b':');
        push_string(value, buffer);
    }
    buffer.extend_from_slice(b"},\"enrichment\":");
    push_enrichment(&message.enrichment, buffer);
    if stands_inline(&message.payload) {
        buffer.extend_from_slice(b",\"payload\":");
        buffer.extend_from_slice(&message.payload);
    } else {
        buffer.extend_from_slice(b",\"payload_base64\":\"");
        base64_simd::STANDARD.encode_append(&message.payload, buffer);
        buffer.push(b'"');
    }
}

fn base64_form(message: &Message, key: &str, archived_at: Timestamp, buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(b"\",\"batchKey\":");
    push_string(key, buffer);
    buffer.extend_from_slice(b",\"originalPubSubPayload\":\"");
    base64_simd::STANDARD.encode_append(&message.payload, buffer);
    buffer.extend_from_slice(b"\",\"archivedAt\":\"");
    buffer.extend_from_slice(archived_at.to_string().as_bytes());
    buffer.push(b'"');
}

fn push_enrichment(enrichment: &Enrichment, buffer: &mut Vec<u8>) {
    match enrichment.text() {
        None => buffer.extend_from_slice(b"{}"),
        Some(text) if !has_line_break(text.as_bytes()) => buffer.extend_from_slice(text.as_bytes()),
        // A line break can only stand between the tokens of a JSON text.
        Some(text) => {
            buffer.extend(text.bytes().map(|byte| if has_line_break(&[byte]) { b' ' } else { byte }))
        }
    }
}

fn has_line_break(bytes: &[u8]) -> bool {
    memchr::memchr2(b'\n', b'\r', bytes).is_some()
}

/// Whether the payload's own bytes can stand as the value in the line: one JSON document in UTF-8 without outer
/// blanks or line breaks, not nested too deep, and with no half of a surrogate pair, at which readers stop.
fn stands_inline(payload: &[u8]) -> bool {
    let blank = |byte: Option<&u8>| byte.is_none_or(u8::is_ascii_whitespace);
    if blank(payload.first()) || blank(payload.last()) || has_line_break(payload) {
        return false;
    }
    let Ok(text) = std::str::from_utf8(payload) else { return false };
    if !nested_at_most(INLINE_DEPTH, payload) {
        return false;
    }
    if memchr::memmem::find(payload, b"\\u").is_some() {
        // Only a parser that builds the strings looks at surrogates.
        return serde_json::from_str::<serde_json::Value>(text).is_ok();
    }
    serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Whether arrays and objects are nested at most `limit` deep. Right for well-formed documents; for others the
/// answer does not matter.
fn nested_at_most(limit: usize, document: &[u8]) -> bool {
    // Nearly every payload is settled by this count, which is much faster than looking for strings. Sums that fit a
    // byte let the compiler count many bytes at once.
    let opening = |part: &[u8]| part.iter().map(|byte| u8::from(matches!(byte, b'[' | b'{'))).sum::<u8>();
    if document.chunks(255).map(|part| usize::from(opening(part))).sum::<usize>() <= limit {
        return true;
    }
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for &byte in document {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return false;
        }
    }
    true
}

/// Appends `text` as a JSON string (RFC 8259, section 7).
fn push_string(text: &str, buffer: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let escaped = |byte: u8| matches!(byte, b'"' | b'\\' | 0..=0x1f);
    buffer.push(b'"');
    if !text.bytes().fold(false, |found, byte| found | escaped(byte)) {
        buffer.extend_from_slice(text.as_bytes());
        buffer.push(b'"');
        return;
    }
    for &byte in text.as_bytes() {
        match byte {
            b'"' | b'\\' => buffer.extend_from_slice(&[b'\\', byte]),
            0..=0x1f => {
                buffer.extend_from_slice(b"\\u00");
                buffer.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
            _ => buffer.push(byte),
        }
    }
    buffer.push(b'"');
}

/// What a line holds.
#[derive(Clone, Debug, PartialEq)]
pub struct ArchivedMessage {
    /// Identity of the message.
    pub id: MessageId,
    /// The batch key under which it was archived.
    pub key: String,
    /// First receipt; the `base64` form does not hold it.
    pub received_at: Option<Timestamp>,
    /// When the line was written; the `json` form does not hold it.
    pub archived_at: Option<Timestamp>,
    /// Attributes; empty in the `base64` form.
    pub attributes: Attributes,
    /// Looked-up data; empty in the `base64` form.
    pub enrichment: Enrichment,
    /// The payload, byte for byte.
    pub payload: Bytes,
}

impl ArchivedMessage {
    /// The message that was archived, as a first delivery. Where the line does not hold the time of first receipt, it is
    /// that in the id, which is to the millisecond, or else that of archiving.
    #[must_use]
    pub fn into_message(self) -> Message {
        let in_id = || {
            let (seconds, nanos) = self.id.uuid().get_timestamp()?.to_unix();
            let micros = i64::try_from(seconds).ok()?.checked_mul(1_000_000)?;
            Some(Timestamp::from_micros(micros.checked_add(i64::from(nanos / 1_000))?))
        };
        let received_at = self.received_at.or_else(in_id).or(self.archived_at).unwrap_or_default();
        let mut message = Message::new(self.id, self.payload, received_at);
        message.attributes = self.attributes;
        message.enrichment = self.enrichment;
        message
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLine<'a> {
    id: MessageIdText<'a>,
    #[serde(borrow, alias = "batchKey")]
    key: Cow<'a, str>,
    #[serde(borrow, default)]
    received_at: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    archived_at: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    attributes: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(borrow, default)]
    enrichment: Option<&'a RawValue>,
    // A payload may be the document `null`, which an ordinary `Option` would take for an absent one.
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "payload_base64", alias = "originalPubSubPayload")]
    payload_base64: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct MessageIdText<'a>(#[serde(borrow)] Cow<'a, str>);

fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads a line of either form, with or without its line break.
///
/// # Errors
/// When it is not an archive line.
pub fn decode_line(line: &[u8]) -> Result<ArchivedMessage, Error> {
    let invalid = |detail: String| Error::InvalidLine(detail);
    let raw: RawLine<'_> = serde_json::from_slice(line).map_err(|error| invalid(error.to_string()))?;
    let id = raw.id.0.parse().map_err(|_| invalid("`id` is not a UUID".to_owned()))?;
    let time = |text: Option<Cow<'_, str>>| match text {
        None => Ok(None),
        Some(text) => {
            text.parse().map(Some).map_err(|_| invalid(format!("`{text}` is not a time in RFC 3339")))
        }
    };
    let payload = match (raw.payload, raw.payload_base64) {
        (Some(document), None) => Bytes::copy_from_slice(document.get().as_bytes()),
        (None, Some(text)) => base64_simd::STANDARD
            .decode_to_vec(text.as_bytes())
            .map_err(|_| invalid("the payload is not Base64".to_owned()))?
            .into(),
        _ => return Err(invalid("it must hold the payload in one of the two ways".to_owned())),
    };
    let mut attributes = AttributesBuilder::default();
    for (name, value) in &raw.attributes {
        attributes.set(name, value);
    }
    let enrichment = match raw.enrichment {
        None => Enrichment::none(),
        Some(text) => Enrichment::from_text(text.get()).map_err(|error| invalid(error.to_string()))?,
    };
    Ok(ArchivedMessage {
        id,
        key: raw.key.into_owned(),
        received_at: time(raw.received_at)?,
        archived_at: time(raw.archived_at)?,
        attributes: attributes.build(),
        enrichment,
        payload,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::IdGenerator;
    use proptest::prelude::*;

    fn message(payload: impl Into<Bytes>) -> Message {
        Message::new(IdGenerator::default().next_id(), payload, Timestamp::from_micros(1_672_867_882_661_042))
    }

    fn encode(form: LineForm, message: &Message) -> Vec<u8> {
        let mut buffer = Vec::new();
        encode_line(form, message, "2023/01/04/a \"b\"", Timestamp::from_micros(7), &mut buffer);
        buffer
    }

    fn is_inline(payload: &[u8]) -> bool {
        let line = encode(LineForm::Json, &message(payload.to_vec()));
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        line.get("payload").is_some()
    }

    #[test]
    fn the_json_form_shows_the_payload_as_the_value_it_is() {
        let mut message = message(r#"{ "value": 1.50 }"#);
        message.attributes = [("device_id", "d\n1")].into_iter().collect();
        message.enrichment = Enrichment::from_text("{\n\"location_id\": \"x\\n\"}").unwrap();
        let expected = format!(
            r#"{{"id":"{}","key":"2023/01/04/a \"b\"","receivedAt":"2023-01-04T21:31:22.661042Z","attributes":{{"device_id":"d\u000a1"}},"enrichment":{{ "location_id": "x\n"}},"payload":{{ "value": 1.50 }}}}"#,
            message.id
        );
        assert_eq!(String::from_utf8(encode(LineForm::Json, &message)).unwrap(), expected);
    }

    #[test]
    fn the_base64_form_has_the_four_fields_of_the_earlier_format() {
        let message = message("abc");
        let expected = format!(
            r#"{{"id":"{}","batchKey":"2023/01/04/a \"b\"","originalPubSubPayload":"YWJj","archivedAt":"1970-01-01T00:00:00.000007Z"}}"#,
            message.id
        );
        assert_eq!(String::from_utf8(encode(LineForm::Base64, &message)).unwrap(), expected);
    }

    #[test]
    fn a_payload_stands_inline_only_when_every_reader_can_take_it() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        for payload in ["null", "1", "\"a\"", "{}", r#"{"a":"\u00e9\ud83d\ude00"}"#, &nested(64)] {
            assert!(is_inline(payload.as_bytes()), "{payload}");
        }
        let outside = [
            "",
            " 1",
            "1 ",
            "1\t",
            "{\"a\":\n1}",
            "{\"a\":\r1}",
            "{\"a\":1",
            "{\"a\":1}{}",
            "nul",
            "NaN",
            "01",
            "\"\u{1}\"",
            r#"{"a":"\ud800"}"#,
            &nested(65),
            "\u{feff}1",
        ];
        for payload in outside {
            assert!(!is_inline(payload.as_bytes()), "{payload:?}");
        }
        assert!(!is_inline(b"\"\xff\""));
    }

    #[test]
    fn what_is_no_line_is_refused() {
        let id = "019aa3f0-5f2c-7c3a-9a53-0123456789ab";
        for line in [
            String::new(),
            "{}".to_owned(),
            format!(r#"{{"id":"{id}","key":"k"}}"#),
            format!(r#"{{"id":"{id}","key":"k","payload":1,"payload_base64":"YQ=="}}"#),
            format!(r#"{{"id":"{id}","key":"k","payload_base64":"?"}}"#),
            r#"{"id":"1","key":"k","payload":1}"#.to_owned(),
        ] {
            assert!(decode_line(line.as_bytes()).is_err(), "{line}");
        }
    }

    fn any_payload() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40),
            r#"[\[\]{}":,0-9a-z \n\r\\u]{0,24}"#.prop_map(String::into_bytes),
            r#"\{"[a-z]{1,3}": ?(null|true|-?[0-9]{1,3}|"[^"\\\x00-\x1f]{0,5}"|\[1, 2\])\}"#
                .prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn every_line_is_one_json_line_that_gives_back_the_message_exactly(
            payload in any_payload(),
            attributes in proptest::collection::btree_map(".{0,6}", ".{0,10}", 0..4),
            base64 in any::<bool>(),
        ) {
            let mut message = message(payload);
            message.attributes = attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let form = if base64 { LineForm::Base64 } else { LineForm::Json };
            let line = encode(form, &message);
            prop_assert!(!has_line_break(&line));
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&line).is_ok());
            let read = decode_line(&line).unwrap();
            prop_assert_eq!(&read.payload, &message.payload);
            prop_assert_eq!(read.id, message.id);
            prop_assert_eq!(&read.key, "2023/01/04/a \"b\"");
            if form == LineForm::Json {
                prop_assert_eq!(read.received_at, Some(message.publish_time));
                prop_assert_eq!(&read.attributes, &message.attributes);
            }
        }
    }
}

//! The packets that the endpoint sends. All are short; none can fail to encode.

use super::packet::Version;
use super::reason::Reason;
use super::window::Answer;
use bytes::{BufMut, BytesMut};

const PINGRESP: [u8; 2] = [0xD0, 0];

/// What a successful CONNACK tells a client of MQTT 5 (section 3.2.2.3).
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnackProperties<'a> {
    pub(super) receive_maximum: u16,
    pub(super) maximum_packet_size: u32,
    pub(super) topic_alias_maximum: u16,
    /// In seconds, when it differs from what the client asked for.
    pub(super) session_expiry: Option<u32>,
    /// When the endpoint chose the identifier.
    pub(super) assigned_client_id: Option<&'a str>,
}

/// CONNACK of 3.1.1 with success.
pub(super) fn connack_v311(out: &mut BytesMut, session_present: bool) {
    out.put_slice(&[0x20, 2, u8::from(session_present), 0]);
}

/// CONNACK of MQTT 5 with success.
pub(super) fn connack_v5(out: &mut BytesMut, session_present: bool, properties: &ConnackProperties<'_>) {
    let mut block = Vec::with_capacity(64);
    if let Some(seconds) = properties.session_expiry {
        block.put_u8(0x11);
        block.put_u32(seconds);
    }
    block.put_u8(0x21);
    block.put_u16(properties.receive_maximum);
    // No Maximum QoS, which says 2. No wildcard, identified or shared subscriptions, as there are none at all.
    block.put_slice(&[0x28, 0, 0x29, 0, 0x2A, 0]);
    block.put_u8(0x27);
    block.put_u32(properties.maximum_packet_size);
    block.put_u8(0x22);
    block.put_u16(properties.topic_alias_maximum);
    if let Some(id) = properties.assigned_client_id {
        block.put_u8(0x12);
        block.put_u16(u16::try_from(id.len()).unwrap_or(0));
        block.put_slice(id.as_bytes());
    }
    // Below 128 bytes: the identifiers we assign have 36 characters. So both lengths take one byte.
    let length = u8::try_from(block.len()).unwrap_or(0);
    out.put_slice(&[0x20, length + 3, u8::from(session_present), 0, length]);
    out.put_slice(&block);
}

/// CONNACK with a refusal; nothing where the version has no code for it.
pub(super) fn connack_refused(out: &mut BytesMut, version: Version, reason: Reason) {
    match (version, reason.return_code()) {
        (Version::V5, _) => out.put_slice(&[0x20, 3, 0, reason.code(), 0]),
        (Version::V311, Some(code)) => out.put_slice(&[0x20, 2, 0, code]),
        (Version::V311, None) => {}
    }
}

/// PUBACK, or at QoS 2 PUBREC; code 0 is success. 3.1.1 has no other, and the caller closes instead.
pub(super) fn answer(out: &mut BytesMut, answer: Answer) {
    let first = if answer.exactly_once { 0x50 } else { 0x40 };
    acknowledgement(out, first, answer.packet_id, answer.code);
}

/// PUBCOMP. MQTT 5 has a reason code for an identifier that was not known; in 3.1.1 all are alike.
pub(super) fn pubcomp(out: &mut BytesMut, version: Version, packet_id: u16, code: u8) {
    acknowledgement(out, 0x70, packet_id, if version == Version::V5 { code } else { 0 });
}

fn acknowledgement(out: &mut BytesMut, first: u8, packet_id: u16, code: u8) {
    let [high, low] = packet_id.to_be_bytes();
    if code == 0 {
        out.put_slice(&[first, 2, high, low]);
    } else {
        out.put_slice(&[first, 3, high, low, code]);
    }
}

/// SUBACK that refuses every filter: 0x80 in 3.1.1 (failure), 0x87 in MQTT 5 (not authorized).
pub(super) fn suback(out: &mut BytesMut, version: Version, packet_id: u16, filters: usize) {
    let code = if version == Version::V5 { 0x87 } else { 0x80 };
    filter_answer(out, version, 0x90, packet_id, code, filters);
}

/// UNSUBACK: nothing was subscribed (0x11 in MQTT 5; 3.1.1 has no codes).
pub(super) fn unsuback(out: &mut BytesMut, version: Version, packet_id: u16, filters: usize) {
    let codes = if version == Version::V5 { filters } else { 0 };
    filter_answer(out, version, 0xB0, packet_id, 0x11, codes);
}

fn filter_answer(out: &mut BytesMut, version: Version, first: u8, packet_id: u16, code: u8, count: usize) {
    let properties = usize::from(version == Version::V5);
    out.put_u8(first);
    put_variable_integer(out, 2 + properties + count);
    out.put_u16(packet_id);
    out.put_bytes(0, properties);
    out.put_bytes(code, count);
}

fn put_variable_integer(out: &mut BytesMut, mut value: usize) {
    loop {
        let byte = u8::try_from(value & 0x7F).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            out.put_u8(byte);
            return;
        }
        out.put_u8(byte | 0x80);
    }
}

/// PINGRESP.
pub(super) fn pingresp(out: &mut BytesMut) {
    out.put_slice(&PINGRESP);
}

/// DISCONNECT. In 3.1.1 a server sends none; it closes.
pub(super) fn disconnect(out: &mut BytesMut, version: Version, reason: Reason) {
    if version == Version::V5 {
        out.put_slice(&[0xE0, 1, reason.code()]);
    }
}

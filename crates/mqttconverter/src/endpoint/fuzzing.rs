//! What must hold for any bytes that a client sends. `fuzz/` looks for bytes that break it, and a test replays those
//! that were found. No part of the library.

use super::auth::Grant;
use super::intake::{Aliases, Gate, Intake, Will};
use super::packet::{Connect, Disconnect, FixedHeader, Packet, Publish, Version};
use crate::message::Properties;
use bytes::Bytes;
use hashbrown::DefaultHashBuilder;
use messagepipeline::Timestamp;
use std::fmt::Debug;

/// As the endpoint's default.
const MAX_PACKET_BYTES: usize = 1 << 20;

/// Heaviest message beyond twice its packet: a topic that an alias stands for, the client identifier, fixed attributes.
const WEIGHT_BESIDE_THE_PACKET: usize = 8 * 1_024;

/// The first byte of `data` chooses version and whether a CONNECT comes first; the rest is what a client sends.
pub fn packets(data: &[u8]) {
    let Some((&choice, mut stream)) = data.split_first() else { return };
    let mut version = if choice & 1 == 0 { Version::V311 } else { Version::V5 };
    let mut connects = choice & 2 != 0;
    let mut gate = gate(version);
    while let Some((header, frame)) = next_packet(stream) {
        stream = &stream[header.packet..];
        if connects {
            connects = false;
            let Ok(connect) = Connect::read(header, frame) else { return };
            connect_holds(&connect, frame);
            version = connect.version;
            gate.version = version;
            continue;
        }
        match Packet::read(version, header, frame) {
            Ok(Packet::Publish(publish)) => publish_holds(&mut gate, &publish, frame),
            Ok(Packet::Subscribe { packet_id, filters }) | Ok(Packet::Unsubscribe { packet_id, filters }) => {
                assert_ne!(packet_id, 0);
                assert!((1..=frame.len()).contains(&filters));
            }
            Ok(Packet::Disconnect(disconnect)) => disconnect_holds(version, disconnect),
            Ok(_) => {}
            // The endpoint ends the connection here.
            Err(_) => return,
        }
    }
}

fn gate(version: Version) -> Gate {
    Gate {
        version,
        grant: Grant::Everything,
        aliases: Aliases::default(),
        hasher: DefaultHashBuilder::default(),
    }
}

/// The next packet as the endpoint cuts it off. A header says the same however much of the stream is there.
fn next_packet(stream: &[u8]) -> Option<(FixedHeader, &[u8])> {
    let header = FixedHeader::read(stream).ok()??;
    for length in 0..header.length {
        assert_eq!(FixedHeader::read(&stream[..length]), Ok(None));
    }
    assert_eq!(FixedHeader::read(&stream[..header.length]), Ok(Some(header)));
    if header.packet > MAX_PACKET_BYTES {
        return None;
    }
    stream.get(..header.packet).map(|frame| (header, frame))
}

fn publish_holds(gate: &mut Gate, publish: &Publish<'_>, frame: &[u8]) {
    assert!(publish.topic.len() + publish.payload.len() <= frame.len());
    let encoded = encode_publish(gate.version, publish);
    let header = header_of(&encoded);
    match Packet::read(gate.version, header, &encoded) {
        Ok(Packet::Publish(again)) => assert_eq!(publish_meaning(publish), publish_meaning(&again)),
        other => panic!("{publish:?} written again is read as {other:?}"),
    }
    // A frame of its own: whatever the message holds on to must lie within it.
    let frame = Bytes::copy_from_slice(frame);
    let header = header_of(&frame);
    let Ok(Packet::Publish(publish)) = Packet::read(gate.version, header, &frame) else {
        panic!("the same bytes are no PUBLISH the second time");
    };
    let mut intake = Intake::default();
    if gate.take(&publish, &frame, "client", Timestamp::from_millis(0), &mut intake).is_ok() {
        assert_eq!(intake.deliveries.len(), 1);
        assert_eq!(intake.deliveries[0].message.payload, publish.payload);
        assert!(intake.weight <= 2 * frame.len() + WEIGHT_BESIDE_THE_PACKET, "{} bytes", intake.weight);
    }
}

fn connect_holds(connect: &Connect<'_>, frame: &[u8]) {
    let encoded = encode_connect(connect);
    let header = header_of(&encoded);
    match Connect::read(header, &encoded) {
        Ok(again) => assert_eq!(connect_meaning(connect), connect_meaning(&again)),
        Err(refused) => panic!("{connect:?} written again is refused: {refused:?}"),
    }
    if let Some(will) = &connect.will {
        assert!(will.topic.len() + will.payload.len() <= frame.len());
        let _ = Will::new(will, &Grant::Everything, connect.client_id);
    }
}

fn disconnect_holds(version: Version, disconnect: Disconnect) {
    let mut body = Vec::new();
    if version == Version::V5 {
        body.push(if disconnect.publish_will { 4 } else { 0 });
        let mut block = Vec::new();
        if let Some(seconds) = disconnect.session_expiry {
            block.push(0x11);
            block.extend_from_slice(&seconds.to_be_bytes());
        }
        put_block(&mut body, &block);
    }
    let encoded = packet(0xE0, &body);
    match Packet::read(version, header_of(&encoded), &encoded) {
        Ok(Packet::Disconnect(again)) => assert_eq!(disconnect, again),
        other => panic!("{disconnect:?} written again is read as {other:?}"),
    }
}

fn header_of(bytes: &[u8]) -> FixedHeader {
    match FixedHeader::read(bytes) {
        Ok(Some(header)) => header,
        other => panic!("no fixed header: {other:?}"),
    }
}

/// All that a PUBLISH says, whatever the order of its properties.
fn publish_meaning(publish: &Publish<'_>) -> String {
    let user: Vec<_> = publish.user_properties().collect();
    assert_eq!(user.len(), publish.user_property_count);
    let Publish { dup, qos, retain, topic, packet_id, alias, properties, payload, .. } = publish;
    format!("{:?}", (dup, qos, retain, topic, packet_id, alias, properties, user, payload))
}

fn connect_meaning(connect: &Connect<'_>) -> String {
    let Connect { version, client_id, clean, keep_alive, session_expiry, extended_authentication, .. } =
        connect;
    let credentials = (connect.credentials.user, connect.credentials.password);
    let will = connect.will.as_ref().map(|will| {
        let user: Vec<_> = will.user_properties().collect();
        (will.qos, will.retain, will.topic, will.payload, will.delay, show(will.properties), user)
    });
    let fixed = (version, client_id, clean, keep_alive, session_expiry, extended_authentication);
    format!("{:?}", (fixed, credentials, will))
}

fn show(value: impl Debug) -> String {
    format!("{value:?}")
}

fn encode_publish(version: Version, publish: &Publish<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    put_binary(&mut body, publish.topic.as_bytes());
    if publish.qos > 0 {
        body.extend_from_slice(&publish.packet_id.to_be_bytes());
    }
    if version == Version::V5 {
        let mut block = encode_properties(&publish.properties);
        if let Some(alias) = publish.alias {
            block.push(0x23);
            block.extend_from_slice(&alias.to_be_bytes());
        }
        put_user_properties(&mut block, publish.user_properties());
        put_block(&mut body, &block);
    }
    body.extend_from_slice(publish.payload);
    let first = 0x30 | u8::from(publish.dup) << 3 | publish.qos << 1 | u8::from(publish.retain);
    packet(first, &body)
}

fn encode_connect(connect: &Connect<'_>) -> Vec<u8> {
    let Connect { version, credentials, will, .. } = connect;
    let v5 = *version == Version::V5;
    let mut body = Vec::new();
    put_binary(&mut body, b"MQTT");
    let will_flags = will.as_ref().map_or(0, |will| 0b100 | will.qos << 3 | u8::from(will.retain) << 5);
    let flags = u8::from(connect.clean) << 1
        | will_flags
        | u8::from(credentials.user.is_some()) << 7
        | u8::from(credentials.password.is_some()) << 6;
    body.extend_from_slice(&[if v5 { 5 } else { 4 }, flags]);
    body.extend_from_slice(&connect.keep_alive.to_be_bytes());
    if v5 {
        let mut block = Vec::new();
        if let Some(seconds) = connect.session_expiry {
            block.push(0x11);
            block.extend_from_slice(&seconds.to_be_bytes());
        }
        if connect.extended_authentication {
            block.push(0x15);
            put_binary(&mut block, b"method");
        }
        put_block(&mut body, &block);
    }
    put_binary(&mut body, connect.client_id.as_bytes());
    if let Some(will) = will {
        if v5 {
            let mut block = encode_properties(&will.properties);
            block.push(0x18);
            block.extend_from_slice(&will.delay.to_be_bytes());
            put_user_properties(&mut block, will.user_properties());
            put_block(&mut body, &block);
        }
        put_binary(&mut body, will.topic.as_bytes());
        put_binary(&mut body, will.payload);
    }
    for field in [credentials.user.map(str::as_bytes), credentials.password].into_iter().flatten() {
        put_binary(&mut body, field);
    }
    packet(0x10, &body)
}

fn encode_properties(properties: &Properties<'_>) -> Vec<u8> {
    let mut block = Vec::new();
    if properties.payload_is_utf8 {
        block.extend_from_slice(&[1, 1]);
    }
    if let Some(seconds) = properties.message_expiry {
        block.push(2);
        block.extend_from_slice(&seconds.to_be_bytes());
    }
    let texts = [(3, properties.content_type), (8, properties.response_topic)];
    let binary = [(9, properties.correlation_data)];
    for (id, value) in texts.map(|(id, text)| (id, text.map(str::as_bytes))).into_iter().chain(binary) {
        if let Some(value) = value {
            block.push(id);
            put_binary(&mut block, value);
        }
    }
    block
}

fn put_user_properties<'a>(block: &mut Vec<u8>, user: impl Iterator<Item = (&'a str, &'a str)>) {
    for (name, value) in user {
        block.push(0x26);
        put_binary(block, name.as_bytes());
        put_binary(block, value.as_bytes());
    }
}

fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    let Ok(length) = u16::try_from(bytes.len()) else { panic!("{} bytes in one field", bytes.len()) };
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put_block(out: &mut Vec<u8>, block: &[u8]) {
    put_length(out, block.len());
    out.extend_from_slice(block);
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    put_length(&mut out, body.len());
    out.extend_from_slice(body);
    out
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let low = u8::try_from(length & 0x7F).unwrap_or(0);
        length >>= 7;
        out.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_fuzzing_found_and_its_seeds_hold() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/packets");
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let data = std::fs::read(&path).unwrap();
            if std::panic::catch_unwind(|| super::packets(&data)).is_err() {
                panic!("{} breaks what must hold", path.display());
            }
            count += 1;
        }
        assert!(count > 20, "only {count} files in {folder}");
    }
}

//! Clients that mean harm with QoS 2: they release nothing, release what they never sent, and use identifiers that are
//! not free. A device that keeps the rules is served beside them, exactly once.

use crate::common::Bag;
use crate::raw_mqtt::{Raw, packet, publish, string};
use crate::siege::Siege;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

const RECEIVE_MAXIMUM: u16 = 64;
/// What a session may hold (docs/guarantees.md).
const MOST_HELD: u16 = 4 * RECEIVE_MAXIMUM;

/// Connects to a session that is kept.
fn kept(port: u16, version: u8, client_id: &str) -> Raw {
    let mut body = string(b"MQTT");
    body.extend([version, 0, 0, 0]);
    if version == 5 {
        body.extend([5, 0x11, 0, 0, 14, 16]);
    }
    body.extend(string(client_id.as_bytes()));
    let mut raw = Raw::open(port).unwrap();
    raw.send(&packet(0x10, &body)).unwrap();
    let connack = raw.answer().unwrap().unwrap();
    assert_eq!((connack.first, connack.body[1]), (0x20, 0));
    raw
}

fn publish_once(version: u8, packet_id: u16, payload: &str) -> Vec<u8> {
    let mut bytes = publish(version, b"hoard", Some(packet_id), &[], payload.as_bytes());
    bytes[0] = 0x34;
    bytes
}

fn pubrel(packet_id: u16) -> Vec<u8> {
    packet(0x62, &packet_id.to_be_bytes())
}

/// Sends `bytes` and waits for the answer `first` to `packet_id`.
fn exchange(raw: &mut Raw, bytes: &[u8], first: u8, packet_id: u16) {
    raw.send(bytes).unwrap();
    let answer = raw.answer().unwrap().expect("closed instead");
    assert_eq!((answer.first, &answer.body[..2]), (first, &packet_id.to_be_bytes()[..]));
}

/// The server's last packet before it closed, if it said why.
fn farewell(raw: &mut Raw) -> Option<u8> {
    let mut reason = None;
    while let Ok(Some(answer)) = raw.answer() {
        reason = (answer.first == 0xE0).then(|| answer.body[0]).or(reason);
    }
    reason
}

/// A device that keeps the rules at QoS 2, and notes what had its PUBREC.
struct Exact {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Bag>,
}

impl Exact {
    fn start(port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut raw = kept(port, 4, "exact");
            let mut accepted = Bag::new();
            while !stopped.load(Ordering::SeqCst) {
                let payload = format!("{{\"device_id\":\"exact\",\"n\":{}}}", accepted.len());
                exchange(&mut raw, &publish_once(4, 1, &payload), 0x50, 1);
                accepted.insert(payload.into_bytes(), 1);
                exchange(&mut raw, &pubrel(1), 0x70, 1);
            }
            accepted
        });
        Self { stop, thread }
    }

    fn finish(self) -> Bag {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

/// One client under many connections, and what it got a PUBREC for.
struct Hoarder<'a> {
    port: u16,
    version: u8,
    client_id: String,
    accepted: &'a mut Bag,
}

impl Hoarder<'_> {
    fn connect(&self) -> Raw {
        kept(self.port, self.version, &self.client_id)
    }

    fn payload(&self, what: &str, packet_id: u16) -> String {
        format!("{{\"client\":\"{}\",\"{what}\":{packet_id}}}", self.client_id)
    }

    fn hold(&mut self, raw: &mut Raw, what: &str, packet_id: u16) {
        let payload = self.payload(what, packet_id);
        exchange(raw, &publish_once(self.version, packet_id, &payload), 0x50, packet_id);
        self.accepted.insert(payload.into_bytes(), 1);
    }

    /// Never releases: to the bound, and then floods beyond it.
    fn hoard(&mut self) {
        let mut raw = self.connect();
        for packet_id in 1..=MOST_HELD {
            // An MQTT 5 client has used up its receive maximum, and tries its luck on a new connection.
            if packet_id % RECEIVE_MAXIMUM == 1 {
                raw = self.connect();
            }
            self.hold(&mut raw, "held", packet_id);
        }
        for _ in 0..3 {
            let mut raw = self.connect();
            let beyond = MOST_HELD + 1..MOST_HELD + 2_000;
            let flood: Vec<u8> =
                beyond.flat_map(|id| publish_once(self.version, id, &self.payload("beyond", id))).collect();
            let _ = raw.send(&flood);
            let reason = farewell(&mut raw);
            // A reset may swallow it.
            assert!(self.version == 4 || reason.is_none_or(|reason| reason == 0x97), "{reason:?}");
        }
    }

    /// Releases what it never sent, again and again.
    fn release_unknown(&self) {
        let mut raw = self.connect();
        let flood: Vec<u8> = (30_000..31_000).flat_map(pubrel).collect();
        for _ in 0..20 {
            raw.send(&flood).unwrap();
            for packet_id in 30_000_u16..31_000 {
                let answer = raw.answer().unwrap().expect("closed instead");
                assert_eq!((answer.first, &answer.body[..2]), (0x70, &packet_id.to_be_bytes()[..]));
            }
        }
    }

    /// Another message under an identifier that it did not release is a new one; one behind its PUBREL is not taken.
    fn reuse(&mut self) {
        let mut raw = self.connect();
        self.hold(&mut raw, "reused", 1);
        let early = publish_once(self.version, 1, &self.payload("before its PUBCOMP", 1));
        raw.send(&[pubrel(1), early].concat()).unwrap();
        let reason = farewell(&mut raw);
        assert!(self.version == 4 || reason == Some(0x82), "{reason:?}");
    }
}

#[test]
fn hoarders_of_packet_identifiers_shut_out_only_themselves() {
    let siege = Siege::start(&format!("ingestion:\n  mqtt: {{receive_maximum: {RECEIVE_MAXIMUM}}}\n"));
    let port = siege.up.mqtt;
    let exact = Exact::start(port);
    let mut accepted = Bag::new();
    for n in 0..2 {
        for version in [4, 5] {
            let client_id = format!("hoarder-{version}-{n}");
            let mut hoarder = Hoarder { port, version, client_id, accepted: &mut accepted };
            hoarder.hoard();
            hoarder.release_unknown();
            hoarder.reuse();
        }
        siege.is_well();
    }
    accepted.extend(exact.finish());
    siege.end("hoarders at QoS 2", accepted);
}

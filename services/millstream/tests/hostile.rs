//! Clients that mean harm: whatever they send, the process lives, other devices are served, memory stays bounded,
//! nothing outside the data folder is touched, and the stores hold exactly what was acknowledged.
//!
//! `MILLSTREAM_HOSTILE_DEVICES` and `MILLSTREAM_HOSTILE_CONNECTIONS` make two of the attacks larger.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod common;
mod hoarders;
mod raw_mqtt;
mod siege;

use common::{Bag, Up, get, millstream, until};
use raw_mqtt::{Answer, Raw, connect, packet, publish, string, user_property};
use siege::{Siege, scale};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

/// Longest packet taken, as configured by default.
const MAX_PACKET: usize = 1 << 20;

/// A client that connects anew whenever it was thrown out, and notes what it got a PUBACK of success for.
struct Attacker {
    port: u16,
    version: u8,
    raw: Option<Raw>,
    accepted: Bag,
}

impl Attacker {
    fn new(up: &Up, version: u8) -> Self {
        Self { port: up.mqtt, version, raw: None, accepted: Bag::new() }
    }

    /// Publishes at QoS 1: the reason code, or `None` when that ended the connection.
    fn publish(&mut self, topic: &[u8], properties: &[u8], payload: &[u8]) -> Option<u8> {
        let (port, version) = (self.port, self.version);
        let raw = self.raw.get_or_insert_with(|| Raw::connect(port, version, "attacker").unwrap());
        let code = raw.exchange(&publish(version, topic, Some(7), properties, payload)).unwrap();
        match code {
            None => self.raw = None,
            Some(code) if code < 0x80 => *self.accepted.entry(payload.to_vec()).or_default() += 1,
            Some(_) => {}
        }
        code
    }
}

fn nested(depth: usize) -> Vec<u8> {
    [vec![b'['; depth], vec![b']'; depth]].concat()
}

#[test]
fn any_payload_is_stored_as_it_came_or_refused_and_harms_nobody() {
    let siege = Siege::start("");
    let many_keys: String = (0..60_000).map(|n| format!("\"k{n}\":{n},")).collect();
    let mut payloads: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0],
        (0..=255).collect(),
        vec![0xff; 1_000],
        b"\xc3\x28 \xed\xa0\x80 invalid".to_vec(),
        b"{\"device_id\":".to_vec(),
        b"{\"device_id\":\"a\"} {\"device_id\":\"b\"}".to_vec(),
        b"{\"device_id\":\"x\",\"device_id\":\"y\",\"location\":1,\"location\":2}".to_vec(),
        b"{\"n\":1e999999,\"m\":-1e-999999,\"device_id\":1234567890123456789012345678901234567890}".to_vec(),
        b"{\"device_id\":\"\\ud800\",\"location\":\"\\udc00\"}".to_vec(),
        b"{\"device_id\":\"a\\u0000b\",\"location\":\"\\u0000\"}".to_vec(),
        b"null".to_vec(),
        b"\"\"".to_vec(),
        b"\xef\xbb\xbf{\"device_id\":\"bom\"}".to_vec(),
        nested(100_000),
        b"{\"device_id\":".repeat(80_000),
        [&b"{\"location\":"[..], &nested(100_000), b"}"].concat(),
        format!("{{\"{}\":1}}", "k".repeat(MAX_PACKET - 1_000)).into_bytes(),
        format!("{{{many_keys}\"end\":1}}").into_bytes(),
        [&b"{\"n\":"[..], &b"9".repeat(900_000), b"}"].concat(),
    ];
    // A payload as large as a packet may be, and its neighbour.
    let overhead = publish(5, b"x", Some(1), &[], &vec![0; 900_000]).len() - 900_000;
    payloads.push(vec![b'x'; MAX_PACKET - overhead]);
    let mut accepted = Bag::new();
    for version in [4, 5] {
        let mut attacker = Attacker::new(&siege.up, version);
        for payload in &payloads {
            let code = attacker.publish(b"x", &[], payload);
            assert_eq!(code, Some(0), "{:?}", String::from_utf8_lossy(&payload[..payload.len().min(50)]));
        }
        assert_eq!(attacker.publish(b"x", &[], &vec![b'x'; MAX_PACKET]), None, "larger than a packet may be");
        for (payload, count) in attacker.accepted {
            *accepted.entry(payload).or_default() += count;
        }
    }
    siege.end("payloads", accepted);
}

#[test]
fn hostile_topics_are_names_like_others_or_refused() {
    let siege = Siege::start("");
    let mut attacker = Attacker::new(&siege.up, 5);
    let long = format!("devices/{}", "../".repeat(3_000));
    let taken: [&[u8]; 11] = [
        b"..",
        b"/",
        b"//",
        b"/devices/../../../etc/passwd",
        b"devices/../../..",
        b"devices/..%2f..%2f",
        b"devices//",
        b"devices/a/",
        b"devices/\x01\x1b[2J\x7f",
        "devices/\u{202e}\u{feff}\u{10ffff}".as_bytes(),
        b"devices/'; DROP TABLE messages; --",
    ];
    for (n, topic) in taken.iter().enumerate() {
        let payload = format!("{{\"topic\":{n}}}");
        let code = attacker.publish(topic, &[], payload.as_bytes());
        assert_eq!(code, Some(0), "{:?}", String::from_utf8_lossy(topic));
    }
    let away = format!("devices/{}tmp/{}", "../".repeat(20), siege.marker());
    assert_eq!(attacker.publish(away.as_bytes(), &[], b"{\"topic\":\"away\"}"), Some(0), "{away}");
    // No route of the default's takes a server's own names: that is a dead letter, and acknowledged.
    assert_eq!(attacker.publish(b"$SYS/broker/uptime", &[], b"{\"sys\":true}"), Some(0));
    attacker.accepted.remove(&b"{\"sys\":true}"[..]);
    until("the dead letter", || {
        let metrics = get(siege.up.http, "/metrics").1;
        let letter =
            |line: &str| line.contains("dead_lettered") && line.contains("no-route") && line.ends_with(" 1");
        metrics.lines().any(letter)
    });
    let refused: [&[u8]; 9] = [
        b"",
        b"a\0b",
        b"devices/+",
        b"#",
        b"\xff\xfe",
        b"a\xed\xa0\x80",
        long.as_bytes(),
        &[b'x'; 10 * 1_024],
        &[b'/'; 65_535],
    ];
    for topic in refused {
        let code = attacker.publish(topic, &[], b"{\"refused\":true}");
        assert!(
            code.is_none_or(|code| code >= 0x80),
            "{:?}",
            String::from_utf8_lossy(&topic[..topic.len().min(20)])
        );
    }
    siege.end("topics", attacker.accepted);
}

#[test]
fn hostile_ids_properties_and_locations_stay_text() {
    let siege = Siege::start("");
    let texts = [
        "../../x",
        "..",
        ".",
        "/etc/passwd",
        "a/../../../../../../tmp/x",
        "archive.db",
        "~root",
        "%2e%2e%2f",
        "x\u{1}\u{1b}]0;y\u{7}",
        "CON",
        "-rf *",
        "\u{202e}gnp.exe",
        "$(reboot)`reboot`",
    ];
    let (up, marker) = ("../".repeat(20), siege.marker());
    let away = [
        format!("../{marker}"),
        format!("{up}tmp/{marker}"),
        format!("/tmp/{marker}"),
        format!("{up}{marker}"),
    ];
    let mut attacker = Attacker::new(&siege.up, 5);
    for (n, text) in texts
        .iter()
        .map(|text| (*text).to_owned())
        .chain(["y".repeat(60_000), "../".repeat(20_000)])
        .chain(away)
        .enumerate()
    {
        let payload = serde_json::json!({ "device_id": text, "location": text, "n": n }).to_string();
        let properties = [
            user_property(b"location_id", text.as_bytes()),
            user_property(b"device_id", text.as_bytes()),
            user_property(b"mqtt_topic", text.as_bytes()),
            user_property(text.as_bytes(), b"value"),
            user_property(b"", b""),
        ];
        // With and without a device id from the topic; with properties named like our own attributes.
        assert_eq!(attacker.publish(b"plain", &[], payload.as_bytes()), Some(0), "{n}");
        assert_eq!(attacker.publish(b"plain", &properties.concat(), payload.as_bytes()), Some(0), "{n}");
    }
    let flood: Vec<u8> = (0..5_000).flat_map(|n| user_property(format!("p{n}").as_bytes(), b"v")).collect();
    assert_eq!(attacker.publish(b"plain", &flood, b"{}"), Some(0x97), "thousands of properties");
    let ids: [&[u8]; 9] = [
        b"../../x",
        b"/",
        b"a\0b",
        b"\xff",
        b"",
        &[b'i'; 1_024],
        &[b'i'; 1_025],
        &[b'i'; 65_535],
        b"\x1b[2J",
    ];
    for id in ids {
        for version in [4, 5] {
            let mut raw = Raw::open(siege.up.mqtt).unwrap();
            // A refusal may come while the rest is still on its way.
            let _ = raw.send(&connect(version, id, 0));
            let Ok(Some(Answer { first: 0x20, body })) = raw.answer() else { continue };
            if body[1] == 0 && id.len() <= 1_024 {
                let payload = format!("{{\"id\":{},\"v\":{version}}}", id.len());
                assert_eq!(raw.publish(version, b"plain", payload.as_bytes()).unwrap(), Some(0));
                *attacker.accepted.entry(payload.into_bytes()).or_default() += 1;
            } else {
                assert_ne!(body[1], 0, "an identifier of {} bytes", id.len());
            }
        }
    }
    siege.end("ids, properties and locations", attacker.accepted);
}

/// Publishes `count` messages with `window` of them unacknowledged; `make` says topic and payload.
fn flood(port: u16, client: &str, count: usize, make: impl Fn(usize) -> (String, String)) -> Bag {
    const WINDOW: usize = 500;
    let mut raw = Raw::connect(port, 5, client).unwrap();
    let (mut accepted, mut acked) = (Bag::new(), 0);
    for first in (0..count).step_by(WINDOW) {
        let mut block = Vec::new();
        let last = (first + WINDOW).min(count);
        for n in first..last {
            let (topic, payload) = make(n);
            let id = u16::try_from(n % 60_000 + 1).unwrap();
            block.extend(publish(5, topic.as_bytes(), Some(id), &[], payload.as_bytes()));
            accepted.insert(payload.into_bytes(), 1);
        }
        raw.send(&block).unwrap();
        while acked < last {
            let (_, code) = raw.answer().unwrap().expect("still connected").puback().expect("a PUBACK");
            assert_eq!(code, 0);
            acked += 1;
        }
    }
    accepted
}

#[test]
fn ever_new_devices_clients_and_locations_leave_caches_sessions_and_metrics_bounded() {
    let siege = Siege::start("enrichment:\n  cache: {size: 10000}\n");
    let devices = scale("MILLSTREAM_HOSTILE_DEVICES", 20_000);
    let mut accepted = flood(siege.up.mqtt, "many-devices", devices, |n| {
        (format!("devices/device-{n:07}/up"), format!("{{\"n\":{n}}}"))
    });
    let metrics = get(siege.up.http, "/metrics").1.lines().count();
    println!("{devices} devices: {} MiB resident, {metrics} lines of metrics", siege.peak_mib());
    // An object each, with syncs of its own.
    let locations = (devices / 50).min(2_000);
    accepted.extend(flood(siege.up.mqtt, "many-locations", locations, |n| {
        (format!("other/{n}"), format!("{{\"location\":\"place-{n}\"}}"))
    }));
    for n in 0..(devices / 20).min(20_000) {
        // A session that is to be kept for as long as possible.
        let mut request = string(b"MQTT");
        request.extend([5, 0x00, 0, 0, 5, 0x11, 0xff, 0xff, 0xff, 0xff]);
        request.extend(string(format!("client-{n}").as_bytes()));
        let mut raw = Raw::open(siege.up.mqtt).unwrap();
        raw.send(&packet(0x10, &request)).unwrap();
        assert_eq!(raw.answer().unwrap().unwrap().first, 0x20);
    }
    let lines = get(siege.up.http, "/metrics").1.lines().count();
    assert!(lines < metrics + 100, "{metrics} lines of metrics became {lines}");
    siege.end("ever new devices", accepted);
}

/// Sends `bytes` and reads to the end: everything the server said before it closed.
fn talk(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    // The server may have had enough before the end.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    said
}

/// SplitMix64, so that a failing run can be repeated.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed ^ (mixed >> 27)
    };
    (0..length).map(|_| next().to_le_bytes()[0]).collect()
}

const TLS_HELLO: &[u8] = b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03";

#[test]
fn what_is_no_mqtt_ends_its_own_connection_only() {
    let siege = Siege::start("");
    let port = siege.up.mqtt;
    let strangers: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        TLS_HELLO,
        b"\x10\xff\xff\xff\xff\x01",
        b"\x10\xff\xff\xff\x7f",
        b"\x00\x00",
        b"\xf0\x00",
        b"\x30\x05\x00\x01xhi",
        b"\x10\x00",
    ];
    for stranger in strangers {
        talk(port, stranger);
    }
    for seed in 0..200 {
        talk(port, &noise(seed, 300));
        // Noise behind a beginning that looks right gets further in.
        talk(port, &[&b"\x10\x7f\x00\x04MQTT\x05"[..], &noise(seed, 200)].concat());
        talk(port, &[connect(5, b"noise", 0), vec![0x32], noise(seed, 200)].concat());
        talk(port, &[connect(4, b"noise", 0), noise(seed, 200)].concat());
    }
    siege.is_well();
    let alias = |number: u16| [&[0x23][..], &number.to_be_bytes()].concat();
    let violations: Vec<(&str, Vec<u8>)> = vec![
        ("a second CONNECT", connect(5, b"v", 0)),
        ("packet identifier 0", publish(5, b"x", Some(0), &[], b"violation")),
        ("QoS 3", [vec![0x36], publish(5, b"x", Some(1), &[], b"violation")[1..].to_vec()].concat()),
        ("a length of five bytes", b"\x32\xff\xff\xff\xff\x01".to_vec()),
        ("a packet too large", b"\x32\xff\xff\xff\x7f".to_vec()),
        ("wrong flags", b"\xc1\x00".to_vec()),
        ("a server's packet", b"\x20\x02\x00\x00".to_vec()),
        ("an alias of 0", publish(5, b"x", Some(1), &alias(0), b"violation")),
        ("an alias beyond the maximum", publish(5, b"x", Some(1), &alias(65_535), b"violation")),
        ("an unknown alias", publish(5, b"", Some(1), &alias(3), b"violation")),
        ("an alias twice", publish(5, b"x", Some(1), &[alias(1), alias(1)].concat(), b"violation")),
        ("properties beyond the packet", b"\x32\x07\x00\x01x\x00\x01\x7f\x00".to_vec()),
        ("SUBSCRIBE with wrong flags", b"\x80\x06\x00\x01\x00\x00\x01#".to_vec()),
    ];
    for (what, bytes) in &violations {
        let said = talk(port, &[connect(5, b"violator", 0), bytes.clone()].concat());
        let disconnect = said.windows(3).rev().find(|bytes| bytes[0] == 0xE0);
        assert!(disconnect.is_some_and(|bytes| bytes[2] >= 0x80), "{what} was answered with {said:02x?}");
    }
    siege.end("no MQTT", Bag::new());
}

#[test]
fn garbage_on_the_admin_port_leaves_it_answering() {
    let siege = Siege::start("");
    let port = siege.up.http;
    let long_path = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a/".repeat(200_000));
    let many_headers = format!(
        "GET /healthz HTTP/1.1\r\n{}\r\n",
        (0..10_000).map(|n| format!("h{n}: v\r\n")).collect::<String>()
    );
    let attacks: [&[u8]; 9] = [
        TLS_HELLO,
        &connect(5, b"x", 0),
        long_path.as_bytes(),
        many_headers.as_bytes(),
        b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz\0 HTTP/1.1\r\n\r\n",
        b"POST /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for attack in attacks {
        let said = talk(port, attack);
        assert!(!String::from_utf8_lossy(&said).contains("root:"));
    }
    for seed in 0..100 {
        talk(port, &noise(seed, 500));
    }
    // Half-open requests take places; a probe that waits in the queue is served when they time out.
    let slow: Vec<_> = (0..80)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\nHost").unwrap();
            stream
        })
        .collect();
    assert_eq!(get(port, "/healthz").0, 200);
    drop(slow);
    siege.end("admin port", Bag::new());
}

#[test]
fn clients_that_send_byte_by_byte_or_nothing_are_thrown_out_and_hold_up_nobody() {
    let siege = Siege::start("ingestion:\n  mqtt: {connect_timeout: 2s}\n");
    let port = siege.up.mqtt;
    let silent: Vec<_> = (0..100).map(|_| Raw::open(port).unwrap()).collect();
    let mut in_connect: Vec<_> = (0..100).map(|_| Raw::open(port).unwrap()).collect();
    let mut in_publish: Vec<_> =
        (0..100).map(|n| Raw::connect(port, 5, &format!("slow-{n}")).unwrap()).collect();
    let large = publish(5, b"x", Some(1), &[], &vec![b'y'; 900_000]);
    for byte in 0..12 {
        for raw in &mut in_connect {
            // It may have been thrown out already.
            let _ = raw.send(&connect(5, b"slowloris-client", 0)[byte..=byte]);
        }
        for raw in &mut in_publish {
            raw.send(&large[byte..=byte]).unwrap();
        }
        siege.is_well();
    }
    // Whoever has not finished its CONNECT in time is out; keep-alive ends a connected client that falls silent.
    for mut raw in silent.into_iter().chain(in_connect) {
        assert_eq!(raw.answer().unwrap(), None);
    }
    let mut quiet = Raw::open(port).unwrap();
    quiet.send(&connect(5, b"quiet", 1)).unwrap();
    assert_eq!(quiet.answer().unwrap().unwrap().first, 0x20);
    let farewell = quiet.answer().unwrap().unwrap();
    assert_eq!((farewell.first, farewell.body[0]), (0xE0, 0x8D));
    siege.end("byte by byte", Bag::new());
}

#[test]
fn connections_beyond_the_maximum_are_refused_with_the_reason_and_the_others_live() {
    let connections = scale("MILLSTREAM_HOSTILE_CONNECTIONS", 1_000);
    let maximum = connections * 9 / 10;
    let siege = Siege::start(&format!("ingestion:\n  mqtt: {{max_connections: {maximum}}}\n"));
    let port = siege.up.mqtt;
    // The honest device has one.
    let mut crowd: Vec<_> =
        (1..maximum).map(|n| Raw::connect(port, 5, &format!("crowd-{n}")).unwrap()).collect();
    let mut told = [0, 0];
    for n in maximum..connections {
        for (told, (version, code)) in told.iter_mut().zip([(5, 0x97), (4, 3)]) {
            let mut raw = Raw::open(port).unwrap();
            // Beyond a few refusals at a time, further ones are just closed.
            let _ = raw.send(&connect(version, format!("beyond-{n}").as_bytes(), 0));
            if let Ok(Some(answer)) = raw.answer() {
                assert_eq!((answer.first, answer.body[1]), (0x20, code));
                *told += 1;
            }
        }
    }
    assert!(told.iter().all(|count| *count > 0), "MQTT 5 and 3.1.1 were told {told:?} times");
    let accepted = crowd[0].publish(5, b"x", b"from the crowd").unwrap();
    assert_eq!(accepted, Some(0));
    println!("{connections} connections: {} MiB resident", siege.peak_mib());
    drop(crowd);
    until("room again", || Raw::connect(port, 5, "later").is_ok());
    siege.end("connections", Bag::from([(b"from the crowd".to_vec(), 1)]));
}

#[test]
fn without_file_descriptors_left_the_program_goes_on_and_accepts_again_later() {
    let siege = Siege::start_with("", |folder| {
        let program = millstream(folder);
        let mut command = Command::new("sh");
        command
            .args(["-c", "ulimit -n 160; exec \"$0\" \"$@\""])
            .arg(program.get_program())
            .args(program.get_args());
        command.current_dir(folder);
        command
    });
    let port = siege.up.mqtt;
    let crowd: Vec<_> = (0..300).map(|_| Raw::open(port).unwrap()).collect();
    siege.is_well();
    drop(crowd);
    until("accepted again", || Raw::connect(port, 5, "later").is_ok());
    siege.end("no descriptors left", Bag::new());
}

#[test]
fn a_client_that_never_reads_its_answers_stops_only_itself() {
    let siege = Siege::start("");
    // As many as fit between us and the server.
    let mut raw = Raw::connect(siege.up.mqtt, 4, "deaf").unwrap();
    raw.stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let ping = [0xC0, 0].repeat(32 * 1_024);
    let mut sent = 0;
    while sent < 256 << 20 && raw.send(&ping).is_ok() {
        sent += ping.len();
    }
    println!("a client that does not read could send {sent} bytes of PINGREQ");
    assert!(sent < 256 << 20, "nothing more is read from a client that does not read");
    siege.is_well();
    drop(raw);
    siege.end("never reads", Bag::new());
}

#[test]
fn floods_beyond_what_was_agreed_end_the_connection() {
    let siege = Siege::start("ingestion:\n  mqtt: {receive_maximum: 10}\n");
    let port = siege.up.mqtt;
    let mut flood = connect(5, b"flood", 0);
    for id in 1..=2_000_u16 {
        flood.extend(publish(5, b"flood", Some(id), &[], b"{}"));
    }
    let mut raw = Raw::open(port).unwrap();
    let _ = raw.send(&flood);
    let (mut accepted, mut farewell) = (0, None);
    while let Ok(Some(answer)) = raw.answer() {
        accepted += usize::from(answer.puback().is_some_and(|(_, code)| code == 0));
        farewell = (answer.first == 0xE0).then(|| answer.body[0]).or(farewell);
    }
    assert_eq!(farewell, Some(0x93), "after {accepted} PUBACKs");
    for (what, request) in [
        ("SUBSCRIBE", packet(0x82, &[&[0, 9, 0][..], &string(b"#"), &[1]].concat())),
        ("UNSUBSCRIBE", packet(0xA2, &[&[0, 9, 0][..], &string(b"#")].concat())),
        ("PINGREQ", vec![0xC0, 0]),
    ] {
        let mut raw = Raw::connect(port, 5, what).unwrap();
        for _ in 0..20 {
            if raw.send(&request.repeat(1_000)).is_err() {
                break;
            }
            let Ok(Some(_)) = raw.answer() else { break };
        }
        siege.is_well();
    }
    // What was sent before the violation may be stored without its PUBACK.
    let stored = siege.stored_at_least(b"{}", accepted);
    siege.end("floods", Bag::from([(b"{}".to_vec(), stored)]));
}

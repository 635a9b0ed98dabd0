//! A QoS 1 publisher with a stopwatch: MQTT 3.1.1 written by hand, so that nothing but the wire is in its times.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What one device is to send.
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) rate: f64,
    pub(crate) payloads: Vec<Vec<u8>>,
}

/// A publish and its PUBACK, by the number that ends its topic.
#[derive(Clone, Copy)]
pub(crate) struct Published {
    pub(crate) number: u64,
    pub(crate) sent: Instant,
    pub(crate) acknowledged: Instant,
}

/// Publishes at the device's rate for `time`, to topics `devices/<name>/<number>`, numbers from `first` on. Answers
/// when each message was sent and acknowledged.
pub(crate) fn publish(port: u16, device: &Device, first: u64, time: Duration) -> Vec<Published> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_nodelay(true).unwrap();
    connect(&mut stream, &device.name);
    let under_way: Arc<Mutex<HashMap<u16, (u64, Instant)>>> = Arc::default();
    let count = (device.rate * time.as_secs_f64()) as u64;
    let reader = {
        let (mut stream, under_way) = (stream.try_clone().unwrap(), Arc::clone(&under_way));
        std::thread::spawn(move || {
            let mut published = Vec::new();
            while (published.len() as u64) < count {
                let mut packet = [0; 4];
                stream.read_exact(&mut packet).unwrap();
                assert_eq!(packet[..2], [0x40, 2], "a PUBACK");
                let acknowledged = Instant::now();
                let id = u16::from_be_bytes([packet[2], packet[3]]);
                let (number, sent) = under_way.lock().unwrap().remove(&id).unwrap();
                published.push(Published { number, sent, acknowledged });
            }
            published
        })
    };
    let start = Instant::now();
    for n in 0..count {
        let due = start + Duration::from_secs_f64(n as f64 / device.rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let number = first + n;
        let id = (n % 65_535) as u16 + 1;
        let packet =
            publish_packet(&device.name, number, id, &device.payloads[n as usize % device.payloads.len()]);
        under_way.lock().unwrap().insert(id, (number, Instant::now()));
        stream.write_all(&packet).unwrap();
    }
    let published = reader.join().unwrap();
    stream.write_all(&[0xe0, 0]).unwrap();
    published
}

pub(crate) fn connect(stream: &mut TcpStream, name: &str) {
    let mut packet = vec![0x10, (10 + 2 + name.len()) as u8];
    packet.extend_from_slice(b"\x00\x04MQTT\x04\x02\x00\x3c");
    text(&mut packet, name);
    stream.write_all(&packet).unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0], "CONNACK");
}

pub(crate) fn publish_packet(name: &str, number: u64, id: u16, payload: &[u8]) -> Vec<u8> {
    let topic = format!("devices/{name}/{number}");
    let mut packet = vec![0x32];
    let mut length = 2 + topic.len() + 2 + payload.len();
    loop {
        let low = (length % 128) as u8;
        length /= 128;
        packet.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    text(&mut packet, &topic);
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

fn text(packet: &mut Vec<u8>, text: &str) {
    packet.extend_from_slice(&(text.len() as u16).to_be_bytes());
    packet.extend_from_slice(text.as_bytes());
}

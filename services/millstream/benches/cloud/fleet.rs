//! Devices: QoS 1 publishers that keep a window of messages in flight, each message with a number in its topic.

use crate::publisher::{connect, publish_packet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// How a fleet publishes.
#[derive(Clone, Copy)]
pub(crate) struct Fleet {
    pub(crate) devices: usize,
    /// Messages in flight per device.
    pub(crate) window: usize,
    /// Messages per second of all together; `None` is as fast as the broker takes them.
    pub(crate) rate: Option<f64>,
}

impl Fleet {
    /// Publishes the messages numbered `0..count` to `devices/<name>/<number>`, payloads from the first on again and
    /// again. Returns when the broker has acknowledged all of them.
    pub(crate) fn publish(&self, port: u16, payloads: &[Vec<u8>], count: usize) {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for device in 0..self.devices {
                scope.spawn(move || self.device(port, payloads, device, count, start));
            }
        });
    }

    /// One device: every `devices`-th number, each at its own time.
    fn device(&self, port: u16, payloads: &[Vec<u8>], device: usize, count: usize, start: Instant) {
        let name = format!("sensor-{device:04}");
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        connect(&mut stream, &name);
        let (entered, window) = sync_channel(self.window);
        let acknowledgements = {
            let mut stream = stream.try_clone().unwrap();
            std::thread::spawn(move || {
                for id in window {
                    let mut packet = [0; 4];
                    stream.read_exact(&mut packet).unwrap();
                    assert_eq!(packet[..2], [0x40, 2], "a PUBACK");
                    assert_eq!(u16::from_be_bytes([packet[2], packet[3]]), id, "PUBACKs come in order");
                }
            })
        };
        for (place, number) in (device..count).step_by(self.devices).enumerate() {
            if let Some(rate) = self.rate {
                let due = start + Duration::from_secs_f64(number as f64 / rate);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let id = (place % 65_535) as u16 + 1;
            let packet = publish_packet(&name, number as u64, id, &payloads[number % payloads.len()]);
            entered.send(id).unwrap();
            stream.write_all(&packet).unwrap();
        }
        drop(entered);
        acknowledgements.join().unwrap();
        stream.write_all(&[0xe0, 0]).unwrap();
    }
}

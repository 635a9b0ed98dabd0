//! MQTT byte by byte: packets as a test wants them, right or wrong, and an honest publisher that keeps its own books.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// A packet from its first byte and what follows the length.
pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let low = u8::try_from(length % 128).unwrap();
        length /= 128;
        packet.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

/// Two bytes of length, then the bytes.
pub(crate) fn string(bytes: &[u8]) -> Vec<u8> {
    let mut string = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    string.extend_from_slice(bytes);
    string
}

/// A CONNECT of version 4 (3.1.1) or 5 that starts a clean session.
pub(crate) fn connect(version: u8, client_id: &[u8], keep_alive: u16) -> Vec<u8> {
    let mut body = string(b"MQTT");
    body.extend([version, 0x02]);
    body.extend(keep_alive.to_be_bytes());
    if version == 5 {
        body.push(0);
    }
    body.extend(string(client_id));
    packet(0x10, &body)
}

/// A PUBLISH at QoS 1, or at QoS 0 without a packet identifier. `properties` are MQTT 5's, without their length.
pub(crate) fn publish(
    version: u8,
    topic: &[u8],
    packet_id: Option<u16>,
    properties: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut body = string(topic);
    body.extend(packet_id.map(u16::to_be_bytes).into_iter().flatten());
    if version == 5 {
        body.extend(&packet(0, properties)[1..]);
    }
    body.extend_from_slice(payload);
    packet(if packet_id.is_some() { 0x32 } else { 0x30 }, &body)
}

/// An MQTT 5 user property.
pub(crate) fn user_property(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut property = vec![0x26];
    property.extend(string(name));
    property.extend(string(value));
    property
}

/// One packet of the server's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) first: u8,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// Packet identifier and reason code of a PUBACK.
    pub(crate) fn puback(&self) -> Option<(u16, u8)> {
        if self.first != 0x40 {
            return None;
        }
        let id = u16::from_be_bytes([self.body[0], self.body[1]]);
        Some((id, self.body.get(2).copied().unwrap_or(0)))
    }
}

/// A socket to the endpoint.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    input: Vec<u8>,
}

impl Raw {
    /// Connects the socket and says nothing.
    pub(crate) fn open(port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(crate::common::PATIENCE))?;
        stream.set_write_timeout(Some(crate::common::PATIENCE))?;
        Ok(Self { stream, input: Vec::new() })
    }

    /// Connects as a client, without keep-alive.
    pub(crate) fn connect(port: u16, version: u8, client_id: &str) -> io::Result<Self> {
        let mut raw = Self::open(port)?;
        raw.send(&connect(version, client_id.as_bytes(), 0))?;
        match raw.answer()? {
            Some(Answer { first: 0x20, body }) if body[1] == 0 => Ok(raw),
            other => Err(io::Error::other(format!("CONNECT was answered with {other:?}"))),
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next packet; `None` when the server has closed the connection.
    pub(crate) fn answer(&mut self) -> io::Result<Option<Answer>> {
        let mut block = [0; 4_096];
        loop {
            if let Some(answer) = self.take() {
                return Ok(Some(answer));
            }
            match self.stream.read(&mut block) {
                Ok(0) => return Ok(None),
                Ok(count) => self.input.extend_from_slice(&block[..count]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self) -> Option<Answer> {
        let (mut length, mut shift, mut at) = (0_usize, 0, 1);
        loop {
            let byte = *self.input.get(at)?;
            length |= usize::from(byte & 0x7f) << shift;
            (shift, at) = (shift + 7, at + 1);
            if byte & 0x80 == 0 {
                break;
            }
        }
        if self.input.len() < at + length {
            return None;
        }
        let answer = Answer { first: self.input[0], body: self.input[at..at + length].to_vec() };
        self.input.drain(..at + length);
        Some(answer)
    }

    /// Publishes at QoS 1 and waits for the reason code; `None` when the connection was ended instead.
    pub(crate) fn publish(&mut self, version: u8, topic: &[u8], payload: &[u8]) -> io::Result<Option<u8>> {
        self.exchange(&publish(version, topic, Some(1), &[], payload))
    }

    /// Sends a PUBLISH and waits for its PUBACK's reason code; `None` when the connection was ended instead.
    pub(crate) fn exchange(&mut self, publish: &[u8]) -> io::Result<Option<u8>> {
        // The server may have closed before all was written; its last words are still to be read.
        let sent = self.send(publish);
        loop {
            match self.answer() {
                Ok(Some(answer)) => {
                    if let Some((_, code)) = answer.puback() {
                        return Ok(Some(code));
                    }
                }
                Ok(None) => return Ok(None),
                Err(_) if sent.is_err() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

/// What an honest publisher knows at its end.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Payloads with a PUBACK of success.
    pub(crate) acked: BTreeSet<String>,
    /// Payloads that had to be sent again because no PUBACK came; they may be stored twice.
    pub(crate) resent: BTreeSet<String>,
    /// Reason codes of refusals, with how often each came.
    pub(crate) refused: BTreeMap<u8, usize>,
    /// Connections that ended while it was publishing.
    pub(crate) disconnects: usize,
}

/// Publishes at QoS 1 (MQTT 5) until stopped, at most `window` without PUBACK, with pauses, and connects again when it must.
pub(crate) struct Publisher {
    acked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Published>>,
}

impl Publisher {
    /// Starts; `name` is its client id and the beginning of its device ids.
    pub(crate) fn start(port: u16, name: &str, window: usize) -> Self {
        let (acked, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let run = Run {
            port,
            name: name.to_owned(),
            window,
            acked: Arc::clone(&acked),
            stop: Arc::clone(&stop),
            published: Published::default(),
            open: BTreeMap::new(),
            number: 0,
        };
        Self { acked, stop, thread: Some(std::thread::spawn(move || run.run())) }
    }

    /// How many have their PUBACK.
    pub(crate) fn acked(&self) -> usize {
        self.acked.load(Ordering::SeqCst)
    }

    /// Waits until `more` further messages have their PUBACK.
    pub(crate) fn wait_for(&self, more: usize) {
        let wanted = self.acked() + more;
        crate::common::until(&format!("{more} more PUBACKs"), || self.acked() >= wanted);
    }

    /// Sends nothing new, waits for the PUBACKs that are missing, and answers what it knows.
    pub(crate) fn finish(mut self) -> Published {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

struct Run {
    port: u16,
    name: String,
    window: usize,
    acked: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    published: Published,
    open: BTreeMap<u16, String>,
    number: u32,
}

impl Run {
    fn run(mut self) -> Published {
        let start = std::time::Instant::now();
        loop {
            match self.serve() {
                Ok(()) => return self.published,
                Err(_) => {
                    self.published.disconnects += 1;
                    assert!(start.elapsed() < 4 * crate::common::PATIENCE, "{}: never finished", self.name);
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut raw = Raw::connect(self.port, 5, &self.name)?;
        for (id, payload) in &self.open {
            self.published.resent.insert(payload.clone());
            raw.send(&self.packet(*id, payload))?;
        }
        loop {
            let stopped = self.stop.load(Ordering::SeqCst);
            if stopped && self.open.is_empty() {
                return raw.send(&packet(0xE0, &[]));
            }
            while !stopped && self.open.len() < self.window {
                self.send_next(&mut raw)?;
            }
            let answer = raw.answer()?.ok_or(io::ErrorKind::ConnectionReset)?;
            self.take(&answer);
            // A steady device, and not a flood.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn send_next(&mut self, raw: &mut Raw) -> io::Result<()> {
        self.number += 1;
        let id = u16::try_from(self.number % 60_000 + 1).unwrap();
        let payload =
            format!("{{\"device_id\":\"{}-{}\",\"n\":{}}}", self.name, self.number % 7, self.number);
        self.open.insert(id, payload.clone());
        raw.send(&self.packet(id, &payload))
    }

    fn packet(&self, id: u16, payload: &str) -> Vec<u8> {
        let topic = format!("devices/{}", self.name);
        publish(5, topic.as_bytes(), Some(id), &[], payload.as_bytes())
    }

    fn take(&mut self, answer: &Answer) {
        let Some((id, code)) = answer.puback() else { return };
        let payload = self.open.remove(&id).unwrap();
        if code < 0x80 {
            self.published.acked.insert(payload);
            self.acked.fetch_add(1, Ordering::SeqCst);
        } else {
            *self.published.refused.entry(code).or_default() += 1;
        }
    }
}

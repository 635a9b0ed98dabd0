//! A TCP proxy between the program and a broker that reads along: which messages came, in which order their PUBACKs
//! left, and when the program pinged.

use super::devices::Payloads;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;

/// What passed by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Per connection, in the order of connecting.
    pub(crate) connections: Vec<Passed>,
    /// How often the broker sent a message, by its number. (mosquitto also marks as sent before what only waited in
    /// its queue, so the mark says nothing.)
    pub(crate) deliveries: BTreeMap<usize, usize>,
}

/// What passed by on one connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passed {
    /// MQTT's protocol level.
    level: u8,
    /// Packet identifiers of QoS 1 messages from the broker.
    pub(crate) published: Vec<u16>,
    /// Packet identifiers of PUBACKs to the broker.
    pub(crate) acknowledged: Vec<u16>,
    pub(crate) pings: usize,
    pub(crate) over: bool,
}

/// The proxy; it runs to the end of the test's process.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    seen: Arc<Mutex<Seen>>,
}

impl Proxy {
    pub(crate) fn start(broker: u16, payloads: &Arc<Payloads>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (shared, payloads) = (Arc::clone(&seen), Arc::clone(payloads));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Refused while the broker is down: the client sees its connection end.
                let Ok(server) = TcpStream::connect(("127.0.0.1", broker)) else { continue };
                let index = {
                    let mut seen = shared.lock();
                    seen.connections.push(Passed::default());
                    seen.connections.len() - 1
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (shared, payloads) = (Arc::clone(&shared), Arc::clone(&payloads));
                    std::thread::spawn(move || pass(&from, &to, index, &shared, &payloads));
                }
            }
        });
        Self { port, seen }
    }

    /// What passed by until now.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }
}

/// Passes bytes on until either side ends. Each packet is noted before it is passed on.
fn pass(mut from: &TcpStream, mut to: &TcpStream, index: usize, seen: &Mutex<Seen>, payloads: &Payloads) {
    let (mut buffer, mut packets) = (vec![0; 64 * 1024], Vec::new());
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
    {
        packets.extend_from_slice(&buffer[..count]);
        let mut done = 0;
        while let Some((first, start, end)) = packet(&packets[done..]) {
            note(first, &packets[done + start..done + end], index, &mut seen.lock(), payloads);
            done += end;
        }
        packets.drain(..done);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    seen.lock().connections[index].over = true;
    for stream in [from, to] {
        // The other direction may have done it.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// The first byte of the packet at the front, and where its body begins and ends; `None` when it is not whole.
fn packet(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (length, used) = variable(bytes.get(1..)?)?;
    let end = 1 + used + length;
    (bytes.len() >= end).then(|| (bytes[0], 1 + used, end))
}

/// A variable byte integer and how many bytes it takes.
fn variable(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (index, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}

fn note(first: u8, body: &[u8], index: usize, seen: &mut Seen, payloads: &Payloads) {
    let number = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
    let connection = &mut seen.connections[index];
    match first >> 4 {
        // CONNECT: two bytes of length, `MQTT`, the level.
        1 => connection.level = body[6],
        // PUBLISH at QoS 1: topic, packet identifier, properties since MQTT 5, payload.
        3 if first & 0x06 == 0x02 => {
            let topic_end = 2 + usize::from(number(0));
            connection.published.push(number(topic_end));
            let mut payload = topic_end + 2;
            if connection.level == 5 {
                let (length, used) = variable(&body[payload..]).unwrap();
                payload += used + length;
            }
            *seen.deliveries.entry(payloads.number(&body[payload..])).or_default() += 1;
        }
        4 => connection.acknowledged.push(number(0)),
        12 => connection.pings += 1,
        _ => {}
    }
}

impl Seen {
    /// Whether the PUBACKs of every connection left in the order in which its messages came. An error names the first
    /// that did not.
    pub(crate) fn acknowledged_in_order(&self) -> Result<(), String> {
        for (index, connection) in self.connections.iter().enumerate() {
            let pairs = connection.published.iter().zip(&connection.acknowledged);
            if let Some(at) = pairs.clone().position(|(published, acknowledged)| published != acknowledged) {
                return Err(format!("connection {index}: PUBACK {at} is not the one of PUBLISH {at}"));
            }
            if connection.acknowledged.len() > connection.published.len() {
                return Err(format!("connection {index}: more PUBACKs than messages"));
            }
        }
        Ok(())
    }

    /// Messages that were acknowledged to the broker, over all connections.
    pub(crate) fn acknowledged(&self) -> usize {
        self.connections.iter().map(|connection| connection.acknowledged.len()).sum()
    }

    /// Pings over all connections.
    pub(crate) fn pings(&self) -> usize {
        self.connections.iter().map(|connection| connection.pings).sum()
    }

    /// Times that the broker sent a message again.
    pub(crate) fn redelivered(&self) -> usize {
        self.deliveries.values().map(|count| count - 1).sum()
    }

    /// Whether everything that came on the last connection has its PUBACK.
    pub(crate) fn is_settled(&self) -> bool {
        self.connections.last().is_some_and(|last| last.published.len() == last.acknowledged.len())
    }
}

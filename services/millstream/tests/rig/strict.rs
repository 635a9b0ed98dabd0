//! A device at QoS 2 that does what MQTT's specifications say (3.1.1 and 5: sections 4.3.3, 4.4, 4.6, 4.9) and takes no
//! answer that they do not allow: a socket, a session, no library.
//!
//! The session is two lists. After a new connection every PUBLISH of the first is sent again with DUP, then every PUBREL
//! of the second, each in the order of the first time [MQTT-4.4.0-1] [MQTT-4.6.0-1] [MQTT-4.6.0-4].

use super::devices::{Client, LOOK, Line, RECONNECT, Shared, Version, device_id};
use super::raw_mqtt::{self, Answer, Raw};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Longest wait for a CONNACK, and for a server that reads nothing. Only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A message that has a packet identifier.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    packet_id: u16,
    number: usize,
}

/// Why a connection is over.
enum Over {
    /// It broke.
    Broken(io::Error),
    /// The server did what no server may.
    Violation(String),
}

impl From<io::Error> for Over {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

struct Device<'a> {
    shared: &'a Shared,
    name: String,
    version: u8,
    window: usize,
    /// Identifiers are used again as soon as they are free, instead of after all others.
    reuses: bool,
    /// PUBLISH sent, no PUBREC yet.
    published: VecDeque<Exchange>,
    /// PUBREC received, no PUBCOMP yet.
    released: VecDeque<Exchange>,
    last_id: u16,
    /// The server has once answered that it has the session.
    is_known: bool,
    /// The PUBRELs at the front that were sent on an earlier connection as well.
    repeated: usize,
}

/// One connection's work, over as many sockets as it takes.
pub(super) fn publish(shared: &Shared, name: String, line: &Line) {
    let version = if line.version == Version::V5 { 5 } else { 4 };
    let mut device = Device {
        shared,
        reuses: line.window.is_multiple_of(2),
        name,
        version,
        window: line.window,
        published: VecDeque::new(),
        released: VecDeque::new(),
        last_id: 0,
        is_known: false,
        repeated: 0,
    };
    loop {
        if let Err(over) = device.connect() {
            match over {
                Over::Broken(error) => device.note(&error),
                Over::Violation(what) => return device.refuse(&what),
            }
        } else if device.is_done() {
            return;
        }
        if matches!(line.client, Client::Mortal) && shared.switched_off.load(Ordering::Relaxed) {
            return device.end();
        }
        std::thread::sleep(RECONNECT);
    }
}

impl Device<'_> {
    fn note(&self, error: &io::Error) {
        self.shared.record.lock().trouble.insert(self.name.clone(), error.to_string());
    }

    fn refuse(&self, what: &str) {
        let name = &self.name;
        self.shared.record.lock().refused.push(format!("{name} (MQTT {}): {what}", self.version));
    }

    fn is_done(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed) && self.published.is_empty() && self.released.is_empty()
    }

    /// The device is switched off: the server has answered for what had its PUBREC, and for nothing else.
    fn end(self) {
        let mut record = self.shared.record.lock();
        record.acked.extend(self.released.iter().map(|exchange| exchange.number));
        record.gone.extend(self.published.iter().map(|exchange| exchange.number));
    }

    /// One connection from its beginning to its end.
    fn connect(&mut self) -> Result<(), Over> {
        let mut raw = Raw::open(self.shared.port)?;
        raw.stream.set_read_timeout(Some(PATIENCE))?;
        raw.stream.set_write_timeout(Some(PATIENCE))?;
        raw.send(&self.connect_packet())?;
        let receive_maximum = self.accepted(raw.answer()?)?;
        self.shared.connected();
        let over = self.serve(&mut raw, self.window.min(receive_maximum));
        if matches!(over, Err(Over::Broken(_))) {
            let kill = self.shared.kill.load(Ordering::Relaxed);
            let mut record = self.shared.record.lock();
            record.breaks += 1;
            for exchange in &self.published {
                record.resent.entry(exchange.number).or_default().push(kill);
            }
        }
        self.shared.disconnected();
        over
    }

    /// CONNECT with a session that is kept. An MQTT 5 client that has none begins with a clean start, as it may not go
    /// on where it does not know from [MQTT-3.2.2-4].
    fn connect_packet(&self) -> Vec<u8> {
        let is_clean_start = self.version == 5 && !self.is_known;
        let mut body = raw_mqtt::string(b"MQTT");
        body.extend([self.version, u8::from(is_clean_start) << 1, 0, 0]);
        if self.version == 5 {
            // Session Expiry Interval: one hour.
            body.extend([5, 0x11, 0, 0, 0x0e, 0x10]);
        }
        body.extend(raw_mqtt::string(self.name.as_bytes()));
        raw_mqtt::packet(0x10, &body)
    }

    /// Reads the CONNACK; answers with the server's receive maximum.
    fn accepted(&mut self, answer: Option<Answer>) -> Result<usize, Over> {
        let Some(answer) = answer else { return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()) };
        let [present, code, ref rest @ ..] = answer.body[..] else {
            return Err(Over::Violation(format!("CONNECT was answered with {answer:?}")));
        };
        if answer.first != 0x20 || present > 1 {
            return Err(Over::Violation(format!("CONNECT was answered with {answer:?}")));
        }
        if code != 0 {
            return Err(io::Error::other(format!("CONNECT was refused with {code:#x}")).into());
        }
        let is_new = self.version == 5 && !self.is_known;
        if self.is_known && present == 0 || is_new && present == 1 {
            return Err(Over::Violation(format!("Session Present is {present}, known: {}", self.is_known)));
        }
        self.is_known = true;
        if self.version == 5 { receive_maximum(rest).map_err(Over::Violation) } else { Ok(usize::MAX) }
    }

    /// Sends what the last connection left, then new messages, until the connection breaks or all is done.
    fn serve(&mut self, raw: &mut Raw, window: usize) -> Result<(), Over> {
        self.repeated = self.released.len();
        for exchange in &self.published {
            raw.send(&self.publish_packet(*exchange, true))?;
        }
        for exchange in &self.released {
            raw.send(&release_packet(exchange.packet_id))?;
        }
        raw.stream.set_read_timeout(Some(LOOK))?;
        while !self.is_done() {
            // MQTT 5 counts a message until its PUBCOMP [MQTT-3.3.4-9].
            while self.published.len() + self.released.len() < window
                && let Some(number) = self.shared.take()
            {
                let exchange = Exchange { packet_id: self.free_id(), number };
                // In the session before it is on the wire.
                self.published.push_back(exchange);
                raw.send(&self.publish_packet(exchange, false))?;
            }
            match raw.answer() {
                Ok(Some(answer)) => self.receive(raw, &answer)?,
                Ok(None) => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // DISCONNECT, with the session kept.
        Ok(raw.send(&raw_mqtt::packet(0xe0, &[]))?)
    }

    fn receive(&mut self, raw: &mut Raw, answer: &Answer) -> Result<(), Over> {
        let (packet_id, code) = match answer.body[..] {
            [high, low] => (u16::from_be_bytes([high, low]), 0),
            [high, low, code, ..] if self.version == 5 => (u16::from_be_bytes([high, low]), code),
            // The server says why it ends the connection (MQTT 5, section 3.14).
            _ if answer.first == 0xe0 && self.version == 5 => {
                return Err(io::Error::other(format!("DISCONNECT {:?}", answer.body.first())).into());
            }
            _ => return Err(Over::Violation(format!("{answer:?}"))),
        };
        match answer.first {
            0x50 if code < 0x80 => {
                let exchange = taken_out(&mut self.published, packet_id);
                let exchange = exchange.ok_or_else(|| self.unexpected("PUBREC", packet_id))?.1;
                self.released.push_back(exchange);
                Ok(raw.send(&release_packet(packet_id))?)
            }
            0x70 => {
                let (index, exchange) = taken_out(&mut self.released, packet_id)
                    .ok_or_else(|| self.unexpected("PUBCOMP", packet_id))?;
                let is_repeated = index < self.repeated;
                self.repeated -= usize::from(is_repeated);
                // Packet Identifier not found: its PUBCOMP was lost with an earlier connection.
                if code != 0 && !(is_repeated && code == 0x92) {
                    return Err(Over::Violation(format!("PUBCOMP {packet_id} with code {code:#x}")));
                }
                self.shared.record.lock().acked.insert(exchange.number);
                Ok(())
            }
            _ => Err(Over::Violation(format!("{answer:?}"))),
        }
    }

    fn unexpected(&self, what: &str, packet_id: u16) -> Over {
        let is_published = self.published.iter().any(|exchange| exchange.packet_id == packet_id);
        let is_released = self.released.iter().any(|exchange| exchange.packet_id == packet_id);
        Over::Violation(format!(
            "{what} {packet_id}, which awaits PUBREC: {is_published}, PUBCOMP: {is_released}"
        ))
    }

    fn free_id(&mut self) -> u16 {
        if self.reuses {
            self.last_id = 0;
        }
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let mut in_use = self.published.iter().chain(&self.released);
            if in_use.all(|exchange| exchange.packet_id != self.last_id) {
                return self.last_id;
            }
        }
    }

    fn publish_packet(&self, exchange: Exchange, is_again: bool) -> Vec<u8> {
        let topic = format!("devices/{}/up", device_id(exchange.number));
        let payload = self.shared.payloads.payload(exchange.number);
        let mut packet =
            raw_mqtt::publish(self.version, topic.as_bytes(), Some(exchange.packet_id), &[], &payload);
        packet[0] = 0x34 | u8::from(is_again) << 3;
        packet
    }
}

fn release_packet(packet_id: u16) -> Vec<u8> {
    raw_mqtt::packet(0x62, &packet_id.to_be_bytes())
}

/// Takes the exchange out of its list, and says where it stood.
fn taken_out(list: &mut VecDeque<Exchange>, packet_id: u16) -> Option<(usize, Exchange)> {
    let index = list.iter().position(|exchange| exchange.packet_id == packet_id)?;
    Some((index, list.remove(index)?))
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The receive maximum among a CONNACK's properties (MQTT 5, sections 2.2.2 and 3.2.2.3), which fit one byte of length.
fn receive_maximum(properties: &[u8]) -> Result<usize, String> {
    let wrong = || format!("the properties of CONNACK are {properties:x?}");
    let mut rest = properties.get(1..).ok_or_else(wrong)?;
    let mut maximum = 65_535;
    while let [identifier, value @ ..] = rest {
        let length = match identifier {
            0x24 | 0x25 | 0x28 | 0x29 | 0x2a => 1,
            0x13 | 0x21 | 0x22 => 2,
            0x11 | 0x27 => 4,
            _ => return Err(wrong()),
        };
        let (value, behind) = value.split_at_checked(length).ok_or_else(wrong)?;
        if *identifier == 0x21 {
            maximum = usize::from(u16::from_be_bytes([value[0], value[1]]));
        }
        rest = behind;
    }
    Ok(maximum)
}

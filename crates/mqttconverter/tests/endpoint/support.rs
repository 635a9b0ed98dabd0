//! An endpoint under test, and a client that writes its packets by hand.

use messagepipeline::{Ack, Consumer, IdGenerator, Message, SystemClock};
use mqttconverter::endpoint::{Endpoint, EndpointConsumer, EndpointHandle, EndpointOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use testkit::session_suite::MemorySessions;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What never comes is waited for this long; what comes is there at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Rig {
    pub(crate) address: SocketAddr,
    pub(crate) consumer: EndpointConsumer,
    pub(crate) handle: EndpointHandle,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut EndpointOptions)) -> Self {
        Self::bind(None, change).await
    }

    /// With the least budget: packets of 256 KiB, a MiB in flight.
    pub(crate) async fn tight(change: impl FnOnce(&mut EndpointOptions)) -> Self {
        Self::with(|options| {
            options.max_packet_bytes = 256 * 1024;
            options.max_in_flight_bytes = 1 << 20;
            change(options);
        })
        .await
    }

    /// An endpoint as the next process starts it on what `store` has.
    pub(crate) async fn on(store: &MemorySessions) -> Self {
        Self::bind(Some(store), |_| {}).await
    }

    pub(crate) async fn bind(
        store: Option<&MemorySessions>,
        change: impl FnOnce(&mut EndpointOptions),
    ) -> Self {
        let mut options =
            EndpointOptions { listen: (Ipv4Addr::LOCALHOST, 0).into(), ..EndpointOptions::default() };
        change(&mut options);
        let (ids, clock) = (Arc::new(IdGenerator::default()), Arc::new(SystemClock));
        let endpoint = match store {
            Some(store) => Endpoint::bind_with_store(options, ids, clock, Arc::new(store.clone())).await,
            None => Endpoint::bind(options, ids, clock).await,
        };
        let Endpoint { address, mut consumer, handle } = endpoint.unwrap();
        consumer.open().await.unwrap();
        Self { address, consumer, handle }
    }

    /// The next messages, at least one.
    pub(crate) async fn next(&mut self) -> Vec<(Message, Ack)> {
        let chunk = timeout(PATIENCE, self.consumer.next()).await.expect("no message came").unwrap();
        chunk.expect("the endpoint has ended").into_acks()
    }

    pub(crate) async fn take(&mut self, count: usize) -> Vec<(Message, Ack)> {
        let mut taken = Vec::new();
        while taken.len() < count {
            taken.extend(self.next().await);
        }
        assert_eq!(taken.len(), count);
        taken
    }

    /// Whether a message waits. Only meaningful after an answer that came behind the publish in question.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        tokio::select! {
            biased;
            _ = self.consumer.next() => false,
            () = std::future::ready(()) => true,
        }
    }

    /// Everything that comes until the endpoint has drained.
    pub(crate) async fn drain(&mut self) -> Vec<(Message, Ack)> {
        self.handle.drain();
        let mut all = Vec::new();
        while let Some(chunk) = timeout(PATIENCE, self.consumer.next()).await.expect("not drained").unwrap() {
            all.extend(chunk.into_acks());
        }
        all
    }

    pub(crate) async fn client(&self, connect: Connect<'_>) -> Client {
        self.session(connect).await.0
    }

    /// A client, and whether the endpoint knew its session.
    pub(crate) async fn session(&self, connect: Connect<'_>) -> (Client, bool) {
        let mut client = Client::open(self.address).await;
        client.send(&connect.bytes()).await;
        let connack = client.packet().await;
        assert_eq!((connack[0], connack[3]), (0x20, 0), "refused: {connack:02x?}");
        (client, connack[2] == 1)
    }
}

pub(crate) fn payloads(messages: &[(Message, Ack)]) -> Vec<&[u8]> {
    messages.iter().map(|(message, _)| &message.payload[..]).collect()
}

#[derive(Clone, Copy)]
pub(crate) struct Connect<'a> {
    pub(crate) level: u8,
    pub(crate) client_id: &'a str,
    pub(crate) clean: bool,
    pub(crate) keep_alive: u16,
    /// Session Expiry Interval; MQTT 5 only.
    pub(crate) expiry: u32,
    /// Topic and payload.
    pub(crate) will: Option<(&'a str, &'a str)>,
    pub(crate) credentials: Option<(&'a str, &'a str)>,
}

pub(crate) const V311: Connect<'static> = Connect {
    level: 4,
    client_id: "device",
    clean: true,
    keep_alive: 0,
    expiry: 0,
    will: None,
    credentials: None,
};

pub(crate) const V5: Connect<'static> = Connect { level: 5, ..V311 };

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap().to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A packet from its first byte and its body.
pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut rest = body.len();
    loop {
        let byte = u8::try_from(rest & 0x7f).unwrap();
        rest >>= 7;
        out.push(if rest > 0 { byte | 0x80 } else { byte });
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

impl Connect<'_> {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let flags = u8::from(self.clean) << 1
            | if self.will.is_some() { 0b0000_1100 } else { 0 }
            | if self.credentials.is_some() { 0b1100_0000 } else { 0 };
        let mut body = Vec::new();
        text(&mut body, "MQTT");
        body.extend_from_slice(&[self.level, flags]);
        body.extend_from_slice(&self.keep_alive.to_be_bytes());
        if self.level == 5 {
            body.extend_from_slice(&[5, 0x11]);
            body.extend_from_slice(&self.expiry.to_be_bytes());
        }
        text(&mut body, self.client_id);
        if let Some((topic, payload)) = self.will {
            if self.level == 5 {
                body.push(0);
            }
            text(&mut body, topic);
            text(&mut body, payload);
        }
        if let Some((user, password)) = self.credentials {
            text(&mut body, user);
            text(&mut body, password);
        }
        packet(0x10, &body)
    }
}

/// A PUBLISH at QoS 1 (QoS 0 if `id` is 0).
pub(crate) fn publish(level: u8, id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    publish_with(level, id, topic, &[], payload)
}

pub(crate) fn publish_with(level: u8, id: u16, topic: &str, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, topic);
    if id > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    if level == 5 {
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend_from_slice(properties);
    }
    body.extend_from_slice(payload);
    packet(if id > 0 { 0x32 } else { 0x30 }, &body)
}

/// A PUBLISH at QoS 2.
pub(crate) fn publish_once(level: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = publish(level, id, "t", payload);
    bytes[0] = 0x34;
    bytes
}

pub(crate) fn pubrec(id: u8) -> Vec<u8> {
    vec![0x50, 2, 0, id]
}

pub(crate) fn pubrel(id: u8) -> Vec<u8> {
    vec![0x62, 2, 0, id]
}

pub(crate) fn pubcomp(id: u8) -> Vec<u8> {
    vec![0x70, 2, 0, id]
}

/// The same packet, marked as sent again.
pub(crate) fn again(mut publish: Vec<u8>) -> Vec<u8> {
    publish[0] |= 0b1000;
    publish
}

pub(crate) fn puback(id: u8) -> Vec<u8> {
    vec![0x40, 2, 0, id]
}

pub(crate) const PINGREQ: [u8; 2] = [0xC0, 0];
pub(crate) const PINGRESP: [u8; 2] = [0xD0, 0];
pub(crate) const DISCONNECT: [u8; 2] = [0xE0, 0];

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
}

impl Client {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn byte(&mut self) -> u8 {
        timeout(PATIENCE, self.stream.read_u8()).await.expect("nothing came").expect("closed instead")
    }

    /// The next packet.
    pub(crate) async fn packet(&mut self) -> Vec<u8> {
        let first = self.byte().await;
        let mut lengths = vec![self.byte().await];
        while lengths[lengths.len() - 1] & 0x80 != 0 {
            lengths.push(self.byte().await);
        }
        let length = lengths.iter().rev().fold(0, |sum, byte| (sum << 7) | usize::from(byte & 0x7f));
        let mut body = vec![0; length];
        timeout(PATIENCE, self.stream.read_exact(&mut body)).await.expect("nothing came").unwrap();
        [vec![first], lengths, body].concat()
    }

    pub(crate) async fn expect(&mut self, expected: &[u8]) {
        let got = self.packet().await;
        assert_eq!(got, expected, "got {got:02x?}, expected {expected:02x?}");
    }

    /// Sends a PINGREQ and waits for its answer: what was sent before has then been decoded, and nothing was
    /// written in between.
    pub(crate) async fn ping(&mut self) {
        self.send(&PINGREQ).await;
        self.expect(&PINGRESP).await;
    }

    /// The endpoint closes, without another word.
    pub(crate) async fn expect_closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is a way to be closed, too.
        let _ = timeout(PATIENCE, self.stream.read_to_end(&mut rest)).await.expect("still open");
        assert_eq!(rest, b"", "{rest:02x?}");
    }
}

//! The packets a subscriber needs, in both protocol versions.
//!
//! Only this module and its two siblings know the vendor's codecs. Their event loop is not used: it reconnects,
//! resumes and replays on its own account and reads as long as it is polled, while a subscriber that acknowledges late
//! must be able to stop reading and still send PINGREQ, and must know which PUBACK belongs to which connection.

use super::{BrokerError, BrokerOptions, Protocol, Subscription, client_v4, client_v5};
use bytes::{Bytes, BytesMut};

/// What came from the broker.
#[derive(Debug)]
pub(super) enum Incoming {
    ConnAck(ConnAck),
    SubAck(Vec<Grant>),
    Publish(Publish),
    /// Anything that only shows that the broker lives.
    Alive,
    /// The broker ends the connection (MQTT 5).
    Disconnect(String),
}

/// The broker's answer to CONNECT.
#[derive(Debug)]
pub(super) struct ConnAck {
    pub(super) session_present: bool,
    pub(super) refusal: Option<Refusal>,
    /// Keep-alive in seconds that the broker sets in place of ours (MQTT 5).
    pub(super) keep_alive: Option<u16>,
    /// Session expiry in seconds that the broker sets in place of ours (MQTT 5).
    pub(super) session_expiry: Option<u32>,
}

/// Why the broker does not want us.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) reason: String,
    /// Whether only a person can change it.
    pub(super) lasting: bool,
}

/// The answer to one filter of a SUBSCRIBE: the granted QoS, or the reason of the refusal.
pub(super) type Grant = Result<u8, String>;

/// A PUBLISH.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) topic: Bytes,
    pub(super) payload: Bytes,
    pub(super) qos: u8,
    /// 0 for QoS 0.
    pub(super) packet_id: u16,
    pub(super) dup: bool,
    pub(super) retain: bool,
    pub(super) properties: Option<Box<Properties>>,
}

/// Properties of an MQTT 5 PUBLISH.
pub(super) type Properties = rumqttc_v5::PublishProperties;

/// Encodes and decodes for one protocol version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) protocol: Protocol,
    pub(super) max_packet_size: u32,
}

impl Client {
    pub(super) fn connect(self, options: &BrokerOptions, out: &mut BytesMut) -> Result<(), BrokerError> {
        match self.protocol {
            Protocol::V5 => client_v5::connect(options, out),
            Protocol::V311 => client_v4::connect(options, out),
        }
    }

    pub(super) fn subscribe(
        self,
        packet_id: u16,
        topics: &[Subscription],
        out: &mut BytesMut,
    ) -> Result<(), BrokerError> {
        match self.protocol {
            Protocol::V5 => client_v5::subscribe(packet_id, topics, out),
            Protocol::V311 => client_v4::subscribe(packet_id, topics, out),
        }
    }

    /// The next packet in `buffer`, if a whole one is there.
    pub(super) fn read(self, buffer: &mut BytesMut) -> Result<Option<Incoming>, BrokerError> {
        match self.protocol {
            Protocol::V5 => client_v5::read(buffer, self.max_packet_size),
            Protocol::V311 => client_v4::read(buffer, self.max_packet_size),
        }
    }

    /// PUBACK with success, which is the same four bytes in both versions (MQTT 5, 3.4.2.1).
    pub(super) fn puback(packet_id: u16, out: &mut BytesMut) {
        let [high, low] = packet_id.to_be_bytes();
        out.extend_from_slice(&[0x40, 2, high, low]);
    }

    /// PINGREQ, the same in both versions.
    pub(super) fn pingreq(out: &mut BytesMut) {
        out.extend_from_slice(&[0xC0, 0]);
    }

    /// DISCONNECT without a reason, which keeps the session; the same in both versions (MQTT 5, 3.14.2.1).
    pub(super) fn disconnect(out: &mut BytesMut) {
        out.extend_from_slice(&[0xE0, 0]);
    }
}

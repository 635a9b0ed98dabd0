//! The packets of a publishing client, in both versions of the protocol.

use super::options::{FeedOptions, Protocol};
use super::properties::{Share, properties};
use super::source::{Origin, Publication};
use bytes::BytesMut;
use rumqttc_v4::mqttbytes::{self as bytes4, QoS, v4};
use rumqttc_v5::mqttbytes::{self as bytes5, v5};

/// Larger packets are no answer to a publishing client.
const MAX_INCOMING: u32 = 64 * 1024;

/// For how long the broker keeps the session of a client that is gone, in seconds: a day.
const SESSION_EXPIRY: u32 = 86_400;

/// What the broker grants in its CONNACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    pub(super) session_present: bool,
    pub(super) receive_maximum: u16,
    pub(super) max_packet_size: usize,
    pub(super) max_qos: u8,
    /// Seconds, if the broker wants another one than ours.
    pub(super) keep_alive: Option<u16>,
}

/// A packet from the broker.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Connected(Grant),
    /// `lasting`: trying again would bring the same.
    Refused {
        reason: String,
        lasting: bool,
    },
    PubAck {
        packet_id: u16,
        refused: Option<String>,
    },
    PingResp,
    Disconnect {
        reason: String,
        lasting: bool,
    },
    Other,
}

/// One PUBLISH.
pub(super) struct Outgoing<'a> {
    pub(super) packet_id: u16,
    pub(super) dup: bool,
    pub(super) publication: &'a Publication,
}

/// Encoder and decoder of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire {
    pub(super) protocol: Protocol,
    pub(super) qos: u8,
    /// The largest packet the broker takes, in bytes.
    pub(super) max_packet_size: usize,
}

impl Wire {
    pub(super) fn new(options: &FeedOptions) -> Self {
        Self { protocol: options.protocol, qos: options.qos, max_packet_size: usize::MAX }
    }

    pub(super) fn connect(
        self,
        options: &FeedOptions,
        client_id: &str,
        keep_alive: u16,
        out: &mut BytesMut,
    ) -> Result<(), String> {
        let client_id = client_id.to_owned();
        let written = match self.protocol {
            Protocol::V5 => {
                let properties = v5::ConnectProperties {
                    session_expiry_interval: Some(SESSION_EXPIRY),
                    max_packet_size: Some(MAX_INCOMING),
                    ..v5::ConnectProperties::new()
                };
                let properties = Some(properties);
                let connect = v5::Connect { keep_alive, client_id, clean_start: false, properties };
                connect.write(&None, &auth5(options), out).map_err(|error| error.to_string())
            }
            Protocol::V311 => {
                let auth = auth4(options);
                let connect =
                    v4::Connect { keep_alive, client_id, clean_session: false, last_will: None, auth };
                connect.write(out).map_err(|error| error.to_string())
            }
        };
        written.map(drop)
    }

    /// Appends a PUBLISH to `out`, or says why this message cannot be sent.
    pub(super) fn publish(self, publish: &Outgoing<'_>, out: &mut BytesMut) -> Result<(), String> {
        let start = out.len();
        let qos = if self.qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let (pkid, dup) = (publish.packet_id, publish.dup);
        let (topic, payload) = (publish.publication.topic.clone(), publish.publication.payload.clone());
        let written = match self.protocol {
            Protocol::V5 => {
                let origin = publish.publication.origin.as_deref();
                let mut publish =
                    v5::Publish { dup, qos, retain: false, topic, pkid, payload, properties: None };
                if let Some(origin) = origin {
                    self.add_properties(origin, &mut publish);
                }
                self.check_size(publish.size())?;
                publish.write(out).map_err(|error| error.to_string())
            }
            Protocol::V311 => {
                let publish = v4::Publish { dup, qos, retain: false, topic, pkid, payload };
                self.check_size(publish.size())?;
                publish.write(out).map_err(|error| error.to_string())
            }
        };
        if written.is_err() {
            // The encoder has begun the packet before it found the mistake.
            out.truncate(start);
        }
        written.map(drop)
    }

    /// Adds as much of `origin` as the broker's largest packet has room for: rather the message alone than nothing.
    fn add_properties(self, origin: &Origin, publish: &mut v5::Publish) {
        for share in [Share::All, Share::OfDevice] {
            publish.properties = Some(properties(origin, &publish.payload, share));
            if publish.size() <= self.max_packet_size {
                return;
            }
        }
        publish.properties = None;
    }

    fn check_size(self, size: usize) -> Result<(), String> {
        if size > self.max_packet_size {
            return Err(format!(
                "{size} bytes are more than the broker takes in one packet ({})",
                self.max_packet_size
            ));
        }
        Ok(())
    }

    pub(super) fn ping(out: &mut BytesMut) {
        out.extend_from_slice(&[0xc0, 0]);
    }

    /// A DISCONNECT after which nothing is left to resume.
    pub(super) fn disconnect(self, out: &mut BytesMut) {
        match self.protocol {
            // Reason 0, five bytes of properties: session expiry interval 0.
            Protocol::V5 => out.extend_from_slice(&[0xe0, 7, 0, 5, 0x11, 0, 0, 0, 0]),
            Protocol::V311 => out.extend_from_slice(&[0xe0, 0]),
        }
    }

    /// Takes the next whole packet off `buffer`, or nothing if there is none yet.
    pub(super) fn decode(self, buffer: &mut BytesMut) -> Result<Option<Incoming>, String> {
        match self.protocol {
            Protocol::V5 => match v5::Packet::read(buffer, Some(MAX_INCOMING)) {
                Ok(packet) => Ok(Some(incoming5(packet))),
                Err(bytes5::Error::InsufficientBytes(_)) => Ok(None),
                Err(error) => Err(error.to_string()),
            },
            Protocol::V311 => match v4::Packet::read(buffer, MAX_INCOMING as usize) {
                Ok(packet) => Ok(Some(incoming4(packet))),
                Err(bytes4::Error::InsufficientBytes(_)) => Ok(None),
                Err(error) => Err(error.to_string()),
            },
        }
    }
}

fn auth5(options: &FeedOptions) -> v5::ConnectAuth {
    match &options.credentials {
        None => v5::ConnectAuth::None,
        Some(credentials) => match credentials.password.clone() {
            None => v5::ConnectAuth::Username { username: credentials.user.clone() },
            Some(password) => v5::ConnectAuth::UsernamePassword {
                username: credentials.user.clone(),
                password: password.into(),
            },
        },
    }
}

fn auth4(options: &FeedOptions) -> v4::ConnectAuth {
    match &options.credentials {
        None => v4::ConnectAuth::None,
        Some(credentials) => match credentials.password.clone() {
            None => v4::ConnectAuth::Username { username: credentials.user.clone() },
            Some(password) => v4::ConnectAuth::UsernamePassword {
                username: credentials.user.clone(),
                password: password.into(),
            },
        },
    }
}

fn incoming5(packet: v5::Packet) -> Incoming {
    match packet {
        v5::Packet::PubAck(ack) => Incoming::PubAck { packet_id: ack.pkid, refused: refusal5(&ack) },
        v5::Packet::ConnAck(ack) => connack5(&ack),
        v5::Packet::PingResp => Incoming::PingResp,
        v5::Packet::Disconnect(disconnect) => {
            use v5::DisconnectReasonCode as Code;
            let lasting = matches!(
                disconnect.reason_code,
                Code::NotAuthorized
                    | Code::SessionTakenOver
                    | Code::AdministrativeAction
                    | Code::QoSNotSupported
            );
            let said =
                disconnect.properties.as_ref().and_then(|properties| properties.reason_string.as_deref());
            let mut reason = with_text(&format!("{:?}", disconnect.reason_code), said);
            if disconnect.reason_code == Code::SessionTakenOver {
                reason.push_str("; another client uses the same client id, choose another prefix");
            }
            Incoming::Disconnect { reason, lasting }
        }
        _ => Incoming::Other,
    }
}

fn refusal5(ack: &v5::PubAck) -> Option<String> {
    let code = ack.reason as u8;
    if code < 0x80 {
        return None;
    }
    let said = ack.properties.as_ref().and_then(|properties| properties.reason_string.as_deref());
    Some(with_text(&format!("refused by the broker with {:?} (0x{code:02X})", ack.reason), said))
}

fn connack5(ack: &v5::ConnAck) -> Incoming {
    use v5::ConnectReturnCode as Code;
    let properties = ack.properties.as_ref();
    if ack.code != Code::Success {
        let said = properties.and_then(|properties| properties.reason_string.as_deref());
        let passing = matches!(
            ack.code,
            Code::ServiceUnavailable
                | Code::ServerUnavailable
                | Code::ServerBusy
                | Code::QuotaExceeded
                | Code::ConnectionRateExceeded
                | Code::UnspecifiedError
        );
        return Incoming::Refused { reason: with_text(&format!("{:?}", ack.code), said), lasting: !passing };
    }
    let max_packet_size = properties.and_then(|properties| properties.max_packet_size);
    Incoming::Connected(Grant {
        session_present: ack.session_present,
        receive_maximum: properties.and_then(|properties| properties.receive_max).unwrap_or(u16::MAX),
        max_packet_size: max_packet_size.map_or(usize::MAX, |size| size as usize),
        max_qos: properties.and_then(|properties| properties.max_qos).unwrap_or(2),
        keep_alive: properties.and_then(|properties| properties.server_keep_alive),
    })
}

fn incoming4(packet: v4::Packet) -> Incoming {
    match packet {
        v4::Packet::PubAck(ack) => Incoming::PubAck { packet_id: ack.pkid, refused: None },
        v4::Packet::ConnAck(ack) if ack.code == v4::ConnectReturnCode::Success => {
            Incoming::Connected(Grant {
                session_present: ack.session_present,
                receive_maximum: u16::MAX,
                max_packet_size: usize::MAX,
                max_qos: 2,
                keep_alive: None,
            })
        }
        v4::Packet::ConnAck(ack) => {
            let lasting = ack.code != v4::ConnectReturnCode::ServiceUnavailable;
            Incoming::Refused { reason: format!("{:?}", ack.code), lasting }
        }
        v4::Packet::PingResp => Incoming::PingResp,
        _ => Incoming::Other,
    }
}

fn with_text(code: &str, said: Option<&str>) -> String {
    match said {
        // The broker's words end up on a terminal.
        Some(said) => format!("{code}: {}", said.escape_debug()),
        None => code.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use messagepipeline::{Attributes, Timestamp};
    use std::time::Duration;

    #[test]
    fn properties_that_a_broker_has_no_room_for_do_not_keep_the_message_back() {
        let attributes =
            Attributes::from_pairs(&[("user.note", "long enough to be too much for the broker")]);
        let origin = Some(Box::new(Origin { attributes, received_at: Timestamp::default() }));
        let message = Publication::new(1, Duration::ZERO, Bytes::from_static(b"t"), Bytes::from_static(b"1"));
        let message = Publication { origin, ..message };
        for (max_packet_size, with) in [(usize::MAX, 2), (75, 1), (20, 0)] {
            let wire = Wire { protocol: Protocol::V5, qos: 1, max_packet_size };
            let mut out = BytesMut::new();
            wire.publish(&Outgoing { packet_id: 1, dup: false, publication: &message }, &mut out).unwrap();
            let v5::Packet::Publish(read) = v5::Packet::read(&mut out, None).unwrap() else { panic!() };
            assert_eq!(read.payload, "1");
            assert_eq!(read.properties.map_or(0, |properties| properties.user_properties.len()), with);
        }
    }

    #[test]
    fn the_disconnect_of_version_5_ends_the_session() {
        let wire = Wire { protocol: Protocol::V5, qos: 1, max_packet_size: usize::MAX };
        let mut out = BytesMut::new();
        wire.disconnect(&mut out);
        let v5::Packet::Disconnect(packet) = v5::Packet::read(&mut out, None).unwrap() else { panic!() };
        assert_eq!(packet.reason_code, v5::DisconnectReasonCode::NormalDisconnection);
        assert_eq!(packet.properties.unwrap().session_expiry_interval, Some(0));
        assert!(out.is_empty());
    }

    #[test]
    fn a_message_that_cannot_be_encoded_leaves_nothing_behind() {
        for protocol in [Protocol::V5, Protocol::V311] {
            let wire = Wire { protocol, qos: 1, max_packet_size: 64 };
            let mut out = BytesMut::from("before");
            let payload = Bytes::from_static(&[0; 50]);
            for topic in ["a+b", "rather/long/topic"].map(Bytes::from) {
                let publication = Publication::new(1, Duration::ZERO, topic, payload.clone());
                let publish = Outgoing { packet_id: 1, dup: false, publication: &publication };
                assert!(wire.publish(&publish, &mut out).is_err());
                assert_eq!(out, "before");
            }
        }
    }
}

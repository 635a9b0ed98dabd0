//! The packets that a client sends, read without copying.
//!
//! These parsers are our own, although the client crates have codecs, because a server needs more of them: a
//! property block must not reach beyond its length, a packet that is refused must still tell its packet identifier
//! and the reason code that answers it, nothing may be allocated for what is looked at once (user properties),
//! and both protocol versions must give one type. The client crates' encoders are the other side in the tests.

mod connect;
mod property;
mod publish;
mod reader;

pub(crate) use connect::{Connect, ConnectRefused, Credentials, WillRequest};
pub(crate) use publish::Publish;

use super::reason::Reason;
use property::{Property, PropertyBlock};
use reader::Reader;

/// A protocol version that the endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V311,
    /// MQTT 5, protocol level 5.
    V5,
}

/// The first bytes of a packet (section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FixedHeader {
    /// Type and flags.
    pub(crate) first: u8,
    /// Length of the fixed header itself, in bytes.
    pub(crate) length: usize,
    /// Length of the whole packet, in bytes.
    pub(crate) packet: usize,
}

impl FixedHeader {
    /// Reads the header at the start of `input`; nothing if `input` does not hold all of it yet.
    pub(crate) fn read(input: &[u8]) -> Result<Option<Self>, Reason> {
        let Some((&first, lengths)) = input.split_first() else { return Ok(None) };
        let mut remaining = 0;
        for (index, &byte) in lengths.iter().take(4).enumerate() {
            remaining |= usize::from(byte & 0x7F) << (7 * index);
            if byte & 0x80 == 0 {
                let length = index + 2;
                return Ok(Some(Self { first, length, packet: length + remaining }));
            }
        }
        if lengths.len() >= 4 { Err(Reason::Malformed) } else { Ok(None) }
    }

    /// Whether this is a CONNECT with the flags that the specification demands.
    pub(crate) const fn is_connect(self) -> bool {
        self.first == 0x10
    }
}

/// A packet after CONNECT.
#[derive(Debug)]
pub(crate) enum Packet<'a> {
    Publish(Publish<'a>),
    /// PUBREL.
    Release {
        packet_id: u16,
    },
    Subscribe {
        packet_id: u16,
        filters: usize,
    },
    Unsubscribe {
        packet_id: u16,
        filters: usize,
    },
    PingRequest,
    Disconnect(Disconnect),
}

/// What a DISCONNECT asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disconnect {
    /// Reason code 0x04 and any error code: the will is to be published (MQTT 5, section 3.1.2.5).
    pub(crate) publish_will: bool,
    /// A new Session Expiry Interval in seconds.
    pub(crate) session_expiry: Option<u32>,
}

impl<'a> Packet<'a> {
    /// Reads the packet `frame`, whose fixed header is `header`.
    pub(crate) fn read(version: Version, header: FixedHeader, frame: &'a [u8]) -> Result<Self, Reason> {
        let mut reader = Reader::new(frame.get(header.length..).ok_or(Reason::Malformed)?);
        let flags = header.first & 0x0F;
        match (header.first >> 4, flags) {
            (3, _) => Publish::read(version, flags, reader).map(Packet::Publish),
            (6, 0b0010) => Ok(Packet::Release { packet_id: read_release(version, reader)? }),
            (8, 0b0010) => {
                let (packet_id, filters) = read_filters(version, reader, true)?;
                Ok(Packet::Subscribe { packet_id, filters })
            }
            (10, 0b0010) => {
                let (packet_id, filters) = read_filters(version, reader, false)?;
                Ok(Packet::Unsubscribe { packet_id, filters })
            }
            (12, 0) if reader.is_empty() => Ok(Packet::PingRequest),
            (14, 0) => read_disconnect(version, &mut reader).map(Packet::Disconnect),
            // A second CONNECT, and what answers packets that we never send (PUBACK, PUBREC, PUBCOMP, AUTH).
            (1, 0) | (4 | 5 | 7 | 15, 0) => Err(Reason::ProtocolError),
            _ => Err(Reason::Malformed),
        }
    }
}

/// Packet identifier of a PUBREL (section 3.6). Its reason code says nothing that changes what is to be done.
fn read_release(version: Version, mut reader: Reader<'_>) -> Result<u16, Reason> {
    let packet_id = reader.packet_id()?;
    if version == Version::V5 && !reader.is_empty() {
        reader.u8()?;
        if !reader.is_empty() {
            PropertyBlock::take(&mut reader)?
                .for_each(|property| Ok(matches!(property, Property::ReasonString | Property::User(..))))?;
        }
    }
    if reader.is_empty() { Ok(packet_id) } else { Err(Reason::Malformed) }
}

/// Packet identifier and number of filters of a SUBSCRIBE (`with_options`) or UNSUBSCRIBE.
fn read_filters(
    version: Version,
    mut reader: Reader<'_>,
    with_options: bool,
) -> Result<(u16, usize), Reason> {
    let packet_id = reader.packet_id()?;
    if version == Version::V5 {
        PropertyBlock::take(&mut reader)?.for_each(|property| {
            Ok(match property {
                Property::User(..) => true,
                Property::SubscriptionId(_) => with_options,
                _ => false,
            })
        })?;
    }
    let mut filters = 0;
    while !reader.is_empty() {
        reader.text()?;
        if with_options {
            reader.u8()?;
        }
        filters += 1;
    }
    if filters == 0 { Err(Reason::ProtocolError) } else { Ok((packet_id, filters)) }
}

fn read_disconnect(version: Version, reader: &mut Reader<'_>) -> Result<Disconnect, Reason> {
    let mut disconnect = Disconnect { publish_will: false, session_expiry: None };
    if reader.is_empty() {
        return Ok(disconnect);
    }
    if version == Version::V311 {
        return Err(Reason::Malformed);
    }
    disconnect.publish_will = reader.u8()? != 0;
    if !reader.is_empty() {
        PropertyBlock::take(reader)?.for_each(|property| {
            if let Property::SessionExpiry(seconds) = property {
                disconnect.session_expiry = Some(seconds);
            }
            Ok(matches!(property, Property::SessionExpiry(_) | Property::ReasonString | Property::User(..)))
        })?;
    }
    if reader.is_empty() { Ok(disconnect) } else { Err(Reason::Malformed) }
}

#[cfg(test)]
mod tests;

//! CONNECT (section 3.1).

use super::property::{Property, PropertyBlock};
use super::publish::set_property;
use super::reader::Reader;
use super::{FixedHeader, Version};
use crate::endpoint::reason::Reason;
use crate::message::Properties;

/// A CONNECT, borrowed from its bytes.
#[derive(Debug)]
pub(crate) struct Connect<'a> {
    pub(crate) version: Version,
    pub(crate) client_id: &'a str,
    /// Clean Start; Clean Session in 3.1.1.
    pub(crate) clean: bool,
    /// In seconds; 0 switches it off.
    pub(crate) keep_alive: u16,
    /// Session Expiry Interval in seconds; absent in 3.1.1.
    pub(crate) session_expiry: Option<u32>,
    /// Whether an Authentication Method is named (extended authentication, MQTT 5).
    pub(crate) extended_authentication: bool,
    pub(crate) credentials: Credentials<'a>,
    pub(crate) will: Option<WillRequest<'a>>,
}

/// User name and password. Debug shows neither.
#[derive(Clone, Copy, Default)]
pub(crate) struct Credentials<'a> {
    pub(crate) user: Option<&'a str>,
    pub(crate) password: Option<&'a [u8]>,
}

impl std::fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

/// The will that a CONNECT leaves.
#[derive(Debug, Default)]
pub(crate) struct WillRequest<'a> {
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) topic: &'a str,
    pub(crate) payload: &'a [u8],
    /// Will Delay Interval in seconds.
    pub(crate) delay: u32,
    pub(crate) properties: Properties<'a>,
    pub(crate) user_property_count: usize,
    block: PropertyBlock<'a>,
}

impl<'a> WillRequest<'a> {
    pub(crate) fn user_properties(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.block.user_properties()
    }
}

/// A CONNECT that is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectRefused {
    /// In which version a CONNACK is to be written; none if the bytes are not MQTT at all.
    pub(crate) answer_in: Option<Version>,
    pub(crate) reason: Reason,
}

impl<'a> Connect<'a> {
    /// Reads the packet `frame`, whose fixed header is `header`.
    pub(crate) fn read(header: FixedHeader, frame: &'a [u8]) -> Result<Self, ConnectRefused> {
        let silent = |reason| ConnectRefused { answer_in: None, reason };
        let body = frame.get(header.length..).ok_or(silent(Reason::Malformed))?;
        let mut reader = Reader::new(body);
        let version = read_version(&mut reader)?;
        Self::read_rest(version, reader).map_err(|reason| ConnectRefused { answer_in: Some(version), reason })
    }

    fn read_rest(version: Version, mut reader: Reader<'a>) -> Result<Self, Reason> {
        let flags = Flags::read(version, reader.u8()?)?;
        let mut connect = Self {
            version,
            client_id: "",
            clean: flags.clean,
            keep_alive: reader.u16()?,
            session_expiry: None,
            extended_authentication: false,
            credentials: Credentials::default(),
            will: None,
        };
        if version == Version::V5 {
            connect.read_properties(PropertyBlock::take(&mut reader)?)?;
        }
        connect.client_id = reader.text()?;
        if let Some((qos, retain)) = flags.will {
            connect.will = Some(read_will(version, qos, retain, &mut reader)?);
        }
        if flags.user {
            connect.credentials.user = Some(reader.text()?);
        }
        if flags.password {
            connect.credentials.password = Some(reader.binary()?);
        }
        if reader.is_empty() { Ok(connect) } else { Err(Reason::Malformed) }
    }

    fn read_properties(&mut self, block: PropertyBlock<'a>) -> Result<(), Reason> {
        let mut has_data = false;
        block.for_each(|property| {
            match property {
                Property::SessionExpiry(seconds) => self.session_expiry = Some(seconds),
                Property::ReceiveMaximum(0) | Property::MaximumPacketSize(0) => {
                    return Err(Reason::ProtocolError);
                }
                Property::RequestProblemInformation(2..) | Property::RequestResponseInformation(2..) => {
                    return Err(Reason::ProtocolError);
                }
                Property::AuthenticationMethod(_) => self.extended_authentication = true,
                Property::AuthenticationData => has_data = true,
                // What limits packets that we send: we send only short answers, and no PUBLISH.
                Property::ReceiveMaximum(_)
                | Property::MaximumPacketSize(_)
                | Property::TopicAliasMaximum
                | Property::RequestProblemInformation(_)
                | Property::RequestResponseInformation(_)
                | Property::User(..) => {}
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if has_data && !self.extended_authentication { Err(Reason::ProtocolError) } else { Ok(()) }
    }
}

/// Protocol name and level (section 3.1.2): read before anything that depends on them.
fn read_version(reader: &mut Reader<'_>) -> Result<Version, ConnectRefused> {
    let silent = ConnectRefused { answer_in: None, reason: Reason::Malformed };
    let name = reader.binary().map_err(|_| silent)?;
    let level = reader.u8().map_err(|_| silent)?;
    let refused = |version| ConnectRefused { answer_in: Some(version), reason: Reason::UnsupportedVersion };
    match (name, level) {
        (b"MQTT", 4) => Ok(Version::V311),
        (b"MQTT", 5) => Ok(Version::V5),
        (b"MQIsdp", _) | (b"MQTT", 0..=3) => Err(refused(Version::V311)),
        (b"MQTT", _) => Err(refused(Version::V5)),
        _ => Err(silent),
    }
}

struct Flags {
    clean: bool,
    user: bool,
    password: bool,
    /// Quality of service and retain flag.
    will: Option<(u8, bool)>,
}

impl Flags {
    fn read(version: Version, byte: u8) -> Result<Self, Reason> {
        let qos = (byte >> 3) & 0b11;
        let retain = byte & 0b0010_0000 != 0;
        let has_will = byte & 0b0000_0100 != 0;
        let user = byte & 0b1000_0000 != 0;
        let password = byte & 0b0100_0000 != 0;
        let will_without_flag = !has_will && (qos != 0 || retain);
        let password_alone = version == Version::V311 && password && !user;
        if byte & 1 != 0 || qos == 3 || will_without_flag || password_alone {
            return Err(Reason::Malformed);
        }
        Ok(Self { clean: byte & 0b10 != 0, user, password, will: has_will.then_some((qos, retain)) })
    }
}

fn read_will<'a>(
    version: Version,
    qos: u8,
    retain: bool,
    reader: &mut Reader<'a>,
) -> Result<WillRequest<'a>, Reason> {
    let mut will = WillRequest { qos, retain, ..WillRequest::default() };
    if version == Version::V5 {
        will.block = PropertyBlock::take(reader)?;
        will.block.for_each(|property| {
            match property {
                Property::WillDelay(seconds) => will.delay = seconds,
                Property::User(..) => will.user_property_count += 1,
                other => return set_property(&mut will.properties, other),
            }
            Ok(true)
        })?;
    }
    will.topic = reader.text()?;
    will.payload = reader.binary()?;
    Ok(will)
}

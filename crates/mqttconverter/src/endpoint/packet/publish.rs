//! PUBLISH (section 3.3).

use super::Version;
use super::property::{Property, PropertyBlock};
use super::reader::Reader;
use crate::endpoint::reason::Reason;
use crate::message::Properties;

/// A PUBLISH, borrowed from its bytes.
///
/// Only what makes the packet unreadable is an error of [`Publish::read`]. What is readable and refused (topic,
/// payload format, quality of service) is for the connection to decide, since the refusal names the packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Publish<'a> {
    pub(crate) dup: bool,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// Empty if an alias stands for it.
    pub(crate) topic: &'a str,
    /// 0 at QoS 0.
    pub(crate) packet_id: u16,
    pub(crate) alias: Option<u16>,
    pub(crate) properties: Properties<'a>,
    pub(crate) user_property_count: usize,
    pub(crate) payload: &'a [u8],
    block: PropertyBlock<'a>,
}

impl<'a> Publish<'a> {
    pub(super) fn read(version: Version, flags: u8, mut reader: Reader<'a>) -> Result<Self, Reason> {
        let qos = (flags >> 1) & 0b11;
        let dup = flags & 0b1000 != 0;
        if qos == 3 || (qos == 0 && dup) {
            return Err(Reason::Malformed);
        }
        let topic = reader.text()?;
        let packet_id = if qos == 0 { 0 } else { reader.packet_id()? };
        let mut publish = Self {
            dup,
            qos,
            retain: flags & 1 != 0,
            topic,
            packet_id,
            alias: None,
            properties: Properties::default(),
            user_property_count: 0,
            payload: &[],
            block: PropertyBlock::default(),
        };
        if version == Version::V5 {
            publish.block = PropertyBlock::take(&mut reader)?;
            publish.read_properties()?;
        }
        publish.payload = reader.rest();
        Ok(publish)
    }

    fn read_properties(&mut self) -> Result<(), Reason> {
        self.block.for_each(|property| {
            match property {
                Property::TopicAlias(alias) => self.alias = Some(alias),
                Property::User(..) => self.user_property_count += 1,
                // Only a server may send one (section 3.3.4).
                Property::SubscriptionId(_) => return Err(Reason::ProtocolError),
                other => return set_property(&mut self.properties, other),
            }
            Ok(true)
        })
    }

    pub(crate) fn user_properties(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.block.user_properties()
    }
}

/// Keeps a property that PUBLISH and a will have in common; answers whether it is one.
pub(super) fn set_property<'a>(
    properties: &mut Properties<'a>,
    property: Property<'a>,
) -> Result<bool, Reason> {
    match property {
        Property::PayloadFormat(format @ 0..=1) => properties.payload_is_utf8 = format == 1,
        Property::PayloadFormat(_) => return Err(Reason::ProtocolError),
        Property::MessageExpiry(seconds) => properties.message_expiry = Some(seconds),
        Property::ContentType(text) => properties.content_type = Some(text),
        Property::ResponseTopic(topic) => properties.response_topic = Some(topic),
        Property::CorrelationData(data) => properties.correlation_data = Some(data),
        _ => return Ok(false),
    }
    Ok(true)
}

//! Properties of MQTT 5 (section 2.2.2).

use super::reader::Reader;
use crate::endpoint::reason::Reason;

/// A property that a client may send, with its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Property<'a> {
    PayloadFormat(u8),
    MessageExpiry(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionId(u32),
    SessionExpiry(u32),
    AuthenticationMethod(&'a str),
    AuthenticationData,
    RequestProblemInformation(u8),
    WillDelay(u32),
    RequestResponseInformation(u8),
    ReasonString,
    ReceiveMaximum(u16),
    TopicAliasMaximum,
    TopicAlias(u16),
    User(&'a str, &'a str),
    MaximumPacketSize(u32),
}

/// A block of properties: its length, then one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PropertyBlock<'a>(&'a [u8]);

impl<'a> PropertyBlock<'a> {
    /// Takes the block off `reader` without looking into it.
    pub(crate) fn take(reader: &mut Reader<'a>) -> Result<Self, Reason> {
        let length = reader.variable_integer()?;
        reader.take(usize::try_from(length).map_err(|_| Reason::Malformed)?).map(Self)
    }

    /// Hands every property to `each`, which answers whether the packet's type allows it. All but user properties
    /// and subscription identifiers may stand only once.
    pub(crate) fn for_each(
        self,
        mut each: impl FnMut(Property<'a>) -> Result<bool, Reason>,
    ) -> Result<(), Reason> {
        let mut reader = Reader::new(self.0);
        let mut seen = 0_u64;
        while !reader.is_empty() {
            let (id, property) = read(&mut reader)?;
            let repeatable = matches!(property, Property::User(..) | Property::SubscriptionId(_));
            if seen & (1 << id) != 0 && !repeatable {
                return Err(Reason::ProtocolError);
            }
            seen |= 1 << id;
            if !each(property)? {
                return Err(Reason::Malformed);
            }
        }
        Ok(())
    }

    /// The user properties of a block that was already checked by [`PropertyBlock::for_each`].
    pub(crate) fn user_properties(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let mut reader = Reader::new(self.0);
        std::iter::from_fn(move || {
            while !reader.is_empty() {
                if let (_, Property::User(name, value)) = read(&mut reader).ok()? {
                    return Some((name, value));
                }
            }
            None
        })
    }
}

/// One property and its identifier, which is below 64.
fn read<'a>(reader: &mut Reader<'a>) -> Result<(u8, Property<'a>), Reason> {
    let id = reader.u8()?;
    let property = match id {
        0x01 => Property::PayloadFormat(reader.u8()?),
        0x02 => Property::MessageExpiry(reader.u32()?),
        0x03 => Property::ContentType(reader.text()?),
        0x08 => Property::ResponseTopic(reader.text()?),
        0x09 => Property::CorrelationData(reader.binary()?),
        0x0B => Property::SubscriptionId(reader.variable_integer()?),
        0x11 => Property::SessionExpiry(reader.u32()?),
        0x15 => Property::AuthenticationMethod(reader.text()?),
        0x16 => reader.binary().map(|_| Property::AuthenticationData)?,
        0x17 => Property::RequestProblemInformation(reader.u8()?),
        0x18 => Property::WillDelay(reader.u32()?),
        0x19 => Property::RequestResponseInformation(reader.u8()?),
        0x1F => reader.text().map(|_| Property::ReasonString)?,
        0x21 => Property::ReceiveMaximum(reader.u16()?),
        0x22 => reader.u16().map(|_| Property::TopicAliasMaximum)?,
        0x23 => Property::TopicAlias(reader.u16()?),
        0x26 => Property::User(reader.text()?, reader.text()?),
        0x27 => Property::MaximumPacketSize(reader.u32()?),
        _ => return Err(Reason::Malformed),
    };
    Ok((id, property))
}

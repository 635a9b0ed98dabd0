//! The message: what moves through every stage.

use crate::{Attributes, Enrichment, Timestamp};
use bytes::Bytes;
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// Identity of a message: unique, and stable over redeliveries from our first durable write on.
///
/// A UUIDv7 where we make it, a UUIDv8 where it stands for somebody else's id; see [`crate::IdGenerator`].
/// It prints in the usual hyphenated form; stores that people do not read keep the 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(Uuid);

impl MessageId {
    /// The id with these 16 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The UUID.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }

    /// The text form without an allocation; the buffer belongs to the caller.
    pub fn encode<'a>(&self, buffer: &'a mut [u8; 36]) -> &'a str {
        self.0.hyphenated().encode_lower(buffer)
    }
}

impl From<Uuid> for MessageId {
    fn from(value: Uuid) -> Self {
        Self(value)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MessageId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// A device message with everything known about it. Cloning copies no payload.
///
/// How it is acknowledged is not part of it: see [`crate::Delivery`] and [`crate::Ack`].
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Identity.
    pub id: MessageId,
    /// What the device sent, byte for byte.
    pub payload: Bytes,
    /// Text attributes; the names are in [`crate::names`].
    pub attributes: Attributes,
    /// When Millstream first received it.
    pub publish_time: Timestamp,
    /// Looked-up data.
    pub enrichment: Enrichment,
    /// Which delivery this is, counted from 1 by the consumer's side (1 where that side does not count).
    pub attempt: u32,
}

impl Message {
    /// A first delivery without attributes or enrichment.
    #[must_use]
    pub fn new(id: MessageId, payload: impl Into<Bytes>, publish_time: Timestamp) -> Self {
        Self {
            id,
            payload: payload.into(),
            attributes: Attributes::new(),
            publish_time,
            enrichment: Enrichment::none(),
            attempt: 1,
        }
    }

    /// Bytes this message counts for against byte limits: payload and attributes, plus a fixed share for the rest.
    #[must_use]
    pub fn weight(&self) -> usize {
        const FIXED: usize = 160;
        FIXED + self.payload.len() + self.attributes.size()
    }

    /// Whether the message may have been handed out before, under the same id: whoever stores it must look for it.
    #[must_use]
    pub fn is_redelivered(&self) -> bool {
        self.attempt > 1
    }

    /// Makes it count as [redelivered](Self::is_redelivered), whatever the consumer's side has counted.
    pub fn mark_redelivered(&mut self) {
        self.attempt = self.attempt.max(2);
    }

    /// The device id, when ingestion found one.
    #[must_use]
    pub fn device_id(&self) -> Option<&str> {
        self.attributes.get(crate::names::DEVICE_ID)
    }
}

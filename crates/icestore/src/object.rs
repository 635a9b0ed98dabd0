//! One finished object: compressed lines with all that an index wants to know of them.

use crate::{BatchKey, Error, LineForm, ObjectName, Prefix, encode_line};
use bytes::Bytes;
use flate2::write::GzEncoder;
use messagepipeline::{Digest, Message, MessageId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};

/// How objects are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// gzip, `.jsonl.gz`: every tool reads it.
    #[default]
    Gzip,
    /// Zstandard, `.jsonl.zst`: half the CPU and smaller.
    Zstd,
}

/// gzip's own default: level 9 takes twice the time for 1 % less.
const GZIP_LEVEL: u32 = 6;
/// Zstandard's own default.
const ZSTD_LEVEL: i32 = 3;

impl Compression {
    /// Ending of object names.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Gzip => "jsonl.gz",
            Self::Zstd => "jsonl.zst",
        }
    }
}

/// Bytes of lines that are handed to gzip at a time, so that the text of an object is never in memory as a whole.
const PART: usize = 64 * 1024;

/// Lines on their way into an object.
struct Compressor {
    text: Vec<u8>,
    /// Bytes of lines that are in `gzip` already.
    taken: usize,
    /// Zstandard gets all lines at once: so it writes their size into the frame, and readers that decompress in one
    /// piece need it.
    gzip: Option<GzEncoder<Vec<u8>>>,
}

impl Compressor {
    /// For lines of about `weight` bytes.
    fn new(compression: Compression, weight: usize) -> Self {
        match compression {
            Compression::Gzip => {
                // Device messages shrink to about a sixth.
                let buffer = Vec::with_capacity(weight / 6 + 64);
                let gzip = GzEncoder::new(buffer, flate2::Compression::new(GZIP_LEVEL));
                Self { text: Vec::with_capacity(weight.min(PART + PART / 4)), taken: 0, gzip: Some(gzip) }
            }
            Compression::Zstd => Self { text: Vec::with_capacity(weight), taken: 0, gzip: None },
        }
    }

    /// A line more is in `text`.
    fn line(&mut self) -> std::io::Result<()> {
        match &mut self.gzip {
            Some(gzip) if self.text.len() >= PART => {
                gzip.write_all(&self.text)?;
                self.taken += self.text.len();
                self.text.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The object's bytes, and how many those of its lines are.
    fn finish(self) -> std::io::Result<(Vec<u8>, u64)> {
        let uncompressed = (self.taken + self.text.len()) as u64;
        let bytes = match self.gzip {
            None => zstd::bulk::compress(&self.text, ZSTD_LEVEL)?,
            Some(mut gzip) => {
                gzip.write_all(&self.text)?;
                gzip.finish()?
            }
        };
        Ok((bytes, uncompressed))
    }
}

/// A reader of the lines in a compressed object, told by its name.
///
/// # Errors
/// When the name has neither ending, or the decompressor cannot be set up.
pub fn decompress<'a>(name: &str, object: impl Read + 'a) -> Result<Box<dyn Read + 'a>, Error> {
    if name.ends_with(Compression::Gzip.extension()) {
        return Ok(Box::new(flate2::read::MultiGzDecoder::new(object)));
    }
    if name.ends_with(Compression::Zstd.extension()) {
        let decoder = zstd::stream::read::Decoder::new(object);
        let decoder = decoder.map_err(|source| Error::Compression { action: "decompressing", source })?;
        return Ok(Box::new(decoder));
    }
    Err(Error::InvalidName { name: name.to_owned(), detail: "it must end in `.jsonl.gz` or `.jsonl.zst`" })
}

/// A 64-bit fingerprint of a payload (FarmHash's `Fingerprint64`), by which a store tells a message that comes again
/// from another one under the same id.
#[must_use]
pub fn payload_fingerprint(payload: &[u8]) -> u64 {
    farmhash::fingerprint64(payload)
}

/// A line of an object, as an index keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineRef {
    /// The message's id.
    pub id: MessageId,
    /// Fingerprint of its payload.
    pub fingerprint: u64,
}

/// One complete object.
#[derive(Clone, Debug)]
pub struct ArchiveObject {
    /// Where it goes.
    pub name: ObjectName,
    /// Its bytes, compressed.
    pub bytes: Bytes,
    /// Bytes of its lines before compression.
    pub uncompressed: u64,
    /// Its lines in order; no id is there twice.
    pub lines: Vec<LineRef>,
    /// Digest of the ids.
    pub digest: Digest,
    /// Earliest first receipt of its messages.
    pub first_received: Timestamp,
    /// Latest first receipt of its messages.
    pub last_received: Timestamp,
    /// Whether one of its messages was delivered before. It may be archived already, by another process.
    pub redelivered: bool,
}

/// What all objects of an archive have in common.
#[derive(Clone, Debug, Default)]
pub struct ArchiveSettings {
    /// Folder below which all objects lie.
    pub prefix: Prefix,
    /// Form of the lines.
    pub form: LineForm,
    /// How objects are compressed.
    pub compression: Compression,
}

impl ArchiveObject {
    /// The object of `messages`, each with the fingerprint of its payload. They are not empty and have distinct ids.
    ///
    /// # Errors
    /// When the compressor fails.
    pub fn build(
        settings: &ArchiveSettings,
        key: &BatchKey,
        messages: &[(Message, u64)],
        archived_at: Timestamp,
    ) -> Result<Self, Error> {
        let weight: usize = messages.iter().map(|(message, _)| message.weight() + 128).sum();
        let failed = |source| Error::Compression { action: "compressing", source };
        let mut compressor = Compressor::new(settings.compression, weight);
        let mut lines = Vec::with_capacity(messages.len());
        let mut digest = Digest::default();
        let (mut first, mut last) = (Timestamp::from_micros(i64::MAX), Timestamp::from_micros(i64::MIN));
        for (message, fingerprint) in messages {
            encode_line(settings.form, message, key.as_str(), archived_at, &mut compressor.text);
            compressor.text.push(b'\n');
            compressor.line().map_err(failed)?;
            lines.push(LineRef { id: message.id, fingerprint: *fingerprint });
            digest.insert(&message.id);
            first = first.min(message.publish_time);
            last = last.max(message.publish_time);
        }
        let (bytes, uncompressed) = compressor.finish().map_err(failed)?;
        let id = lines.first().map_or(MessageId::from_bytes([0; 16]), |line| line.id);
        Ok(Self {
            name: ObjectName::new(&settings.prefix, key, &id, settings.compression.extension()),
            bytes: bytes.into(),
            uncompressed,
            lines,
            digest,
            first_received: first,
            last_received: last,
            redelivered: messages.iter().any(|(message, _)| message.is_redelivered()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode_line;
    use messagepipeline::IdGenerator;
    use std::io::BufRead;

    #[test]
    fn an_object_holds_one_line_per_message_in_order_in_both_compressions() {
        let ids = IdGenerator::default();
        // More than one part of text.
        let messages: Vec<_> = (0..2_000_i64)
            .map(|n| (Message::new(ids.next_id(), format!("{{\"n\":{n}}}"), Timestamp::from_micros(n)), 0))
            .collect();
        for compression in [Compression::Gzip, Compression::Zstd] {
            let settings = ArchiveSettings { compression, ..ArchiveSettings::default() };
            let key = BatchKey::new(Timestamp::default(), None);
            let object = ArchiveObject::build(&settings, &key, &messages, Timestamp::default()).unwrap();
            let lines = std::io::BufReader::new(decompress(object.name.as_str(), &object.bytes[..]).unwrap())
                .split(b'\n');
            let read: Vec<_> = lines.map(|line| decode_line(&line.unwrap()).unwrap()).collect();
            assert_eq!(read.len(), 2_000);
            for (read, (message, _)) in read.iter().zip(&messages) {
                assert_eq!((read.id, &read.payload), (message.id, &message.payload));
            }
            assert_eq!(object.digest, messages.iter().map(|(message, _)| &message.id).collect());
            assert_eq!((object.first_received.as_micros(), object.last_received.as_micros()), (0, 1_999));
            assert!(object.bytes.len() < object.uncompressed as usize / 2);
        }
    }
}

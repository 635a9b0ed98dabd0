//! Messages to and from the bus's tables.

use bytes::{Bytes, BytesMut};
use hashbrown::HashMap;
use messagepipeline::{Attributes, Enrichment, Message, MessageId, Timestamp};
use rusqlite::Row;
use rusqlite::types::{FromSqlError, Type, ValueRef};
use std::collections::VecDeque;

/// Buffers of earlier chunks kept for later ones: one is read into while one waits and one is worked on. Giving each
/// back to the system would mean a page fault per 4 KiB read.
const BUFFERS: usize = 3;
/// Larger buffers are not kept; they come from messages that are unusually large.
const BUFFER_BYTES: usize = 2 * 1024 * 1024;

/// Messages up to this size together share a buffer of copies. Smaller ones cost more, larger ones stay longer in
/// memory for the last message that somebody holds.
const COPY_BYTES: usize = 64 * 1024;

/// Different enrichment texts kept parsed; a text is shared by all messages of a device.
const ENRICHMENTS: usize = 4_096;

/// Reads messages so that payloads and attributes of a chunk lie in one buffer.
#[derive(Debug, Default)]
pub(super) struct RowReader {
    enrichments: HashMap<Box<str>, Enrichment>,
    /// Bytes and rows of the chunk before, for the first guess at the next one's.
    guess: (usize, usize),
    /// Buffers of the last chunks, the oldest first; free once nobody holds a message of theirs.
    buffers: VecDeque<Bytes>,
}

/// Messages read so far, their bytes in one buffer.
#[derive(Debug, Default)]
pub(super) struct Rows {
    buffer: BytesMut,
    rows: Vec<RawRow>,
}

#[derive(Debug)]
struct RawRow {
    seq: u64,
    id: MessageId,
    publish_time: Timestamp,
    enrichment: Enrichment,
    attributes_end: usize,
    payload_end: usize,
}

impl Rows {
    /// Bytes of payloads and attributes.
    pub(super) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    fn push(&mut self, message: &Message) {
        self.buffer.extend_from_slice(message.attributes.as_bytes());
        let attributes_end = self.buffer.len();
        self.buffer.extend_from_slice(&message.payload);
        self.rows.push(RawRow {
            seq: 0,
            id: message.id,
            publish_time: message.publish_time,
            enrichment: message.enrichment.clone(),
            attributes_end,
            payload_end: self.buffer.len(),
        });
    }

    /// [`messages_of`] these rows.
    ///
    /// # Errors
    /// When stored attributes are damaged.
    pub(super) fn into_messages(self) -> rusqlite::Result<Vec<(u64, Message)>> {
        messages_of(self.rows, &self.buffer.freeze())
    }
}

/// Sequence number and message, in the order of reading. The attempt is left at 1.
fn messages_of(rows: Vec<RawRow>, buffer: &Bytes) -> rusqlite::Result<Vec<(u64, Message)>> {
    let mut start = 0;
    let mut messages = Vec::with_capacity(rows.len());
    for row in rows {
        let attributes = buffer.slice(start..row.attributes_end);
        let payload = buffer.slice(row.attributes_end..row.payload_end);
        start = row.payload_end;
        messages.push((row.seq, row_message(row.id, row.publish_time, row.enrichment, attributes, payload)?));
    }
    Ok(messages)
}

fn row_message(
    id: MessageId,
    publish_time: Timestamp,
    enrichment: Enrichment,
    attributes: Bytes,
    payload: Bytes,
) -> rusqlite::Result<Message> {
    let attributes = Attributes::from_bytes(attributes).map_err(|error| damaged("attributes", error))?;
    Ok(Message { id, payload, attributes, publish_time, enrichment, attempt: 1 })
}

/// Copies of `messages` as a consumer gets them. Their bytes lie together in buffers of their own, so that nothing of
/// what the messages were cut from stays in memory with them.
///
/// # Errors
/// Never for attributes that were made by their own functions.
pub(super) fn copies(messages: &[&Message]) -> rusqlite::Result<Vec<Message>> {
    let size = |message: &Message| message.payload.len() + message.attributes.size();
    let mut copied = Vec::with_capacity(messages.len());
    let mut rest = messages;
    while !rest.is_empty() {
        let (mut count, mut bytes) = (0, 0);
        while count < rest.len() && bytes < COPY_BYTES {
            bytes += size(rest[count]);
            count += 1;
        }
        let (group, later) = rest.split_at(count);
        let mut rows = Rows { buffer: BytesMut::with_capacity(bytes), rows: Vec::with_capacity(count) };
        for message in group {
            rows.push(message);
        }
        copied.extend(rows.into_messages()?.into_iter().map(|(_, message)| message));
        rest = later;
    }
    Ok(copied)
}

impl RowReader {
    /// A place for the next chunk.
    pub(super) fn begin(&mut self) -> Rows {
        Rows { buffer: self.free_buffer(), rows: Vec::with_capacity(self.guess.1) }
    }

    /// A buffer that nobody uses any more, or a new one.
    fn free_buffer(&mut self) -> BytesMut {
        let free = self.buffers.iter().position(Bytes::is_unique).and_then(|at| self.buffers.remove(at));
        match free.map(Bytes::try_into_mut) {
            Some(Ok(mut buffer)) => {
                buffer.clear();
                buffer
            }
            _ => BytesMut::with_capacity(self.guess.0),
        }
    }

    /// The finished chunk.
    ///
    /// # Errors
    /// When stored attributes are damaged.
    pub(super) fn finish(&mut self, rows: Rows) -> rusqlite::Result<Vec<(u64, Message)>> {
        // A little more, because no two chunks are alike.
        self.guess = (rows.buffer.len() + rows.buffer.len() / 16, rows.rows.len());
        let buffer = rows.buffer.freeze();
        let messages = messages_of(rows.rows, &buffer)?;
        if self.buffers.len() == BUFFERS {
            self.buffers.pop_front();
        }
        if buffer.len() <= BUFFER_BYTES {
            self.buffers.push_back(buffer);
        }
        Ok(messages)
    }

    /// Adds a row of number, id, publish time, attributes, enrichment, payload.
    ///
    /// # Errors
    /// When a column does not hold what the bus writes there.
    pub(super) fn read(&mut self, row: &Row<'_>, rows: &mut Rows) -> rusqlite::Result<()> {
        let seq = row.get_ref(0)?.as_i64().map_err(|error| damaged("seq", error))?;
        let id = id_of(row.get_ref(1)?)?;
        let publish_time = Timestamp::from_micros(row.get(2)?);
        let enrichment = self.enrichment(row.get_ref(4)?)?;
        rows.buffer.extend_from_slice(bytes_of(row.get_ref(3)?)?);
        let attributes_end = rows.buffer.len();
        rows.buffer.extend_from_slice(bytes_of(row.get_ref(5)?)?);
        let payload_end = rows.buffer.len();
        let seq = unsigned(seq);
        rows.rows.push(RawRow { seq, id, publish_time, enrichment, attributes_end, payload_end });
        Ok(())
    }

    fn enrichment(&mut self, value: ValueRef<'_>) -> rusqlite::Result<Enrichment> {
        let Some(text) = value.as_str_or_null().map_err(|error| damaged("enrichment", error))? else {
            return Ok(Enrichment::none());
        };
        if let Some(known) = self.enrichments.get(text) {
            return Ok(known.clone());
        }
        let parsed = Enrichment::from_text(text).map_err(|error| damaged("enrichment", error))?;
        if self.enrichments.len() >= ENRICHMENTS {
            self.enrichments.clear();
        }
        self.enrichments.insert(text.into(), parsed.clone());
        Ok(parsed)
    }
}

fn bytes_of(value: ValueRef<'_>) -> rusqlite::Result<&[u8]> {
    value.as_bytes().map_err(|error| damaged("payload", error))
}

/// The id in a 16-byte column.
///
/// # Errors
/// When it is something else.
pub(super) fn id_of(value: ValueRef<'_>) -> rusqlite::Result<MessageId> {
    let bytes = value.as_blob().map_err(|error| damaged("id", error))?;
    let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| damaged("id", FromSqlError::InvalidType))?;
    Ok(MessageId::from_bytes(bytes))
}

fn damaged(column: &str, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    tracing::debug!(column, %error, "a stored message is damaged");
    rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, Box::new(error))
}

/// SQLite's integers are signed; ours that count are never negative.
pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The other way; numbers beyond 2^63 do not occur.
pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

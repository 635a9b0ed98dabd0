//! The form of a message on the wire, without any I/O.
//!
//! `binary`: the body is the payload. What Millstream knows about the message is in attributes:
//!
//! | attribute | value |
//! | --- | --- |
//! | `millstream_id` | the message's id |
//! | `millstream_time` | when Millstream first received it, RFC 3339 in UTC |
//! | `millstream_enrichment` | looked-up data, a JSON object; absent when there is none |
//! | `millstream_again` | `1` where whoever published it had it delivered before, or published it before and got no answer |
//! | `millstream_retried_for` | the one service that it is for, which had given it up; absent but for dead letters retried |
//! | all others | the message's own attributes under their own names |
//!
//! A value longer than Pub/Sub allows goes on in `NAME;1`, `NAME;2` and so on.
//!
//! `json`: the body is the document of [`document`], marked by `content-type`; the attributes above are sent as well,
//! except for the enrichment. A message whose attributes do not fit whatever is done (more than 100, a name that is too
//! long or that Pub/Sub or this module keeps for itself) takes this form too, with its attributes inside.
//!
//! What is neither is somebody else's message: its body and attributes stay as they are, and its id is made from
//! Pub/Sub's. Nothing is ever guessed from the body.

mod document;
mod part;

pub(crate) use part::{PART, Part, parts_for};

use crate::options::Wire;
use bytes::Bytes;
use messagepipeline::{Attributes, Enrichment, Message, MessageId, Timestamp, foreign_id};
use std::collections::HashMap;

/// Names beginning so are this module's.
const PREFIX: &str = "millstream_";
pub(crate) const ID: &str = "millstream_id";
const TIME: &str = "millstream_time";
const ENRICHMENT: &str = "millstream_enrichment";
const AGAIN: &str = "millstream_again";
/// The service that a person had it published again for, after that one gave it up.
pub(crate) const RETRIED_FOR: &str = "millstream_retried_for";
pub(crate) const CONTENT_TYPE: &str = "content-type";
const DOCUMENT: &str = "application/vnd.millstream.message+json";
/// Between a name and the number of a further piece of its value.
const PIECE: char = ';';

/// Limits of the service: <https://cloud.google.com/pubsub/quotas#resource_limits>.
pub(crate) const MAX_ATTRIBUTES: usize = 100;
const MAX_KEY: usize = 256;
const MAX_VALUE: usize = 1_024;
/// Bytes of one publish request, and so of one message.
pub(crate) const MAX_MESSAGE: usize = 10_000_000;
/// What a field of the protocol takes beside its content, generously.
const FIELD: usize = 16;
/// Room in a name for the number of a piece.
const PIECE_ROOM: usize = 6;

/// Body and attributes for Pub/Sub.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Encoded {
    pub(crate) data: Bytes,
    pub(crate) attributes: HashMap<String, String>,
}

impl Encoded {
    /// Bytes that its request takes, for limits.
    pub(crate) fn size(&self) -> usize {
        let attributes: usize =
            self.attributes.iter().map(|(key, value)| key.len() + value.len() + FIELD).sum();
        self.data.len() + attributes + MAX_KEY + 4 * FIELD
    }
}

/// What Pub/Sub delivered.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) data: Bytes,
    pub(crate) attributes: HashMap<String, String>,
    /// Pub/Sub's own id.
    pub(crate) message_id: String,
    /// Pub/Sub's own time.
    pub(crate) publish_time: Timestamp,
}

/// A message and whether it claimed to be Millstream's but was not.
#[derive(Clone, Debug)]
pub(crate) struct Decoded {
    pub(crate) message: Message,
    pub(crate) is_damaged: bool,
}

/// A further fact that travels with a message: a name with this module's prefix and a value of any length.
pub(crate) type Fact<'a> = (&'static str, &'a str);

/// `message` in the form `wire`, with `facts`.
pub(crate) fn encode(message: &Message, wire: Wire, facts: &[Fact<'_>]) -> Encoded {
    let room = message.attributes.iter().count() + facts.len() + 5;
    let mut attributes = HashMap::with_capacity(room);
    let mut id = [0; 36];
    attributes.insert(ID.to_owned(), message.id.encode(&mut id).to_owned());
    attributes.insert(TIME.to_owned(), message.publish_time.to_string());
    for (name, value) in facts {
        set(&mut attributes, name, value);
    }
    if facts.is_empty() && message.is_redelivered() {
        attributes.insert(AGAIN.to_owned(), "1".to_owned());
    }
    if wire == Wire::Binary {
        if let Some(text) = message.enrichment.text() {
            set(&mut attributes, ENRICHMENT, text);
        }
        if set_all(&mut attributes, &message.attributes, wire) {
            return Encoded { data: message.payload.clone(), attributes };
        }
        attributes.retain(|name, _| name.starts_with(PREFIX) && !name.starts_with(ENRICHMENT));
    }
    attributes.insert(CONTENT_TYPE.to_owned(), DOCUMENT.to_owned());
    let fits = wire == Wire::Json && set_all(&mut attributes, &message.attributes, wire);
    if !fits {
        attributes.retain(|name, _| name.starts_with(PREFIX) || name == CONTENT_TYPE);
    }
    Encoded { data: document::write(message, !fits).into(), attributes }
}

/// Sets all of `from`; `false` when they do not fit.
fn set_all(attributes: &mut HashMap<String, String>, from: &Attributes, wire: Wire) -> bool {
    for (key, value) in from.iter() {
        if !is_plain(key, value, wire) {
            return false;
        }
        set(attributes, key, value);
        if attributes.len() > MAX_ATTRIBUTES {
            return false;
        }
    }
    attributes.len() <= MAX_ATTRIBUTES
}

/// Whether an attribute can stand under its own name. Pub/Sub keeps names that begin with `goog` for itself.
fn is_plain(key: &str, value: &str, wire: Wire) -> bool {
    let is_marker = key == CONTENT_TYPE && (wire == Wire::Json || value == DOCUMENT);
    let is_reserved = key.starts_with(PREFIX)
        || key.as_bytes().get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"goog"));
    !key.is_empty() && key.len() <= MAX_KEY - PIECE_ROOM && !key.contains(PIECE) && !is_reserved && !is_marker
}

/// Sets `key`, in as many pieces as `value` needs.
fn set(attributes: &mut HashMap<String, String>, key: &str, value: &str) {
    if value.len() <= MAX_VALUE {
        attributes.insert(key.to_owned(), value.to_owned());
        return;
    }
    let mut rest = value;
    for number in 0.. {
        let (piece, tail) = rest.split_at(rest.floor_char_boundary(MAX_VALUE));
        let name = if number == 0 { key.to_owned() } else { format!("{key}{PIECE}{number}") };
        attributes.insert(name, piece.to_owned());
        rest = tail;
        if rest.is_empty() {
            return;
        }
    }
}

/// The value of `key`, put together.
fn gather(attributes: &HashMap<String, String>, key: &str) -> Option<String> {
    let mut value = attributes.get(key)?.clone();
    for number in further_pieces(&value) {
        let Some(piece) = attributes.get(&format!("{key}{PIECE}{number}")) else { break };
        value.push_str(piece);
    }
    Some(value)
}

/// Takes `key` out with all its pieces.
fn take(attributes: &mut HashMap<String, String>, key: &str) -> Option<String> {
    let mut value = attributes.remove(key)?;
    for number in further_pieces(&value) {
        let Some(piece) = attributes.remove(&format!("{key}{PIECE}{number}")) else { break };
        value.push_str(&piece);
    }
    Some(value)
}

/// Numbers of the pieces that may follow `first`: none when it is shorter than a first piece is.
fn further_pieces(first: &str) -> std::ops::Range<usize> {
    let is_cut = first.len() + char::MAX.len_utf8() > MAX_VALUE;
    1..if is_cut { usize::MAX } else { 1 }
}

/// Takes the fact `name` out of what was delivered.
pub(crate) fn take_fact(received: &mut Received, name: &'static str) -> Option<String> {
    take(&mut received.attributes, name)
}

/// Reads messages; keeps the looked-up data of a few devices, so that messages of a device share it.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    enrichment: HashMap<String, Enrichment>,
}

/// Texts that a decoder keeps.
const KEPT: usize = 1_024;

impl Decoder {
    /// The message in `received`. Never fails: what claims to be Millstream's and is not is handed on as it is. What was
    /// published again counts as delivered before, though Pub/Sub takes it for another message.
    pub(crate) fn decode(&mut self, mut received: Received) -> Decoded {
        let is_again = received.attributes.contains_key(ID) && received.attributes.remove(AGAIN).is_some();
        let mut decoded = self.decode_once(received);
        if is_again {
            decoded.message.mark_redelivered();
        }
        decoded
    }

    fn decode_once(&mut self, mut received: Received) -> Decoded {
        if received.attributes.get(CONTENT_TYPE).is_some_and(|value| value == DOCUMENT) {
            return match document::read(&received.data) {
                Some(read) => Decoded { message: from_document(read, received), is_damaged: false },
                None => Decoded { message: foreign(received), is_damaged: true },
            };
        }
        let Some(id) = received.attributes.get(ID) else {
            return Decoded { message: foreign(received), is_damaged: false };
        };
        let time = received.attributes.get(TIME).and_then(|text| text.parse().ok());
        let (Ok(id), Some(publish_time)) = (id.parse::<MessageId>(), time) else {
            return Decoded { message: foreign(received), is_damaged: true };
        };
        let Some(enrichment) = self.enrichment(&mut received.attributes) else {
            return Decoded { message: foreign(received), is_damaged: true };
        };
        received.attributes.remove(ID);
        received.attributes.remove(TIME);
        let message = Message {
            id,
            payload: received.data,
            attributes: join(received.attributes),
            publish_time,
            enrichment,
            attempt: 1,
        };
        Decoded { message, is_damaged: false }
    }

    /// The looked-up data, taken out of the attributes; `None` when it cannot be read, which takes nothing out.
    fn enrichment(&mut self, attributes: &mut HashMap<String, String>) -> Option<Enrichment> {
        let Some(text) = attributes.get(ENRICHMENT) else { return Some(Enrichment::none()) };
        let is_whole = further_pieces(text).is_empty();
        if is_whole && let Some(known) = self.enrichment.get(text) {
            let known = known.clone();
            attributes.remove(ENRICHMENT);
            return Some(known);
        }
        let enrichment = Enrichment::from_text(&gather(attributes, ENRICHMENT)?).ok()?;
        let text = take(attributes, ENRICHMENT)?;
        if is_whole {
            if self.enrichment.len() >= KEPT {
                self.enrichment.clear();
            }
            self.enrichment.insert(text, enrichment.clone());
        }
        Some(enrichment)
    }
}

/// The attributes with their pieces put together, in the order of their names.
fn join(mut attributes: HashMap<String, String>) -> Attributes {
    if attributes.keys().any(|key| key.contains(PIECE)) {
        let whole: Vec<String> = attributes.keys().filter(|key| !key.contains(PIECE)).cloned().collect();
        for key in whole {
            if let Some(value) = take(&mut attributes, &key) {
                attributes.insert(key, value);
            }
        }
    }
    sorted(&attributes)
}

fn sorted(attributes: &HashMap<String, String>) -> Attributes {
    let mut pairs: Vec<_> = attributes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    pairs.sort_unstable();
    Attributes::from_pairs(&pairs)
}

fn from_document(read: document::Read, received: Received) -> Message {
    let attributes = match read.attributes {
        Some(attributes) => attributes,
        None => {
            let mut rest = received.attributes;
            rest.remove(ID);
            rest.remove(TIME);
            rest.remove(CONTENT_TYPE);
            join(rest)
        }
    };
    Message {
        id: read.id.parse().unwrap_or_else(|_| foreign_id(SOURCE, &read.id)),
        payload: read.payload.into(),
        attributes,
        publish_time: read.publish_time.unwrap_or(received.publish_time),
        enrichment: read.enrichment,
        attempt: 1,
    }
}

/// Name space of ids that come from Pub/Sub.
const SOURCE: &str = "pubsub";

/// Somebody else's message. Pub/Sub's ids are unique within a topic, so its time goes into the id as well; a topic
/// gives the same id to all its subscriptions.
fn foreign(received: Received) -> Message {
    let text = format!("{}@{}", received.message_id, received.publish_time.as_micros());
    Message {
        id: foreign_id(SOURCE, &text),
        payload: received.data,
        attributes: sorted(&received.attributes),
        publish_time: received.publish_time,
        enrichment: Enrichment::none(),
        attempt: 1,
    }
}

#[cfg(test)]
mod tests;

//! What lies on a dead letter topic.

use crate::dead_letters::{ATTEMPTS, BY, DETAIL, DROP, ENDED, REASON, RECORD, SKIP, STAGE};
use crate::wire::{CONTENT_TYPE, Decoder, ID, RETRIED_FOR, Received, take_fact};
use bytes::Bytes;
use messagepipeline::{Message, MessageId, Skipped, Timestamp};

/// What the service adds to what it forwards by a subscription's dead letter policy:
/// <https://cloud.google.com/pubsub/docs/handling-failures#dead_letter_topic>.
const SOURCE: &str = "CloudPubSubDeadLetterSourceSubscription";
const DELIVERIES: &str = "CloudPubSubDeadLetterSourceDeliveryCount";
const SOURCE_PREFIX: &str = "CloudPubSubDeadLetterSource";

/// A letter as it lies on the topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    /// The message as its stage received it.
    pub message: Message,
    /// The stage that gave up.
    pub stage: String,
    /// Reason word in kebab case.
    pub reason: String,
    /// What was wrong, for people.
    pub detail: String,
    /// Deliveries until then.
    pub attempts: u32,
    /// When it was given up; `None` when that was not said.
    pub ended: Option<Timestamp>,
    /// `false` for a large letter that lies there in parts, not all of which have come: its payload is missing, and so
    /// may be its attributes.
    pub is_whole: bool,
}

/// A letter that a person did not want any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The message.
    pub id: MessageId,
    /// The stage that had given it up.
    pub stage: String,
    /// Why that stage gave it up.
    pub reason: String,
    /// Who dropped it.
    pub by: String,
    /// Why.
    pub why: String,
    /// When.
    pub at: Timestamp,
}

/// What no stage of ours put there.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign {
    /// The message.
    pub message: Message,
    /// The subscription whose dead letter policy moved it here; `None` for what somebody published here.
    pub subscription: Option<String>,
    /// Deliveries until then.
    pub deliveries: u32,
}

/// A record on a dead letter topic.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A message given up on.
    Letter(Box<Letter>),
    /// A message that a rule ended.
    Skip(Skipped),
    /// A letter that a person dropped.
    Drop(Box<Dropped>),
    /// What the service itself forwarded by a subscription's dead letter policy, or somebody put there.
    Foreign(Box<Foreign>),
}

/// What records have in common that say the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordKey {
    id: MessageId,
    stage: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Letter,
    Skip,
    Drop,
    Foreign,
}

impl RecordKey {
    /// That of a part of a letter; `None` when it is none of ours.
    pub(crate) fn of_letter(received: &Received) -> Option<Self> {
        let id = received.attributes.get(ID)?.parse().ok()?;
        Some(Self { id, stage: received.attributes.get(STAGE)?.clone(), kind: Kind::Letter })
    }
}

impl Record {
    /// What copies of it have too: a stage that dies between letter and acknowledgement puts its letter again.
    #[must_use]
    pub fn key(&self) -> RecordKey {
        let (id, stage, kind) = match self {
            Self::Letter(letter) => (letter.message.id, letter.stage.clone(), Kind::Letter),
            Self::Skip(skip) => (skip.id, skip.stage.to_string(), Kind::Skip),
            Self::Drop(drop) => (drop.id, drop.stage.clone(), Kind::Drop),
            Self::Foreign(foreign) => {
                (foreign.message.id, foreign.subscription.clone().unwrap_or_default(), Kind::Foreign)
            }
        };
        RecordKey { id, stage, kind }
    }
}

/// What was delivered, as a record.
pub(crate) fn read(decoder: &mut Decoder, mut received: Received) -> Record {
    let kind = received.attributes.get(RECORD).cloned();
    let stage = received.attributes.get(STAGE).cloned();
    received.attributes.remove(RETRIED_FOR);
    let (Some(kind), Some(stage)) = (kind, stage) else {
        return Record::Foreign(Box::new(foreign(decoder, received)));
    };
    let mut fact = |name| take_fact(&mut received, name);
    let (reason, detail, attempts, ended) = (fact(REASON), fact(DETAIL), fact(ATTEMPTS), fact(ENDED));
    let by = fact(BY);
    fact(RECORD);
    fact(STAGE);
    let message = decoder.decode(received).message;
    let (reason, detail) = (reason.unwrap_or_default(), detail.unwrap_or_default());
    let ended: Option<Timestamp> = ended.and_then(|text| text.parse().ok());
    match kind.as_str() {
        SKIP => Record::Skip(Skipped { id: message.id, stage: stage.into(), rule: reason.into() }),
        DROP => Record::Drop(Box::new(Dropped {
            id: message.id,
            stage,
            reason,
            by: by.unwrap_or_default(),
            why: detail,
            at: ended.unwrap_or(message.publish_time),
        })),
        _ => Record::Letter(Box::new(Letter {
            message,
            stage,
            reason,
            detail,
            attempts: attempts.and_then(|text| text.parse().ok()).unwrap_or(1),
            ended,
            is_whole: true,
        })),
    }
}

/// A letter of which parts are missing: all that its attributes say.
pub(crate) fn read_torn(decoder: &mut Decoder, mut received: Received) -> Record {
    received.data = Bytes::new();
    received.attributes.remove(CONTENT_TYPE);
    let mut record = read(decoder, received);
    if let Record::Letter(letter) = &mut record {
        letter.is_whole = false;
    }
    record
}

fn foreign(decoder: &mut Decoder, mut received: Received) -> Foreign {
    let subscription = received.attributes.remove(SOURCE);
    let deliveries = received.attributes.remove(DELIVERIES).and_then(|text| text.parse().ok()).unwrap_or(1);
    if subscription.is_some() {
        received.attributes.retain(|name, _| !name.starts_with(SOURCE_PREFIX));
    }
    Foreign { message: decoder.decode(received).message, subscription, deliveries }
}

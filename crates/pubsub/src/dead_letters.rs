//! Dead letters and skips on a topic.

use crate::options::Wire;
use crate::publisher::{Entry, PubSubPublisher};
use crate::records::Dropped;
use crate::wire::{MAX_MESSAGE, Part, parts_for};
use futures_util::future::BoxFuture;
use messagepipeline::{
    Clock, DeadLetter, DeadLetters, ErrorClass, Message, Skipped, StageError, SystemClock, all_done,
};
use std::sync::Arc;

/// Attribute that says what a record is: [`LETTER`], [`SKIP`] or [`DROP`].
pub(crate) const RECORD: &str = "millstream_record";
pub(crate) const LETTER: &str = "letter";
pub(crate) const SKIP: &str = "skip";
pub(crate) const DROP: &str = "drop";
pub(crate) const STAGE: &str = "millstream_stage";
/// Reason word of a letter, rule's word of a skip.
pub(crate) const REASON: &str = "millstream_reason";
pub(crate) const DETAIL: &str = "millstream_detail";
pub(crate) const ATTEMPTS: &str = "millstream_attempts";
/// When it was given up or skipped, RFC 3339 in UTC.
pub(crate) const ENDED: &str = "millstream_ended";

/// Who dropped a letter.
pub(crate) const BY: &str = "millstream_by";

/// A message this much smaller than Pub/Sub's limit fits, whatever its form and attributes make of it.
const SURELY_FITS: usize = MAX_MESSAGE / 16;
/// Bytes of a letter's detail that are kept; it is a sentence for people.
const MAX_DETAIL: usize = 8_192;

/// Keeps what a stage gives up on or skips on a topic: each letter is the message as it was, with the facts of its end
/// in further attributes; a skip is a record of its own without a body. A letter that is larger than Pub/Sub takes lies
/// there in parts.
///
/// Pub/Sub knows no ids, so a letter put twice lies there twice; [`crate::LetterReader`] shows it once.
#[derive(Clone, Debug)]
pub struct PubSubDeadLetters {
    publisher: PubSubPublisher,
    clock: Arc<dyn Clock>,
}

impl PubSubDeadLetters {
    pub(crate) fn new(publisher: PubSubPublisher) -> Self {
        Self { publisher, clock: Arc::new(SystemClock) }
    }

    /// The same with another clock for the time of the end.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Records that a person dropped letters; they are the outcome of those messages from then on.
    ///
    /// # Errors
    /// When the topic cannot be written.
    pub async fn record_drops(&self, drops: Vec<Dropped>) -> Result<(), StageError> {
        let record = |drop: Dropped| {
            let facts = vec![
                (RECORD, DROP.to_owned()),
                (STAGE, drop.stage),
                (REASON, drop.reason),
                (DETAIL, cut(drop.why)),
                (BY, cut(drop.by)),
                (ENDED, drop.at.to_string()),
            ];
            Entry::new(Message::new(drop.id, "", drop.at), facts)
        };
        self.keep(drops.into_iter().map(record).collect()).await
    }

    async fn keep(&self, records: Vec<Entry>) -> Result<(), StageError> {
        let kept = all_done(self.publisher.publish_with(records).await);
        // A letter that cannot be kept must not be lost: the stage waits, and a person decides.
        kept.map_err(|error| match error.class() {
            ErrorClass::Permanent => StageError::configuration(
                "dead-letter-refused",
                format!("Pub/Sub cannot keep a dead letter: {}", error.detail()),
            ),
            _ => error,
        })
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_DETAIL));
    text
}

/// A letter in as many parts as it needs: what nearly fills a message of Pub/Sub does not fit with the facts of its end.
fn in_parts(letter: Entry) -> Vec<Entry> {
    if letter.message.weight() <= SURELY_FITS {
        return vec![letter];
    }
    let of = parts_for(&letter.encoded(Wire::Binary));
    if of == 1 {
        return vec![letter];
    }
    let part = |number| Entry {
        message: letter.message.clone(),
        facts: letter.facts.clone(),
        part: Some(Part { number, of }),
    };
    (1..=of).map(part).collect()
}

impl DeadLetters for PubSubDeadLetters {
    fn put(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, Result<(), StageError>> {
        let ended = self.clock.now().to_string();
        let record = |letter: DeadLetter| {
            let facts = vec![
                (RECORD, LETTER.to_owned()),
                (STAGE, letter.stage.into_owned()),
                (REASON, letter.reason.into_owned()),
                (DETAIL, cut(letter.detail)),
                (ATTEMPTS, letter.attempts.to_string()),
                (ENDED, ended.clone()),
            ];
            in_parts(Entry::new(letter.message, facts))
        };
        Box::pin(self.keep(letters.into_iter().flat_map(record).collect()))
    }

    fn record_skips(&self, skips: Vec<Skipped>) -> BoxFuture<'_, Result<(), StageError>> {
        let now = self.clock.now();
        let record = |skip: Skipped| {
            let facts = vec![
                (RECORD, SKIP.to_owned()),
                (STAGE, skip.stage.into_owned()),
                (REASON, skip.rule.into_owned()),
                (ENDED, now.to_string()),
            ];
            Entry::new(Message::new(skip.id, "", now), facts)
        };
        Box::pin(self.keep(skips.into_iter().map(record).collect()))
    }
}

//! Where dead letters on Pub/Sub are worked on: retried or dropped.

use super::super::work::{Sums, ingest_over, operator};
use super::{PAGE_BYTES, topic_of};
use crate::check::{ENRICHED, RAW};
use crate::config::Config;
use crate::control::Operation;
use crate::output::Failure;
use connectors::{PubSubBus, Window};
use embedded::bus::StoredLetter;
use ingestion_service::{Ingest, Ingested};
use messagepipeline::{
    BatchOutcome, Clock, DeadLetters, ErrorClass, Message, MessageId, Skipped, StageError, SystemClock,
};
use pubsub::{Dropped, LetterSession, PubSubDeadLetters, PubSubPublisher, RecordKey};
use std::collections::BTreeMap;

/// What is to be done with letters.
pub(super) struct Order {
    pub(super) operation: Operation,
    /// Why they are dropped.
    pub(super) why: String,
    /// Whether also letters are dropped of which parts are missing.
    pub(super) takes_torn: bool,
}

/// A letter to work on.
pub(super) struct Work {
    pub(super) key: RecordKey,
    pub(super) letter: StoredLetter,
    pub(super) is_whole: bool,
}

/// Where letters are retried or dropped.
pub(super) struct Desk {
    order: Order,
    by: String,
    letters: PubSubDeadLetters,
    ingest: Ingest,
    topics: BTreeMap<&'static str, PubSubPublisher>,
}

impl Desk {
    pub(super) fn new(bus: PubSubBus, config: &Config, order: Order) -> Result<Self, Failure> {
        let window = Window { messages: 10_000, bytes: PAGE_BYTES, max_attempts: 1 };
        let topics = [RAW, ENRICHED].map(|topic| (topic, bus.republisher(topic, window)));
        Ok(Self {
            order,
            by: operator(),
            letters: bus.kept_letters(),
            ingest: ingest_over(config, |topic| Ok(bus.publisher(topic, window)))?,
            topics: BTreeMap::from(topics),
        })
    }

    /// Why `work` cannot be done.
    pub(super) fn refusal(&self, work: &Work) -> Option<&'static str> {
        let is_drop = self.order.operation == Operation::Drop;
        if !work.is_whole && is_drop && !self.order.takes_torn {
            return Some(
                "some of its parts have not come; try again in a minute, or drop those that have with --torn",
            );
        }
        if !work.is_whole && !is_drop {
            return Some("some of its parts have not come; try again in a minute");
        }
        let is_known = topic_of(&work.letter.stage).is_some() || is_of_ingestion(&work.letter.stage);
        (!is_drop && !is_known).then_some("nobody knows which stage it belongs to; it can be dropped")
    }

    /// Does with `page` what was asked for, and takes away what is done.
    pub(super) async fn carry_out(
        &self,
        session: &mut LetterSession,
        page: Vec<Work>,
        sums: &mut Sums,
    ) -> Result<(), Failure> {
        if page.is_empty() {
            return Ok(());
        }
        let (keys, outcome) = match self.order.operation {
            Operation::Drop => self.note_drops(page).await,
            Operation::Retry => self.retry(page, sums).await,
        };
        // Also what was published before something failed.
        if let Err(error) = session.settle(&keys).await {
            sums.unconfirmed(&error);
        }
        sums.done += keys.len() as u64;
        outcome.map_err(Failure::failed)
    }

    async fn note_drops(&self, page: Vec<Work>) -> (Vec<RecordKey>, Result<(), StageError>) {
        let at = SystemClock.now();
        let drop = |work: &Work| Dropped {
            id: work.letter.message.id,
            stage: work.letter.stage.clone(),
            reason: work.letter.reason.clone(),
            by: self.by.clone(),
            why: self.order.why.clone(),
            at,
        };
        match self.letters.record_drops(page.iter().map(drop).collect()).await {
            Ok(()) => (page.into_iter().map(|work| work.key).collect(), Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        }
    }

    /// Publishes the messages of `page`, those of a stage together. What was published is done also where others failed:
    /// the first failure is told when all have an answer.
    async fn retry(&self, page: Vec<Work>, sums: &mut Sums) -> (Vec<RecordKey>, Result<(), StageError>) {
        let mut stages = BTreeMap::<String, Vec<Work>>::new();
        for work in page {
            stages.entry(work.letter.stage.clone()).or_default().push(work);
        }
        let (mut done, mut outcome) = (Vec::new(), Ok(()));
        for (stage, works) in stages {
            let messages: Vec<Message> = works.iter().map(|work| work.letter.message.clone()).collect();
            let results = match topic_of(&stage).and_then(|topic| self.topics.get(topic)) {
                Some(publisher) => each(publisher.publish_again(messages, &stage).await, works.len()),
                None => self.pass(again(messages)).await,
            };
            outcome = outcome.and(sort_out(works, results, &mut done, sums));
        }
        (done, outcome)
    }

    /// What ingestion gave up goes through its rules as they are now.
    async fn pass(&self, messages: Vec<Message>) -> Vec<Result<(), StageError>> {
        let ids: Vec<MessageId> = messages.iter().map(|message| message.id).collect();
        let mut results = Vec::with_capacity(ids.len());
        for (id, answer) in ids.into_iter().zip(self.ingest.pass(messages).await) {
            results.push(match answer {
                Ingested::Published => Ok(()),
                Ingested::Skipped(rule) => {
                    let skip = Skipped { id, stage: ingestion_service::STAGE.into(), rule };
                    self.letters.record_skips(vec![skip]).await
                }
                Ingested::Failed(error) => Err(error),
            });
        }
        results
    }
}

fn is_of_ingestion(stage: &str) -> bool {
    stage == ingestion_service::STAGE || stage == ingestion_service::FORWARD
}

/// The messages as such that may be there already: a letter whose retry was not noted is retried once more.
fn again(mut messages: Vec<Message>) -> Vec<Message> {
    messages.iter_mut().for_each(Message::mark_redelivered);
    messages
}

/// Notes what was published in `done` and what cannot be in `sums`; answers with the first failure that is about the topic.
fn sort_out(
    works: Vec<Work>,
    results: Vec<Result<(), StageError>>,
    done: &mut Vec<RecordKey>,
    sums: &mut Sums,
) -> Result<(), StageError> {
    let mut outcome = Ok(());
    for (work, result) in works.into_iter().zip(results) {
        match result {
            Ok(()) => done.push(work.key),
            Err(error) if error.class() == ErrorClass::Permanent => refuse(sums, &work, error.detail()),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    outcome
}

pub(super) fn refuse(sums: &mut Sums, work: &Work, why: &str) {
    sums.refuse(&work.letter.stage, &work.letter.message.id.to_string(), why);
}

/// One answer for each of `count` messages, or one failure of all.
fn each(outcome: BatchOutcome, count: usize) -> Vec<Result<(), StageError>> {
    match outcome {
        BatchOutcome::Done => (0..count).map(|_| Ok(())).collect(),
        BatchOutcome::Failed(error) => vec![Err(error)],
        BatchOutcome::Each(results) => results,
    }
}

#[cfg(test)]
mod tests {
    use super::super::stored;
    use super::*;
    use messagepipeline::IdGenerator;
    use pubsub::{Letter, Record};

    fn works(count: usize) -> Vec<Work> {
        let ids = IdGenerator::default();
        let work = |_| {
            let message = Message::new(ids.next_id(), "{}", SystemClock.now());
            let at = message.publish_time;
            let stage = enrichment_service::STAGE.to_owned();
            let record = Record::Letter(Box::new(Letter {
                message: message.clone(),
                stage: stage.clone(),
                reason: "refused".to_owned(),
                detail: String::new(),
                attempts: 1,
                ended: None,
                is_whole: true,
            }));
            let letter = stored(message, stage, "refused".to_owned(), at);
            Work { key: record.key(), letter, is_whole: true }
        };
        (0..count).map(work).collect()
    }

    #[test]
    fn what_was_published_behind_a_failure_is_taken_away_and_the_first_failure_is_told() {
        let works = works(5);
        let keys: Vec<_> = works.iter().map(|work| work.key.clone()).collect();
        let results = vec![
            Ok(()),
            Err(StageError::transient("first", "not now")),
            Ok(()),
            Err(StageError::permanent("never", "it does not fit")),
            Err(StageError::transient("second", "not now")),
        ];
        let (mut done, mut sums) = (Vec::new(), Sums::default());
        let error = sort_out(works, results, &mut done, &mut sums).unwrap_err();
        assert_eq!((error.reason(), sums.refused), ("first", 1));
        assert_eq!(done, [keys[0].clone(), keys[2].clone()]);
    }

    #[test]
    fn a_message_that_is_retried_through_the_rules_counts_as_delivered_before() {
        let messages: Vec<Message> = works(1).into_iter().map(|work| work.letter.message).collect();
        assert_eq!(messages[0].attempt, 1);
        assert_eq!(again(messages)[0].attempt, 2);
    }
}

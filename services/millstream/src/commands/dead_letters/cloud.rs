//! Dead letters on Pub/Sub as a queue of work.
//!
//! Whoever reads them has them under a lease, so that two people do not work on the same letter at once; what was not
//! retried or dropped is given back at the end, and by itself when the process dies. A letter is taken away after its
//! message was published, so a death between the two publishes it twice under its id, which what holds it knows.

use super::work::{Sums, check_reason, ingest_over, operator, past, selected};
use super::{PUBSUB, filter, line, message_id, print_all};
use crate::check::{ENRICHED, RAW};
use crate::cli::{DeadLettersCommand, LetterWork};
use crate::config::Config;
use crate::control::Operation;
use crate::output::{Failure, print, print_bytes, say};
use connectors::{Google, PubSubBus, Window};
use embedded::bus::{Ending, LetterFilter, StoredLetter};
use ingestion_service::{Ingest, Ingested};
use messagepipeline::{
    BatchOutcome, Clock, DeadLetters, ErrorClass, Message, MessageId, Skipped, StageError, SystemClock,
};
use pubsub::{Dropped, LetterReader, LetterSession, PubSubDeadLetters, PubSubPublisher, Record, RecordKey};
use service_kit::Exit;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// When no letter has come for so long, there are no more.
const QUIET: Duration = Duration::from_secs(3);
/// Messages of the topic that are held at once at most; the service sends no more than are held.
const MAX_HELD: usize = 1_000_000;
/// Letters that are worked on together, and their bytes.
const PAGE: usize = 256;
const PAGE_BYTES: usize = 32 << 20;

pub(super) fn run(config: &Config, command: DeadLettersCommand) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let google =
            Google::new(&config.google, &std::env::vars().collect()).await.map_err(Failure::failed)?;
        let bus = PubSubBus::new(&google, &config.bus.pubsub).map_err(Failure::failed)?;
        let view = View { reader: bus.letters(), bus };
        match command {
            DeadLettersCommand::List { selection, state, limit, json } => {
                let state = if state == "all" { None } else { Some(state) };
                view.list(&LetterFilter { state, ..filter(&selection)? }, limit, json).await
            }
            DeadLettersCommand::Show { id, stage, payload, json } => {
                view.show(message_id(&id)?, stage.as_deref(), payload, json).await
            }
            DeadLettersCommand::Retry(letters) => {
                let order = Order { operation: Operation::Retry, why: String::new(), takes_torn: false };
                view.work(config, &letters, order).await
            }
            DeadLettersCommand::Drop { letters, why, torn } => {
                check_reason(&why)?;
                let order = Order { operation: Operation::Drop, why, takes_torn: torn };
                view.work(config, &letters, order).await
            }
        }
    })
}

/// The letters on their topic.
struct View {
    bus: PubSubBus,
    reader: LetterReader,
}

impl View {
    async fn open(&self) -> Result<LetterSession, Failure> {
        self.reader.open(MAX_HELD).await.map_err(Failure::failed)
    }

    async fn list(&self, filter: &LetterFilter, limit: usize, json: bool) -> Result<Exit, Failure> {
        let mut session = self.open().await?;
        let mut shown = 0;
        while shown < limit
            && let Some(record) = session.next(QUIET).await.map_err(Failure::failed)?
        {
            if let Some(letter) = self.letter(record).filter(|letter| is_selected(filter, letter)) {
                shown += 1;
                print(&line(&letter, json))?;
            }
        }
        if shown < limit {
            say_if_not_all(&session);
        }
        give_back(session).await;
        let more = if shown == limit { "; there may be more: raise --limit" } else { "" };
        say(&format!("{shown} dead letters{more}"));
        Ok(Exit::Done)
    }

    async fn show(
        &self,
        id: MessageId,
        stage: Option<&str>,
        payload: bool,
        json: bool,
    ) -> Result<Exit, Failure> {
        let filter =
            LetterFilter { ids: vec![id], stage: stage.map(str::to_owned), ..LetterFilter::default() };
        let mut session = self.open().await?;
        let mut shown = false;
        while let Some(record) = session.next(QUIET).await.map_err(Failure::failed)? {
            let Some(letter) = self.letter(record).filter(|letter| is_selected(&filter, letter)) else {
                continue;
            };
            if !payload {
                print_all(&letter, json)?;
            } else if letter.state == "dead" && !shown {
                print_bytes(&letter.message.payload)?;
            }
            shown |= !payload || letter.state == "dead";
        }
        let is_complete = say_if_not_all(&session);
        give_back(session).await;
        if !shown {
            let place = if is_complete { "" } else { " among those that were looked at" };
            return Err(Failure::failed(format!(
                "no dead letter with the id {id}{place}; `dead-letters list` shows what there is"
            )));
        }
        Ok(Exit::Done)
    }

    async fn work(&self, config: &Config, letters: &LetterWork, order: Order) -> Result<Exit, Failure> {
        let past = past(order.operation);
        let filter = LetterFilter { state: Some("dead".to_owned()), ..selected(letters)? };
        let desk = Desk::new(self.bus.clone(), config, order)?;
        let (mut session, mut sums) = (self.open().await?, Sums::default());
        let mut found = HashSet::new();
        let worked =
            self.go_through(&mut session, &filter, &desk, letters.dry_run, &mut found, &mut sums).await;
        let is_complete = worked.is_err() || say_if_not_all(&session);
        let closed = session.close().await;
        worked.map_err(|failure| sums.explain(failure, past))?;
        if let Err(error) = closed {
            say(&error.to_string());
        }
        let absent: Vec<_> = filter.ids.iter().filter(|id| !found.contains(*id)).collect();
        for id in &absent {
            say(&format!("{id}: no such dead letter; `dead-letters list` shows what there is"));
        }
        if letters.dry_run {
            print(&format!("{} dead letters would be {past}\n", sums.done))?;
        } else {
            print(&format!("{} {past}, {} cannot be\n", sums.done, sums.refused))?;
        }
        Ok(if absent.is_empty() && sums.refused == 0 && is_complete { Exit::Done } else { Exit::Failed })
    }

    /// Works on the selected letters page by page, until all that were there have come.
    async fn go_through(
        &self,
        session: &mut LetterSession,
        filter: &LetterFilter,
        desk: &Desk,
        dry_run: bool,
        found: &mut HashSet<MessageId>,
        sums: &mut Sums,
    ) -> Result<(), Failure> {
        let (mut page, mut bytes) = (Vec::new(), 0);
        loop {
            let record = session.next(QUIET).await.map_err(Failure::failed)?;
            let is_end = record.is_none();
            if let Some(work) = record.and_then(|record| self.work_on(record, filter)) {
                found.insert(work.letter.message.id);
                if let Some(why) = desk.refusal(&work) {
                    refuse(sums, &work, why);
                } else if dry_run {
                    sums.done += 1;
                } else {
                    bytes += work.letter.message.weight();
                    page.push(work);
                }
            }
            if is_end || page.len() >= PAGE || bytes >= PAGE_BYTES {
                bytes = 0;
                desk.carry_out(session, std::mem::take(&mut page), sums).await?;
            }
            if is_end {
                return Ok(());
            }
        }
    }

    fn work_on(&self, record: Record, filter: &LetterFilter) -> Option<Work> {
        let key = record.key();
        let is_whole = !matches!(&record, Record::Letter(letter) if !letter.is_whole);
        let letter = self.letter(record).filter(|letter| is_selected(filter, letter))?;
        Some(Work { key, letter, is_whole })
    }

    /// The record as the embedded bus would keep it; `None` for what is no letter.
    fn letter(&self, record: Record) -> Option<StoredLetter> {
        let stored = |message: Message, stage: String, reason: String, at| StoredLetter {
            subscription: None,
            topic: topic_of(&stage).map(str::to_owned),
            stage,
            reason,
            detail: String::new(),
            attempts: 1,
            first_dead_at: at,
            dead_at: at,
            state: "dead".to_owned(),
            retries: 0,
            ended: None,
            message,
        };
        Some(match record {
            Record::Skip(_) => return None,
            Record::Letter(letter) => {
                let at = letter.ended.unwrap_or(letter.message.publish_time);
                let missing = if letter.is_whole { "" } else { "(some of its parts have not come) " };
                let detail = format!("{missing}{}", letter.detail);
                let attempts = letter.attempts;
                StoredLetter { detail, attempts, ..stored(letter.message, letter.stage, letter.reason, at) }
            }
            Record::Drop(drop) => StoredLetter {
                state: "dropped".to_owned(),
                ended: Some(Ending { at: drop.at, by: drop.by, why: Some(drop.why) }),
                ..stored(Message::new(drop.id, "", drop.at), drop.stage, drop.reason, drop.at)
            },
            Record::Foreign(foreign) => {
                let at = foreign.message.publish_time;
                let (stage, reason, detail) = match &foreign.subscription {
                    Some(name) => (
                        self.bus.service_of(name),
                        "max-delivery-attempts",
                        format!(
                            "Pub/Sub moved it away from the subscription {name} by its dead letter policy"
                        ),
                    ),
                    None => (PUBSUB, "foreign", "no stage of Millstream put it there".to_owned()),
                };
                let (stage, reason) = (stage.to_owned(), reason.to_owned());
                StoredLetter {
                    detail,
                    attempts: foreign.deliveries,
                    ..stored(foreign.message, stage, reason, at)
                }
            }
        })
    }
}

/// The topic that `stage` consumes.
fn topic_of(stage: &str) -> Option<&'static str> {
    match stage {
        enrichment_service::STAGE => Some(RAW),
        bigquery_service::STAGE | icestore_service::STAGE => Some(ENRICHED),
        _ => None,
    }
}

fn is_selected(filter: &LetterFilter, letter: &StoredLetter) -> bool {
    let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
    (filter.ids.is_empty() || filter.ids.contains(&letter.message.id))
        && is(&filter.stage, &letter.stage)
        && is(&filter.reason, &letter.reason)
        && is(&filter.state, &letter.state)
        && filter.device.as_deref().is_none_or(|device| letter.message.device_id() == Some(device))
        && filter.since.is_none_or(|since| letter.dead_at >= since)
        && filter.before.is_none_or(|before| letter.dead_at < before)
}

async fn give_back(session: LetterSession) {
    // Without an answer the leases run out by themselves.
    let _ = session.close().await;
}

/// Says it when a session has seen only a part of the topic; whether it has seen all.
fn say_if_not_all(session: &LetterSession) -> bool {
    if !session.is_complete() {
        say(&format!(
            "only {MAX_HELD} messages of the dead letter topic could be looked at, and there are more; docs/deploy.md \
             (Dead letters) says how old ones are taken away"
        ));
    }
    session.is_complete()
}

/// What is to be done with letters.
struct Order {
    operation: Operation,
    /// Why they are dropped.
    why: String,
    /// Whether also letters are dropped of which parts are missing.
    takes_torn: bool,
}

/// A letter to work on.
struct Work {
    key: RecordKey,
    letter: StoredLetter,
    is_whole: bool,
}

/// Where letters are retried or dropped.
struct Desk {
    order: Order,
    by: String,
    letters: PubSubDeadLetters,
    ingest: Ingest,
    topics: BTreeMap<&'static str, PubSubPublisher>,
}

impl Desk {
    fn new(bus: PubSubBus, config: &Config, order: Order) -> Result<Self, Failure> {
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
    fn refusal(&self, work: &Work) -> Option<&'static str> {
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
    async fn carry_out(
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
            say(&error.to_string());
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
    for message in &mut messages {
        message.attempt = message.attempt.max(2);
    }
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

fn refuse(sums: &mut Sums, work: &Work, why: &str) {
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
    use super::*;
    use messagepipeline::IdGenerator;
    use pubsub::Letter;

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
            let letter = StoredLetter {
                subscription: None,
                topic: None,
                stage,
                reason: "refused".to_owned(),
                detail: String::new(),
                attempts: 1,
                first_dead_at: at,
                dead_at: at,
                state: "dead".to_owned(),
                retries: 0,
                ended: None,
                message,
            };
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

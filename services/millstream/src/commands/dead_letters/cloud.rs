//! Dead letters on Pub/Sub as a queue of work.
//!
//! Whoever reads them has them under a lease, so that two people do not work on the same letter at once; what was not
//! retried or dropped is given back at the end, and by itself when the process dies. A letter is taken away after its
//! message was published, so a death between the two publishes it twice under its id, which what holds it knows.

mod desk;

use self::desk::{Desk, Order, Work, refuse};
use super::work::{Sums, check_reason, past, selected};
use super::{PUBSUB, filter, line, message_id, print_all};
use crate::check::{ENRICHED, RAW};
use crate::cli::{DeadLettersCommand, LetterWork};
use crate::config::Config;
use crate::control::Operation;
use crate::output::{Failure, print, print_bytes, say};
use connectors::{Google, PubSubBus};
use embedded::bus::{Ending, LetterFilter, StoredLetter};
use messagepipeline::{Message, MessageId, Timestamp};
use pubsub::{LetterReader, LetterSession, Record};
use service_kit::Exit;
use std::collections::HashSet;
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
            sums.unconfirmed(&error);
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
        let is_done = absent.is_empty() && sums.refused == 0 && is_complete && !sums.is_unconfirmed;
        Ok(if is_done { Exit::Done } else { Exit::Failed })
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

/// A letter of `stage` whose only attempt ended at `at`.
fn stored(message: Message, stage: String, reason: String, at: Timestamp) -> StoredLetter {
    StoredLetter {
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

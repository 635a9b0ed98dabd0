//! The dead letters as a queue of work: a person retries or drops them, beside a running bus or without one.

use super::dead_letters::{LETTER_COLUMNS, read_letter};
use super::housekeeping::add_settled;
use super::publisher::{insert_message, stored_bytes};
use super::rows::{signed, unsigned};
use super::schema::SCHEMA;
use super::state::{Shared, TopicState};
use super::{Bus, load_topics};
use super::{BusPublisher, StoredLetter};
use crate::Error;
use crate::sqlite::{self, Writer};
use messagepipeline::{Clock, ID_CONFLICT, Message, MessageId, StageError, Timestamp};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, ToSql, params, params_from_iter};
use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

/// Letters of one transaction. Few enough that publishing beside it does not wait long.
const PAGE: usize = 256;
/// A page ends behind the letter with which those that are handed to the caller reach this many bytes.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// Which dead letters; an absent field means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// Of these messages; empty means of all.
    pub ids: Vec<MessageId>,
    /// Of this stage.
    pub stage: Option<String>,
    /// For this reason.
    pub reason: Option<String>,
    /// In this state: `dead`, `retried`, `dropped`.
    pub state: Option<String>,
    /// From this device.
    pub device: Option<String>,
    /// Given up then or later, the last time.
    pub since: Option<Timestamp>,
    /// Given up before, the last time.
    pub before: Option<Timestamp>,
}

/// A dead letter's place in the order in which they are gone through: stage and message id.
pub type LetterKey = (String, MessageId);

/// The condition of [`LetterFilter::values`].
pub(super) const WHERE: &str = "(stage, id) > (?1, ?2) AND (?3 IS NULL OR stage = ?3) \
    AND (?4 IS NULL OR reason = ?4) AND (?5 IS NULL OR state = ?5) AND (?6 IS NULL OR device_id = ?6) \
    AND (?7 IS NULL OR dead_at >= ?7) AND (?8 IS NULL OR dead_at < ?8) \
    AND (?9 IS NULL OR id IN (SELECT value FROM json_each(?9)))";

impl LetterFilter {
    /// The values of [`WHERE`] for letters behind `after`.
    pub(super) fn values(&self, after: Option<&LetterKey>) -> Vec<Value> {
        let (stage, id) =
            after.map_or((String::new(), String::new()), |(stage, id)| (stage.clone(), id.to_string()));
        // The ids as one JSON array: a list of any length for one prepared statement.
        let ids: serde_json::Value = self.ids.iter().map(ToString::to_string).collect();
        let text = |value: &Option<String>| value.clone().map_or(Value::Null, Value::Text);
        let time = |value: Option<Timestamp>| value.map_or(Value::Null, |at| Value::Text(at.to_string()));
        vec![
            Value::Text(stage),
            Value::Text(id),
            text(&self.stage),
            text(&self.reason),
            text(&self.state),
            text(&self.device),
            time(self.since),
            time(self.before),
            if self.ids.is_empty() { Value::Null } else { Value::Text(ids.to_string()) },
        ]
    }
}

/// Who decides about letters, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Who.
    pub by: String,
    /// Why.
    pub why: Option<String>,
}

/// What became of one page of letters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LetterPage {
    /// Letters that were retried or dropped.
    pub done: u64,
    /// Letters whose message no topic has had yet. They wait: the caller sends the messages through the stage that
    /// gave them up and then says what became of them, see [`LetterQueue::end`].
    pub unpublished: Vec<StoredLetter>,
    /// Letters that cannot be retried: whose, and why.
    pub refused: Vec<(LetterKey, String)>,
    /// The last letter looked at, when there may be more behind it.
    pub next: Option<LetterKey>,
}

/// What became of a letter's message that its stage was given again.
#[derive(Debug)]
pub enum Retried {
    /// The next stage has it.
    Passed,
    /// A rule ended it; its word.
    Skipped(Cow<'static, str>),
    /// It was refused again.
    Failed(StageError),
}

/// Retries and drops dead letters.
///
/// Each call goes through one page of letters in one transaction: a letter is gone in the same instant in which its
/// message is back, whatever happens to the process.
#[derive(Clone, Debug)]
pub struct LetterQueue {
    shared: Arc<Shared>,
    writer: Writer,
    clock: Arc<dyn Clock>,
}

impl Bus {
    /// The dead letters of an open bus.
    #[must_use]
    pub fn letter_queue(&self) -> LetterQueue {
        LetterQueue {
            shared: Arc::clone(&self.shared),
            writer: self.writer.clone(),
            clock: Arc::clone(&self.clock),
        }
    }
}

impl LetterQueue {
    /// The dead letters of a bus that no process has open. It counts as no start of the bus.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be written.
    pub fn open(path: &Path, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        // The reader does not create what is not there.
        drop(sqlite::open_reader(path, &SCHEMA)?);
        let connection = sqlite::open(path, &SCHEMA)?;
        let topics = load_topics(&connection).map_err(|error| error.at(path))?;
        let shared = Arc::new(Shared { topics: topics.into(), ..Shared::default() });
        Ok(Self { shared, writer: Writer::spawn("dead-letters", connection)?, clock })
    }

    /// Brings the next letters of `filter` behind `after` back to the subscriptions that gave them up, and to no
    /// other, under the same ids and with the original bytes. Their attempts begin anew.
    ///
    /// # Errors
    /// When the bus cannot be written; then no letter of this page was touched.
    pub async fn retry(
        &self,
        filter: LetterFilter,
        after: Option<LetterKey>,
        decision: Decision,
    ) -> Result<LetterPage, Error> {
        let (shared, now) = (Arc::clone(&self.shared), self.clock.now());
        let job = move |connection: &Connection| {
            let mut page = LetterPage::default();
            let (mut back, mut bytes) = (Vec::new(), 0);
            for key in next_page(connection, &filter, after.as_ref(), &mut page)? {
                match requeue(connection, &shared, &key)? {
                    Ok(requeued) => {
                        mark(connection, &key, "retried", &decision, now)?;
                        back.push(requeued);
                        page.done += 1;
                    }
                    Err(Kept::Refused(why)) => page.refused.push((key, why.to_owned())),
                    Err(Kept::Unpublished(letter)) => {
                        bytes += letter.message.weight();
                        page.unpublished.push(*letter);
                        if bytes >= PAGE_BYTES {
                            page.next = Some(key);
                            break;
                        }
                    }
                }
            }
            Ok::<_, Error>((shared, back, page))
        };
        let announce = |(shared, back, _): &(Arc<Shared>, Vec<Requeued>, LetterPage)| {
            for requeued in back {
                requeued.announce(shared);
            }
        };
        let (_, _, page) = self.writer.call_weighing(0, job, announce).await?;
        Ok(page)
    }

    /// Says what became of [`LetterPage::unpublished`]: what has passed its stage or was skipped ends, what was refused
    /// is a letter again, with one retry more. A letter that somebody else has ended meanwhile stays as it is. Answers
    /// how many have ended.
    ///
    /// # Errors
    /// When the bus cannot be written; then no letter was touched.
    pub async fn end(&self, retried: Vec<(LetterKey, Retried)>, decision: Decision) -> Result<u64, Error> {
        let now = self.clock.now();
        let job = move |connection: &Connection| {
            let mut ended = 0;
            for (key, retried) in &retried {
                match retried {
                    Retried::Passed => ended += mark(connection, key, "retried", &decision, now)?,
                    Retried::Skipped(rule) => {
                        let changed = mark(connection, key, "retried", &decision, now)?;
                        if changed > 0 {
                            skip(connection, key, rule)?;
                        }
                        ended += changed;
                    }
                    Retried::Failed(error) => refuse_again(connection, key, error, now)?,
                }
            }
            Ok::<_, Error>(ended as u64)
        };
        self.writer.call(job).await
    }

    /// A publisher to `topic`, which may hold `max_bytes` of what is not settled; `None` when there is no such topic.
    #[must_use]
    pub fn publisher(&self, topic: &str, max_bytes: u64) -> Option<BusPublisher> {
        Some(BusPublisher::new(self.shared.topic(topic)?, self.writer.clone(), max_bytes))
    }

    /// Marks the next letters of `filter` behind `after` as dropped by a person. Payload and attributes go; who, when
    /// and why stay, and count as the message's outcome.
    ///
    /// # Errors
    /// When the bus cannot be written; then no letter of this page was touched.
    pub async fn drop_letters(
        &self,
        filter: LetterFilter,
        after: Option<LetterKey>,
        decision: Decision,
    ) -> Result<LetterPage, Error> {
        let now = self.clock.now();
        let job = move |connection: &Connection| {
            let mut page = LetterPage::default();
            for key in next_page(connection, &filter, after.as_ref(), &mut page)? {
                mark(connection, &key, "dropped", &decision, now)?;
                page.done += 1;
            }
            Ok::<_, Error>(page)
        };
        self.writer.call(job).await
    }

    /// Closes the file that [`LetterQueue::open`] has opened.
    ///
    /// # Errors
    /// When the file could not be tidied up; nothing is lost then.
    pub async fn close(&self) -> Result<(), Error> {
        self.writer.close().await
    }
}

/// The next letters in state `dead`; notes in `page` where the one after them begins.
fn next_page(
    connection: &Connection,
    filter: &LetterFilter,
    after: Option<&LetterKey>,
    page: &mut LetterPage,
) -> Result<Vec<LetterKey>, Error> {
    let filter = LetterFilter { state: Some("dead".to_owned()), ..filter.clone() };
    let sql = format!("SELECT stage, id FROM dead_letters WHERE {WHERE} ORDER BY stage, id LIMIT {PAGE}");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(filter.values(after)))?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        let text: String = row.get(1)?;
        let id = text.parse().map_err(|_| rusqlite::Error::InvalidQuery)?;
        keys.push((row.get(0)?, id));
    }
    if keys.len() == PAGE {
        page.next = keys.last().cloned();
    }
    Ok(keys)
}

/// The row stays as the record of what was decided; what takes room goes. Answers how many there were (0 or 1).
fn mark(
    connection: &Connection,
    (stage, id): &LetterKey,
    state: &str,
    decision: &Decision,
    now: Timestamp,
) -> rusqlite::Result<usize> {
    let sql = "UPDATE dead_letters SET state = ?3, retries = retries + (?3 = 'retried'), payload = '', \
                   attributes = '{}', enrichment = NULL, bytes = 0, ended_at = ?4, ended_by = ?5, ended_why = ?6 \
               WHERE stage = ?1 AND id = ?2 AND state = 'dead'";
    let now = now.to_string();
    let id = id.to_string();
    let values: [&dyn ToSql; 6] = [stage, &id, &state, &now, &decision.by, &decision.why];
    connection.prepare_cached(sql)?.execute(&values[..])
}

fn skip(connection: &Connection, (stage, id): &LetterKey, rule: &str) -> rusqlite::Result<()> {
    let sql = "INSERT INTO skips VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    connection.prepare_cached(sql)?.execute(params![stage, id.as_bytes().as_slice(), rule])?;
    Ok(())
}

fn refuse_again(
    connection: &Connection,
    (stage, id): &LetterKey,
    error: &StageError,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let sql = "UPDATE dead_letters SET retries = retries + 1, reason = ?3, detail = ?4, dead_at = ?5, \
                   bytes = bytes - octet_length(detail) + octet_length(?4) \
               WHERE stage = ?1 AND id = ?2 AND state = 'dead'";
    let values = params![stage, id.to_string(), error.reason(), error.detail(), now.to_string()];
    connection.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

/// A letter that cannot be put back into its topic.
enum Kept {
    Refused(&'static str),
    Unpublished(Box<StoredLetter>),
}

/// A message that is back in its topic's log.
struct Requeued {
    topic: Arc<TopicState>,
    seq: u64,
    /// Subscriptions that do not get it again.
    settled: Vec<i64>,
}

impl Requeued {
    /// Tells the subscriptions, those that have settled it first.
    fn announce(&self, shared: &Shared) {
        for subscription in shared.subscriptions.read().iter() {
            if self.settled.contains(&subscription.id) {
                subscription.leases.lock().settle_elsewhere(self.seq);
            }
        }
        self.topic.announce(self.seq);
    }
}

/// Appends the letter's message to its topic's log, or says why that would be of no use.
fn requeue(
    connection: &Connection,
    shared: &Shared,
    (stage, id): &LetterKey,
) -> Result<Result<Requeued, Kept>, Error> {
    let sql = format!("SELECT {LETTER_COLUMNS} FROM dead_letters WHERE stage = ?1 AND id = ?2");
    let refused = |why| Ok(Err(Kept::Refused(why)));
    let found = connection.prepare_cached(&sql)?.query_row(params![stage, id.to_string()], read_letter);
    let letter = match found {
        Err(error) if is_damage(&error) => return refused("its row in bus.db is damaged and cannot be read"),
        found => found?,
    };
    if letter.reason == ID_CONFLICT {
        return refused("its message id belongs to another message, so it would fail again");
    }
    let (Some(topic), Some(subscription)) = (&letter.topic, &letter.subscription) else {
        return Ok(Err(Kept::Unpublished(Box::new(letter))));
    };
    let Some(topic) = shared.topic(topic) else { return refused("its topic does not exist any more") };
    let Some(before) = place_of(connection, &topic, *id)? else {
        return refused("its topic does not know its id any more");
    };
    let seq = append_again(connection, &topic, &letter.message)?;
    let settled = others_that_settled(connection, &topic, subscription, before)?;
    for other in &settled {
        add_settled(connection, *other, seq, seq)?;
    }
    Ok(Ok(Requeued { topic, seq, settled }))
}

/// Whether a row does not hold what its columns should: the others are none the worse for it.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error::{FromSqlConversionFailure, IntegralValueOutOfRange, InvalidColumnType};
    matches!(error, FromSqlConversionFailure(..) | IntegralValueOutOfRange(..) | InvalidColumnType(..))
}

/// Where the ledger says that the message lies.
fn place_of(connection: &Connection, topic: &TopicState, id: MessageId) -> rusqlite::Result<Option<u64>> {
    let mut find = connection.prepare_cached(&topic.sql.find_id)?;
    Ok(find.query_row([id.as_bytes().as_slice()], |row| row.get(0)).optional()?.map(unsigned))
}

/// The topic's other subscriptions that have settled message `before`. One that has not gets the message a second
/// time, which its stage recognises by the id: the ledger knows one place per message, and a message that somebody
/// still owes must be found there.
fn others_that_settled(
    connection: &Connection,
    topic: &TopicState,
    subscription: &str,
    before: u64,
) -> rusqlite::Result<Vec<i64>> {
    let sql = "SELECT id FROM subscriptions WHERE topic = ?1 AND name <> ?2 AND (cursor >= ?3 OR EXISTS \
                   (SELECT 1 FROM settled WHERE subscription = id AND ?3 BETWEEN first AND last))";
    let mut others = connection.prepare_cached(sql)?;
    let found = others.query_map(params![topic.id, subscription, signed(before)], |row| row.get(0))?;
    found.collect()
}

fn append_again(connection: &Connection, topic: &TopicState, message: &Message) -> rusqlite::Result<u64> {
    let sql =
        "UPDATE topics SET last_seq = last_seq + 1, bytes = bytes + ?2 WHERE id = ?1 RETURNING last_seq";
    let bytes = signed(stored_bytes(message));
    let seq: i64 = connection.prepare_cached(sql)?.query_row(params![topic.id, bytes], |row| row.get(0))?;
    insert_message(&mut connection.prepare_cached(&topic.sql.insert_message)?, unsigned(seq), message)?;
    let id = message.id.as_bytes().as_slice();
    connection.prepare_cached(&topic.sql.moved)?.execute(params![id, seq])?;
    Ok(unsigned(seq))
}

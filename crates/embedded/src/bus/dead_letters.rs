//! Dead letters and skips, kept in the transaction that settles their messages.

use super::Bus;
use super::housekeeping::add_settled;
use super::publisher::{fingerprint, stored_bytes};
use super::rows::{RowReader, Rows, signed, unsigned};
use super::state::{Shared, SubscriptionState, TopicState};
use crate::Error;
use crate::sqlite::Writer;
use futures_util::future::BoxFuture;
use messagepipeline::{
    Attributes, Clock, DeadLetter, DeadLetters, Enrichment, ErrorClass, ID_CONFLICT, Message, MessageId,
    Skipped, StageError, Timestamp, foreign_id,
};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Attribute of an id-conflict letter: the id that already stood for another message.
pub const CONFLICTING_ID: &str = "conflicting_id";

/// Keeps what a stage gives up on or skips. When it knows the stage's subscription, the message is settled in the
/// same transaction, so that a crash before the acknowledgement does not bring it again.
///
/// A letter of reason [`ID_CONFLICT`] carries an id of its own, because the message's id belongs to the message that
/// was stored first; [`CONFLICTING_ID`] names that one. The new id follows from the old one and the payload, so
/// that the same letter put again is the same letter.
#[derive(Clone, Debug)]
pub struct BusDeadLetters {
    subscription: Option<Arc<SubscriptionState>>,
    writer: Writer,
    clock: Arc<dyn Clock>,
}

impl BusDeadLetters {
    pub(super) fn new(
        subscription: Option<Arc<SubscriptionState>>,
        writer: Writer,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { subscription, writer, clock }
    }

    /// Runs `work`, which answers with the numbers it has settled in the store.
    async fn write<F>(&self, bytes: usize, work: F) -> Result<(), StageError>
    where
        F: FnOnce(&Connection, Option<&SubscriptionState>) -> Result<Vec<u64>, Error> + Send + 'static,
    {
        let (writing, settling) = (self.subscription.clone(), self.subscription.clone());
        let job = move |connection: &Connection| work(connection, writing.as_deref());
        let settled = move |seqs: &Vec<u64>| {
            if let Some(subscription) = settling {
                let mut leases = subscription.leases.lock();
                seqs.iter().for_each(|seq| leases.settle_elsewhere(*seq));
            }
        };
        self.writer.call_weighing(bytes, job, settled).await?;
        Ok(())
    }
}

impl DeadLetters for BusDeadLetters {
    fn put(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, Result<(), StageError>> {
        let bytes = letters.iter().map(|letter| letter.message.weight() + letter.detail.len()).sum();
        let now = self.clock.now();
        Box::pin(self.write(bytes, move |connection, subscription| {
            let mut settled = Vec::new();
            for letter in &letters {
                insert_letter(connection, letter, subscription, now)?;
                settled.extend(settle_stored(connection, subscription, &letter.message.id)?);
            }
            Ok(settled)
        }))
    }

    fn record_skips(&self, skips: Vec<Skipped>) -> BoxFuture<'_, Result<(), StageError>> {
        let bytes = skips.len() * size_of::<Skipped>();
        Box::pin(self.write(bytes, move |connection, subscription| {
            let mut settled = Vec::new();
            let mut insert =
                connection.prepare_cached("INSERT INTO skips VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?;
            for skip in &skips {
                insert.execute(params![skip.stage, skip.id.as_bytes().as_slice(), skip.rule])?;
                settled.extend(settle_stored(connection, subscription, &skip.id)?);
            }
            Ok(settled)
        }))
    }
}

/// Reason word of a message that was handed out alone, more than once, and the process died each time.
pub const KILLS_PROCESS: &str = "kills-process";

/// Counts a failure for message `seq`, during which the process died; at `max_attempts` it is given up. The stage is
/// called like its subscription.
pub(super) fn count_kill(
    connection: &Connection,
    subscription: &SubscriptionState,
    seq: u64,
    max_attempts: u32,
    now: Timestamp,
) -> Result<(), Error> {
    let sql = "INSERT INTO attempts VALUES (?1, ?2, 1) ON CONFLICT DO UPDATE SET attempts = attempts + 1 \
               RETURNING attempts";
    let attempts: u32 = connection.query_row(sql, params![subscription.id, signed(seq)], |row| row.get(0))?;
    if attempts < max_attempts {
        return Ok(());
    }
    let mut rows = Rows::default();
    let mut statement = connection.prepare_cached(&subscription.topic.sql.read_one)?;
    let mut found = statement.query([signed(seq)])?;
    while let Some(row) = found.next()? {
        RowReader::default().read(row, &mut rows)?;
    }
    for (_, message) in rows.into_messages()? {
        tracing::error!(id = %message.id, subscription = subscription.name, "given up: this message kills the process");
        let letter = DeadLetter {
            message,
            stage: subscription.name.clone().into(),
            reason: KILLS_PROCESS.into(),
            detail: format!("the process died {attempts} times while it worked on this message alone"),
            attempts,
        };
        insert_letter(connection, &letter, Some(subscription), now)?;
    }
    add_settled(connection, subscription.id, seq, seq)?;
    Ok(())
}

/// Settles message `id` in the store, unless the subscription's cursor has passed it.
fn settle_stored(
    connection: &Connection,
    subscription: Option<&SubscriptionState>,
    id: &MessageId,
) -> rusqlite::Result<Option<u64>> {
    let Some(subscription) = subscription else { return Ok(None) };
    let mut find = connection.prepare_cached(&subscription.topic.sql.find_id)?;
    let seq = find.query_row([id.as_bytes().as_slice()], |row| row.get(0)).optional()?.map(unsigned);
    let Some(seq) = seq else { return Ok(None) };
    let mut cursor = connection.prepare_cached("SELECT cursor FROM subscriptions WHERE id = ?1")?;
    if unsigned(cursor.query_row([subscription.id], |row| row.get(0))?) < seq {
        add_settled(connection, subscription.id, seq, seq)?;
    }
    Ok(Some(seq))
}

fn insert_letter(
    connection: &Connection,
    letter: &DeadLetter,
    subscription: Option<&SubscriptionState>,
    now: Timestamp,
) -> Result<(), Error> {
    let message = &letter.message;
    let mut id = message.id;
    let mut attributes = attributes_to_json(&message.attributes);
    if letter.reason == ID_CONFLICT {
        id = foreign_id(ID_CONFLICT, &format!("{id}:{}", fingerprint(&message.payload)));
        attributes.insert(CONFLICTING_ID.to_owned(), Value::String(message.id.to_string()));
    }
    // A letter that was retried and comes back is dead again; one put twice stays as it is.
    let sql = "INSERT INTO dead_letters (stage, id, subscription, topic, reason, detail, attempts, dead_at, \
                   publish_time, device_id, attributes, enrichment, payload) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13) \
               ON CONFLICT (stage, id) DO UPDATE SET state = 'dead', reason = excluded.reason, \
                   detail = excluded.detail, attempts = excluded.attempts, dead_at = excluded.dead_at \
               WHERE state = 'retried'";
    connection.prepare_cached(sql)?.execute(params![
        letter.stage,
        id.to_string(),
        subscription.map(|subscription| &subscription.name),
        subscription.map(|subscription| &subscription.topic.name),
        letter.reason,
        letter.detail,
        letter.attempts,
        now.to_string(),
        message.publish_time.to_string(),
        message.device_id(),
        Value::Object(attributes).to_string(),
        message.enrichment.text(),
        ReadablePayload(&message.payload),
    ])?;
    Ok(())
}

/// TEXT when it is UTF-8 without NUL, so that `sqlite3` shows it, else BLOB.
struct ReadablePayload<'a>(&'a [u8]);

impl ToSql for ReadablePayload<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let readable = !self.0.contains(&0) && std::str::from_utf8(self.0).is_ok();
        let value = if readable { ValueRef::Text(self.0) } else { ValueRef::Blob(self.0) };
        Ok(ToSqlOutput::Borrowed(value))
    }
}

fn attributes_to_json(attributes: &Attributes) -> Map<String, Value> {
    attributes.iter().map(|(name, value)| (name.to_owned(), Value::String(value.to_owned()))).collect()
}

/// A dead letter as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredLetter {
    /// The stage that gave up.
    pub stage: String,
    /// The subscription that gave up, when it was one of the bus's.
    pub subscription: Option<String>,
    /// That subscription's topic.
    pub topic: Option<String>,
    /// Reason word in kebab case.
    pub reason: String,
    /// What was wrong, for people.
    pub detail: String,
    /// Deliveries until then.
    pub attempts: u32,
    /// When it was given up.
    pub dead_at: Timestamp,
    /// `dead`, `retried` or `dropped`.
    pub state: String,
    /// The message as the stage received it.
    pub message: Message,
}

/// The columns [`read_letter`] expects.
pub(super) const LETTER_COLUMNS: &str = "stage, id, subscription, topic, reason, detail, attempts, dead_at, \
                                         publish_time, attributes, enrichment, payload, state";

pub(super) fn read_letter(row: &Row<'_>) -> rusqlite::Result<StoredLetter> {
    let attributes: Map<String, Value> = parse(row, 9, |text| serde_json::from_str(text))?;
    let pairs = attributes.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
    let enrichment = match row.get_ref(10)?.as_str_or_null()? {
        None => Enrichment::none(),
        Some(_) => parse(row, 10, Enrichment::from_text)?,
    };
    let message = Message {
        id: parse(row, 1, str::parse)?,
        payload: row.get_ref(11)?.as_bytes()?.to_vec().into(),
        attributes: pairs.collect(),
        publish_time: parse(row, 8, str::parse)?,
        enrichment,
        attempt: row.get(6)?,
    };
    Ok(StoredLetter {
        stage: row.get(0)?,
        subscription: row.get(2)?,
        topic: row.get(3)?,
        reason: row.get(4)?,
        detail: row.get(5)?,
        attempts: row.get(6)?,
        dead_at: parse(row, 7, str::parse)?,
        state: row.get(12)?,
        message,
    })
}

fn parse<T, E: std::error::Error + Send + Sync + 'static>(
    row: &Row<'_>,
    column: usize,
    read: impl FnOnce(&str) -> Result<T, E>,
) -> rusqlite::Result<T> {
    read(row.get_ref(column)?.as_str()?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

impl Bus {
    /// Where a stage keeps what it gives up on. `subscription` is the one the stage consumes, if it is this bus's.
    #[must_use]
    pub fn dead_letters(&self, subscription: Option<&super::Subscription>) -> BusDeadLetters {
        let subscription = subscription.map(|subscription| Arc::clone(&subscription.0));
        BusDeadLetters::new(subscription, self.writer.clone(), Arc::clone(&self.clock))
    }

    /// Brings a dead letter back to the subscription that gave it up, and to no other, under the same id.
    ///
    /// # Errors
    /// When there is no such letter, or it did not come from a subscription, or its id stands for another message.
    pub async fn retry_dead_letter(&self, stage: &str, id: MessageId) -> Result<(), Error> {
        let (shared, stage) = (Arc::clone(&self.shared), stage.to_owned());
        let job = move |connection: &Connection| {
            let (topic, subscription, seq) = requeue(connection, &shared, &stage, id)?;
            Ok::<_, Error>((shared, topic, subscription, seq))
        };
        let announce = |(shared, topic, subscription, seq): &(Arc<Shared>, Arc<TopicState>, String, u64)| {
            for other in shared.subscriptions.read().iter() {
                if other.topic.id == topic.id && other.name != *subscription {
                    other.leases.lock().settle_elsewhere(*seq);
                }
            }
            topic.announce(*seq);
        };
        self.writer.call_weighing(0, job, announce).await?;
        Ok(())
    }

    /// Marks a dead letter as dropped by a person: it stays readable, and counts as finished.
    ///
    /// # Errors
    /// When there is no such letter.
    pub async fn drop_dead_letter(&self, stage: &str, id: MessageId) -> Result<(), Error> {
        let stage = stage.to_owned();
        self.writer.call(move |connection| mark(connection, &stage, id, "dropped")).await
    }
}

fn mark(connection: &Connection, stage: &str, id: MessageId, state: &str) -> Result<(), Error> {
    let sql = "UPDATE dead_letters SET state = ?3 WHERE stage = ?1 AND id = ?2 AND state = 'dead'";
    if connection.prepare_cached(sql)?.execute(params![stage, id.to_string(), state])? == 0 {
        return Err(no_letter(stage, id));
    }
    Ok(())
}

fn no_letter(stage: &str, id: MessageId) -> Error {
    let detail =
        format!("stage {stage} has no dead letter {id}; `millstream dead-letters list` shows what there is");
    Error::refused(ErrorClass::Permanent, "no-such-letter", detail)
}

/// Appends the letter's message to its topic's log, settled for every subscription but its own.
fn requeue(
    connection: &Connection,
    shared: &Shared,
    stage: &str,
    id: MessageId,
) -> Result<(Arc<TopicState>, String, u64), Error> {
    let sql =
        format!("SELECT {LETTER_COLUMNS} FROM dead_letters WHERE stage = ?1 AND id = ?2 AND state = 'dead'");
    let letter = connection.query_row(&sql, params![stage, id.to_string()], read_letter).optional()?;
    let letter = letter.ok_or_else(|| no_letter(stage, id))?;
    let refuse = |why: &str| Error::refused(ErrorClass::Permanent, "not-retryable", why);
    if letter.reason == ID_CONFLICT {
        return Err(refuse("its message id belongs to another message, so it would fail again"));
    }
    let (Some(topic), Some(subscription)) = (letter.topic, letter.subscription) else {
        return Err(refuse("it was given up before it reached the bus; let its device send it again"));
    };
    let topic = shared.topic(&topic).ok_or_else(|| refuse("its topic does not exist any more"))?;
    let seq = append_again(connection, &topic, &letter.message)?;
    let others = "SELECT id FROM subscriptions WHERE topic = ?1 AND name <> ?2";
    let mut others = connection.prepare_cached(others)?;
    for other in others.query_map(params![topic.id, subscription], |row| row.get(0))? {
        add_settled(connection, other?, seq, seq)?;
    }
    mark(connection, stage, id, "retried")?;
    Ok((topic, subscription, seq))
}

fn append_again(connection: &Connection, topic: &TopicState, message: &Message) -> rusqlite::Result<u64> {
    let sql =
        "UPDATE topics SET last_seq = last_seq + 1, bytes = bytes + ?2 WHERE id = ?1 RETURNING last_seq";
    let bytes = signed(stored_bytes(message));
    let seq: i64 = connection.prepare_cached(sql)?.query_row(params![topic.id, bytes], |row| row.get(0))?;
    let id = message.id.as_bytes().as_slice();
    connection.prepare_cached(&topic.sql.insert_message)?.execute(params![
        seq,
        id,
        message.publish_time.as_micros(),
        &message.attributes.as_bytes()[..],
        message.enrichment.text(),
        &message.payload[..],
    ])?;
    connection.prepare_cached(&topic.sql.moved)?.execute(params![id, seq])?;
    Ok(unsigned(seq))
}

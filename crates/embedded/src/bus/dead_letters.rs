//! Dead letters and skips, kept in the transaction that settles their messages.

use super::housekeeping::add_settled;
use super::publisher::fingerprint;
use super::rows::{RowReader, Rows, signed, unsigned};
use super::state::SubscriptionState;
use super::{Bus, BusOptions};
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
///
/// At the bounds of [`super::BusOptions`] nothing more is taken: the stage keeps the message, says so and tries again.
#[derive(Clone, Debug)]
pub struct BusDeadLetters {
    subscription: Option<Arc<SubscriptionState>>,
    writer: Writer,
    clock: Arc<dyn Clock>,
    limits: (u64, u64),
}

impl BusDeadLetters {
    pub(super) fn new(
        subscription: Option<Arc<SubscriptionState>>,
        writer: Writer,
        clock: Arc<dyn Clock>,
        options: &BusOptions,
    ) -> Self {
        let limits = (options.max_dead_letters, options.max_dead_letter_bytes);
        Self { subscription, writer, clock, limits }
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
        let (now, limits) = (self.clock.now(), self.limits);
        Box::pin(self.write(bytes, move |connection, subscription| {
            let before = totals(connection)?;
            let mut settled = Vec::new();
            for letter in &letters {
                insert_letter(connection, letter, subscription, now)?;
                settled.extend(settle_stored(connection, subscription, &letter.message.id)?);
            }
            // Letters that were kept already take no room; an error undoes the others.
            if totals(connection)? != before {
                refuse_beyond(before, limits)?;
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

/// Letters that wait for a person, and their bytes.
pub(super) fn totals(connection: &Connection) -> rusqlite::Result<(u64, u64)> {
    let mut read = connection.prepare_cached("SELECT letters, bytes FROM dead_letter_totals")?;
    read.query_row([], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))))
}

/// Refuses further letters at the bound. A call that begins below it may pass it: by what one call brings, which the
/// stage's window bounds.
fn refuse_beyond((letters, bytes): (u64, u64), (max_letters, max_bytes): (u64, u64)) -> Result<(), Error> {
    if letters < max_letters && bytes < max_bytes {
        return Ok(());
    }
    let detail = format!(
        "the dead letters are full ({letters} letters, {bytes} bytes): `millstream dead-letters retry` or `drop` makes \
         room, bus.dead_letters raises the bound"
    );
    Err(Error::refused(ErrorClass::Transient, "dead-letters-full", detail))
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
    let attributes = Value::Object(attributes).to_string();
    let bytes = message.payload.len() + attributes.len() + letter.detail.len();
    connection.prepare_cached(INSERT)?.execute(params![
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
        attributes,
        message.enrichment.text(),
        ReadablePayload(&message.payload),
        signed((bytes + message.enrichment.text().map_or(0, |text| text.len())) as u64),
    ])?;
    Ok(())
}

/// A letter that was retried and comes back is dead again; one put twice stays as it is.
const INSERT: &str = "INSERT INTO dead_letters (stage, id, subscription, topic, reason, detail, attempts, dead_at, \
        publish_time, device_id, attributes, enrichment, payload, bytes, first_dead_at) \
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?8) \
    ON CONFLICT (stage, id) DO UPDATE SET state = 'dead', reason = excluded.reason, detail = excluded.detail, \
        attempts = excluded.attempts, dead_at = excluded.dead_at, attributes = excluded.attributes, \
        enrichment = excluded.enrichment, payload = excluded.payload, bytes = excluded.bytes, \
        ended_at = NULL, ended_by = NULL, ended_why = NULL \
    WHERE state = 'retried'";

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
    /// When it was given up the first time.
    pub first_dead_at: Timestamp,
    /// When it was given up the last time.
    pub dead_at: Timestamp,
    /// `dead`, `retried` or `dropped`.
    pub state: String,
    /// How often a person has retried it.
    pub retries: u32,
    /// What a person did last, unless it was given up again after that.
    pub ended: Option<Ending>,
    /// The message as the stage received it; one that was retried or dropped has lost payload and attributes.
    pub message: Message,
}

/// A person's decision about a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// When.
    pub at: Timestamp,
    /// Who, as the command gave it.
    pub by: String,
    /// Why, where that was asked.
    pub why: Option<String>,
}

/// The columns [`read_letter`] expects.
pub(super) const LETTER_COLUMNS: &str = "stage, id, subscription, topic, reason, detail, attempts, dead_at, \
                                         publish_time, attributes, enrichment, payload, state, first_dead_at, \
                                         retries, ended_at, ended_by, ended_why";

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
    let ended = match row.get_ref(15)?.as_str_or_null()? {
        None => None,
        Some(_) => Some(Ending {
            at: parse(row, 15, str::parse)?,
            by: row.get::<_, Option<String>>(16)?.unwrap_or_default(),
            why: row.get(17)?,
        }),
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
        first_dead_at: parse(row, if row.get_ref(13)? == ValueRef::Null { 7 } else { 13 }, str::parse)?,
        retries: row.get(14)?,
        ended,
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
        BusDeadLetters::new(subscription, self.writer.clone(), Arc::clone(&self.clock), &self.options)
    }
}

//! The durable bus of one machine: topics, subscriptions, dead letters and parked messages in `bus.db`.
//!
//! ```text
//!  publish ──► writer queue ──► ONE transaction ──► commit + sync ──► answers, consumers wake
//!  verdicts ─► lease state ───────┘ also trims what every subscription has settled
//!                  ▲
//!  consumer ◄── pump takes a chunk ahead ◄── tail of the topic, or the log table on a connection of its own
//! ```
//!
//! Durable are: the log, the ids that ever entered a topic, each subscription's cursor with what is settled above
//! it, and counted attempts. Leases live in memory (`leases.rs`); after a restart everything unsettled comes again.

mod books;
mod consumer;
mod dead_letters;
mod housekeeping;
mod leases;
mod letter_queue;
mod parked;
mod probation;
mod publisher;
mod retention;
mod rows;
mod runs;
mod schema;
mod sessions;
mod state;
mod tail;

pub use books::{BusReader, LetterCount, Sighting, SubscriptionBooks};
pub use consumer::{BusConsumer, ConsumerOptions};
pub use dead_letters::{BusDeadLetters, CONFLICTING_ID, Ending, KILLS_PROCESS, StoredLetter};
pub use leases::sequence;
pub use letter_queue::{Decision, LetterFilter, LetterKey, LetterPage, LetterQueue, Retried};
pub use parked::BusParkingLot;
pub use publisher::BusPublisher;
pub use retention::{Candidate, CandidatePage, Finished, Folded, IdLedger};
pub use sessions::BusSessions;

use crate::Error;
use crate::sqlite::{self, Writer};
use housekeeping::Housekeeping;
use leases::{LeaseLimits, Leases};
use messagepipeline::{Clock, Digest, ErrorClass, Timestamp};
use probation::{Probation, Start};
use rows::{signed, unsigned};
use runs::Runs;
use rusqlite::{Connection, OptionalExtension, params};
use state::{Shared, SubscriptionState, TopicState};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Settings of a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusOptions {
    /// Bytes of payloads and attributes that one topic may hold before publishing waits. Only what some
    /// subscription has not settled counts, because the rest is trimmed. Default 64 GiB.
    pub max_topic_bytes: u64,
    /// Parked messages, at most. Default 100,000.
    pub max_parked: u64,
    /// Dead letters that wait for a person, at most; beyond it the stages keep what they would give up. Default
    /// 1,000,000.
    pub max_dead_letters: u64,
    /// The same in bytes of payload, attributes and detail. Default 4 GiB.
    pub max_dead_letter_bytes: u64,
}

impl Default for BusOptions {
    fn default() -> Self {
        Self {
            max_topic_bytes: 64 << 30,
            max_parked: 100_000,
            max_dead_letters: 1_000_000,
            max_dead_letter_bytes: 4 << 30,
        }
    }
}

/// Settings of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubscriptionOptions {
    /// Distance in messages between the oldest unsettled message and the newest handed out, at most. Default 131,072.
    pub max_outstanding_messages: usize,
    /// The same distance in bytes of memory; a single message may be larger. Default 256 MiB.
    pub max_outstanding_bytes: usize,
    /// How long a message may stay without a verdict before it is handed out again. Default 10 minutes.
    pub lease: Duration,
    /// Delay before a message comes again after its first counted failure; it doubles with each further one.
    /// Default 100 ms.
    pub nack_delay: Duration,
    /// The longest such delay. Default 1 minute.
    pub nack_delay_max: Duration,
    /// Failures after which a message that kills the process is given up. Default 5.
    pub max_attempts: u32,
}

impl Default for SubscriptionOptions {
    fn default() -> Self {
        Self {
            max_outstanding_messages: 131_072,
            max_outstanding_bytes: 256 << 20,
            lease: Duration::from_secs(600),
            nack_delay: Duration::from_millis(100),
            nack_delay_max: Duration::from_secs(60),
            max_attempts: 5,
        }
    }
}

impl SubscriptionOptions {
    fn limits(&self) -> LeaseLimits {
        LeaseLimits {
            max_messages: self.max_outstanding_messages.max(1),
            max_bytes: self.max_outstanding_bytes.max(1),
            lease: self.lease,
            nack_delay: self.nack_delay,
            nack_delay_max: self.nack_delay_max,
        }
    }
}

/// An open bus. Cloning shares it; exactly one process may have it open.
#[derive(Clone, Debug)]
pub struct Bus {
    shared: Arc<Shared>,
    writer: Writer,
    options: BusOptions,
    clock: Arc<dyn Clock>,
    closed: CancellationToken,
}

/// A topic of an open bus.
#[derive(Clone, Debug)]
pub struct Topic(Arc<TopicState>);

impl Topic {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The sequence number of its newest message that is on the disk; 0 where there was none yet.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.0.head()
    }
}

/// A subscription of an open bus.
#[derive(Clone, Debug)]
pub struct Subscription(Arc<SubscriptionState>);

impl Subscription {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }
}

/// How far a topic and its subscriptions are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicFigures {
    /// The topic.
    pub name: String,
    /// Distinct ids ever published, with their digest.
    pub published: Digest,
    /// Publishes of an id that was there already.
    pub duplicates: u64,
    /// Bytes of payloads and attributes in the log.
    pub bytes: u64,
}

/// How far a subscription is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionFigures {
    /// The subscription.
    pub name: String,
    /// Its topic.
    pub topic: String,
    /// Messages without a final outcome.
    pub unsettled: u64,
    /// Messages handed out and not settled.
    pub outstanding: u64,
    /// How long ago the oldest unsettled message was first received.
    pub oldest: Option<Duration>,
}

/// Figures of an open bus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Every topic.
    pub topics: Vec<TopicFigures>,
    /// Every open subscription.
    pub subscriptions: Vec<SubscriptionFigures>,
}

impl Bus {
    /// Opens the bus in the file `path`, and creates it if it is not there.
    ///
    /// # Errors
    /// When the file cannot be used; the text says why.
    pub async fn open(
        path: impl AsRef<Path>,
        options: BusOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            let connection = sqlite::open(&path, &schema::SCHEMA)?;
            let unclean = note_start(&connection).map_err(|error| Error::from(error).at(&path))?;
            let topics = load_topics(&connection).map_err(|error| error.at(&path))?;
            let shared = Arc::new(Shared { topics: topics.into(), unclean, ..Shared::default() });
            let writer = Writer::spawn_with("bus", connection, Housekeeping::new(Arc::clone(&shared)))?;
            Ok::<_, Error>((shared, writer))
        });
        let (shared, writer) = opened
            .await
            .map_err(|error| Error::refused(ErrorClass::Transient, "cancelled", error.to_string()))??;
        Ok(Self { shared, writer, options, clock, closed: CancellationToken::new() })
    }

    /// The topic `name`, created if it is not there.
    ///
    /// # Errors
    /// When `name` is not a topic name or the file cannot be written.
    pub async fn topic(&self, name: &str) -> Result<Topic, Error> {
        if let Some(topic) = self.shared.topic(name) {
            return Ok(Topic(topic));
        }
        schema::check_name("topic", name)?;
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        let create = move |connection: &Connection| -> Result<_, Error> {
            // The writer is one thread, so two callers cannot both create it.
            if let Some(topic) = shared.topic(&name) {
                return Ok((topic, shared));
            }
            connection.execute_batch(&schema::TopicSql::new(&name)?.create)?;
            connection.execute("INSERT INTO topics (name) VALUES (?1) ON CONFLICT DO NOTHING", [&name])?;
            let sql = "SELECT id, last_seq, trimmed FROM topics WHERE name = ?1";
            let (id, head, trimmed) =
                connection.query_row(sql, [&name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            let topic = TopicState::new(id, &name, unsigned(head), unsigned(trimmed), 0)?;
            Ok((Arc::new(topic), shared))
        };
        let register = |(topic, shared): &(Arc<TopicState>, Arc<Shared>)| {
            if shared.topic(&topic.name).is_none() {
                shared.topics.write().push(Arc::clone(topic));
            }
        };
        let (topic, shared) = self.writer.call_weighing(0, create, register).await?;
        // A call in the same transaction may have been first.
        Ok(Topic(shared.topic(&topic.name).unwrap_or(topic)))
    }

    /// The subscription `name` of `topic`. One that is not there is created and starts at the oldest message that the
    /// topic still has. For one that is open already the options hold from now on.
    ///
    /// # Errors
    /// When `name` is not a subscription name or the file cannot be written.
    pub async fn subscription(
        &self,
        topic: &Topic,
        name: &str,
        options: SubscriptionOptions,
    ) -> Result<Subscription, Error> {
        schema::check_name("subscription", name)?;
        let (shared, topic, name) = (Arc::clone(&self.shared), Arc::clone(&topic.0), name.to_owned());
        let (key, now) = ((topic.id, name.clone()), self.clock.now());
        let create = move |connection: &Connection| -> Result<_, Error> {
            let state = load_subscription(connection, &topic, &name, options, (shared.unclean, now))?;
            Ok((Arc::new(state), shared))
        };
        let register = |(state, shared): &(Arc<SubscriptionState>, Arc<Shared>)| {
            if shared.subscription(state.topic.id, &state.name).is_none() {
                state.topic.listen(state);
                shared.subscriptions.write().push(Arc::clone(state));
            }
        };
        if let Some(open) = self.shared.subscription(key.0, &key.1) {
            open.leases.lock().set_limits(options.limits());
            open.wake.notify_waiters();
            return Ok(Subscription(open));
        }
        let (state, shared) = self.writer.call_weighing(0, create, register).await?;
        Ok(Subscription(shared.subscription(key.0, &key.1).unwrap_or(state)))
    }

    /// A publisher to `topic`.
    #[must_use]
    pub fn publisher(&self, topic: &Topic) -> BusPublisher {
        BusPublisher::new(Arc::clone(&topic.0), self.writer.clone(), self.options.max_topic_bytes)
    }

    /// A consumer of `subscription`.
    #[must_use]
    pub fn consumer(&self, subscription: &Subscription, options: ConsumerOptions) -> BusConsumer {
        BusConsumer::new(
            Arc::clone(&subscription.0),
            Arc::clone(&self.shared),
            self.writer.clone(),
            options,
            self.closed.clone(),
        )
    }

    /// How far everything is, as of the last commit. Reads one row per topic and subscription.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn backlog(&self) -> Result<Backlog, Error> {
        let (shared, now) = (Arc::clone(&self.shared), self.clock.now());
        self.writer.call(move |connection| read_backlog(connection, &shared, now)).await
    }

    /// Ends all consumers, stores what verdicts there are and closes the file. Close the consumers first: what they
    /// have handed out and was not settled comes again at the next start.
    ///
    /// # Errors
    /// When verdicts could not be stored, or the file not be tidied up.
    pub async fn close(&self) -> Result<(), Error> {
        self.closed.cancel();
        let ended = self.writer.call(|c| c.execute("UPDATE starts SET running = 0, unclean = 0", [])).await;
        self.writer.close().await?;
        match ended {
            // Somebody else has closed it.
            Err(Error::Closed { .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

fn load_topics(connection: &Connection) -> Result<Vec<Arc<TopicState>>, Error> {
    let mut statement = connection.prepare("SELECT id, name, last_seq, trimmed FROM topics")?;
    let mut rows = statement.query([])?;
    let mut topics = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, name): (i64, String) = (row.get(0)?, row.get(1)?);
        let floor = housekeeping::read_floor(connection, id)?;
        topics.push(Arc::new(TopicState::new(
            id,
            &name,
            unsigned(row.get(2)?),
            unsigned(row.get(3)?),
            floor,
        )?));
    }
    Ok(topics)
}

/// Notes that a process works with the bus; how many unclean ends came before it without a clean one between.
fn note_start(connection: &Connection) -> rusqlite::Result<u32> {
    let sql = "UPDATE starts SET unclean = CASE running WHEN 1 THEN unclean + 1 ELSE 0 END, running = 1 \
               RETURNING unclean";
    connection.query_row(sql, [], |row| row.get(0))
}

fn load_subscription(
    connection: &Connection,
    topic: &Arc<TopicState>,
    name: &str,
    options: SubscriptionOptions,
    (unclean, now): (u32, Timestamp),
) -> Result<SubscriptionState, Error> {
    connection.execute(
        "INSERT INTO subscriptions (topic, name, cursor) SELECT id, ?2, trimmed FROM topics WHERE id = ?1 \
         ON CONFLICT DO NOTHING",
        params![topic.id, name],
    )?;
    let (id, cursor, delivered, stored): (i64, i64, i64, Option<String>) = connection.query_row(
        "SELECT id, cursor, delivered, probation FROM subscriptions WHERE topic = ?1 AND name = ?2",
        params![topic.id, name],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)),
    )?;
    let stored = stored.and_then(|text| serde_json::from_str(&text).ok());
    let delivered = unsigned(delivered);
    let start = Start { unclean, at: now.as_micros() };
    let (probation, killer) = Probation::start(stored, start, unsigned(cursor), delivered.min(topic.head()));
    // The end of the process before is charged once, also when this one ends before it hands anything out.
    connection.execute(
        "UPDATE subscriptions SET probation = ?2 WHERE id = ?1",
        params![id, probation.as_ref().map(Probation::to_text)],
    )?;
    if probation.is_some() {
        tracing::warn!(
            subscription = name,
            unclean_starts = unclean,
            "the process has died repeatedly: messages that were being worked on are delivered in small groups"
        );
    }
    let load = || -> Result<SubscriptionState, Error> {
        let settled = read_settled(connection, id, cursor)?;
        let leases = Leases::new(options.limits(), unsigned(cursor), settled, read_attempts(connection, id)?);
        let topic = Arc::clone(topic);
        Ok(SubscriptionState::new(id, name, topic, leases, probation.clone(), delivered))
    };
    let Some(killer) = killer else { return load() };
    dead_letters::count_kill(connection, &load()?, killer, options.max_attempts, now)?;
    load()
}

fn read_settled(connection: &Connection, subscription: i64, cursor: i64) -> rusqlite::Result<Runs> {
    let sql = "SELECT first, last FROM settled WHERE subscription = ?1 AND last > ?2";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([subscription, cursor])?;
    let mut runs = Runs::default();
    while let Some(row) = rows.next()? {
        runs.insert(unsigned(row.get(0)?).max(unsigned(cursor) + 1), unsigned(row.get(1)?));
    }
    Ok(runs)
}

fn read_attempts(connection: &Connection, subscription: i64) -> rusqlite::Result<HashMap<u64, u32>> {
    let mut statement = connection.prepare("SELECT seq, attempts FROM attempts WHERE subscription = ?1")?;
    let rows = statement.query_map([subscription], |row| Ok((unsigned(row.get(0)?), row.get(1)?)))?;
    rows.collect()
}

fn read_backlog(connection: &Connection, shared: &Shared, now: Timestamp) -> Result<Backlog, Error> {
    let mut backlog = Backlog::default();
    for topic in shared.topics.read().iter() {
        let sql = "SELECT published, digest, duplicates, bytes FROM topics WHERE id = ?1";
        backlog.topics.push(connection.prepare_cached(sql)?.query_row([topic.id], |row| {
            Ok(TopicFigures {
                name: topic.name.clone(),
                published: Digest {
                    count: unsigned(row.get(0)?),
                    sum: row.get::<_, i64>(1)?.cast_unsigned(),
                },
                duplicates: unsigned(row.get(2)?),
                bytes: unsigned(row.get(3)?),
            })
        })?);
    }
    for subscription in shared.subscriptions.read().iter() {
        let leases = subscription.leases.lock();
        let (unsettled, outstanding) = (leases.unsettled(subscription.topic.head()), leases.outstanding());
        let oldest = leases.cursor() + 1;
        drop(leases);
        let sql = &subscription.topic.sql.read_one;
        let received: Option<i64> =
            connection.prepare_cached(sql)?.query_row([signed(oldest)], |row| row.get(2)).optional()?;
        let oldest = received.map(|micros| now.since(Timestamp::from_micros(micros)));
        backlog.subscriptions.push(SubscriptionFigures {
            name: subscription.name.clone(),
            topic: subscription.topic.name.clone(),
            unsettled,
            outstanding,
            oldest,
        });
    }
    Ok(backlog)
}

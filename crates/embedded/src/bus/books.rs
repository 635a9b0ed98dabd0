//! What the bus's file says about every message, read beside a running process or after it.
//!
//! Everything streams in pages, so that millions of ids need no memory.

use super::dead_letters::{LETTER_COLUMNS, StoredLetter, read_letter};
use super::letter_queue::{LetterFilter, LetterKey, WHERE};
use super::rows::{id_of, signed, unsigned};
use super::runs::Runs;
use super::schema::{SCHEMA, TopicSql};
use super::{TopicFigures, parked, read_settled};
use crate::Error;
use crate::sqlite::open_reader;
use messagepipeline::{Digest, ErrorClass, MessageId};
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};
use std::path::{Path, PathBuf};

/// Ids read at once.
const PAGE: usize = 4_096;

/// Reads a bus's file. It holds no lock between calls and never writes.
#[derive(Debug)]
pub struct BusReader {
    connection: Connection,
    path: PathBuf,
}

/// How far a subscription is, from the stored data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionBooks {
    /// The subscription.
    pub name: String,
    /// Its topic.
    pub topic: String,
    /// Messages of the topic's log that it has not settled.
    pub unsettled: u64,
}

/// A count of dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterCount {
    /// The stage that gave up.
    pub stage: String,
    /// Why.
    pub reason: String,
    /// `dead`, `retried` or `dropped`.
    pub state: String,
    /// How many.
    pub count: u64,
}

/// One fact that the file knows about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// The topic has had it.
    Published {
        /// The topic.
        topic: String,
    },
    /// The subscription owes it an outcome.
    Unsettled {
        /// The topic.
        topic: String,
        /// The subscription.
        subscription: String,
    },
    /// The subscription has settled it.
    Settled {
        /// The topic.
        topic: String,
        /// The subscription.
        subscription: String,
    },
    /// A rule ended it.
    Skipped {
        /// At this stage.
        stage: String,
        /// The rule's word.
        rule: String,
    },
    /// It was given up.
    DeadLettered {
        /// By this stage.
        stage: String,
        /// For this reason.
        reason: String,
        /// `dead`, `retried` or `dropped`.
        state: String,
    },
    /// It waits for its device.
    Parked,
}

/// Where a subscription stands.
struct Position {
    topic: String,
    cursor: u64,
    settled: Runs,
}

impl BusReader {
    /// Opens the bus's file for reading.
    ///
    /// # Errors
    /// When it is missing or not a bus of this version.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref().to_owned();
        Ok(Self { connection: open_reader(&path, &SCHEMA)?, path })
    }

    /// Every topic with what was published to it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn topics(&self) -> Result<Vec<TopicFigures>, Error> {
        let sql = "SELECT name, published, digest, duplicates, bytes FROM topics ORDER BY id";
        self.list(sql, [], |row| {
            Ok(TopicFigures {
                name: row.get(0)?,
                published: Digest {
                    count: unsigned(row.get(1)?),
                    sum: row.get::<_, i64>(2)?.cast_unsigned(),
                },
                duplicates: unsigned(row.get(3)?),
                bytes: unsigned(row.get(4)?),
            })
        })
    }

    /// Every subscription with what it owes.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn subscriptions(&self) -> Result<Vec<SubscriptionBooks>, Error> {
        let sql = "SELECT s.name, t.name, t.last_seq - s.cursor - (SELECT coalesce(sum(last - first + 1), 0) \
                       FROM settled WHERE subscription = s.id AND first > s.cursor) \
                   FROM subscriptions s JOIN topics t ON t.id = s.topic ORDER BY s.id";
        self.list(sql, [], |row| {
            Ok(SubscriptionBooks { name: row.get(0)?, topic: row.get(1)?, unsettled: unsigned(row.get(2)?) })
        })
    }

    /// All ids that ever entered `topic`, in rising order.
    ///
    /// # Errors
    /// When there is no such topic. Later errors of reading are items of the iterator and end it.
    pub fn ids_of(&self, topic: &str) -> Result<impl Iterator<Item = Result<MessageId, Error>> + '_, Error> {
        Ok(self.ledger(topic)?.map(|entry| entry.map(|(id, _)| id)))
    }

    /// Ids of `topic` that `subscription` has settled, in rising order.
    ///
    /// # Errors
    /// As [`BusReader::ids_of`].
    pub fn settled_ids(
        &self,
        topic: &str,
        subscription: &str,
    ) -> Result<impl Iterator<Item = Result<MessageId, Error>> + '_, Error> {
        self.ids_where(topic, subscription, true)
    }

    /// Ids of `topic` that `subscription` has not settled, in rising order.
    ///
    /// # Errors
    /// As [`BusReader::ids_of`].
    pub fn unsettled_ids(
        &self,
        topic: &str,
        subscription: &str,
    ) -> Result<impl Iterator<Item = Result<MessageId, Error>> + '_, Error> {
        self.ids_where(topic, subscription, false)
    }

    /// Ids with a dead letter in `state` at `stage`, in rising order. An id-conflict letter has an id of its own.
    ///
    /// # Errors
    /// Errors of reading are items of the iterator and end it.
    pub fn dead_letter_ids(
        &self,
        stage: &str,
        state: &str,
    ) -> impl Iterator<Item = Result<MessageId, Error>> + '_ {
        let (stage, state) = (stage.to_owned(), state.to_owned());
        Pages::new(move |after: Option<&MessageId>| {
            let sql = "SELECT id FROM dead_letters WHERE stage = ?1 AND state = ?2 AND id > ?3 ORDER BY id LIMIT ?4";
            let after = after.map(ToString::to_string).unwrap_or_default();
            let limit = signed(PAGE as u64);
            self.list(sql, params![stage, state, after, limit], |row| {
                let text: String = row.get(0)?;
                text.parse().map_err(|_| rusqlite::Error::InvalidQuery)
            })
        })
    }

    /// Ids that a rule ended at `stage`, in rising order.
    ///
    /// # Errors
    /// Errors of reading are items of the iterator and end it.
    pub fn skipped_ids(&self, stage: &str) -> impl Iterator<Item = Result<MessageId, Error>> + '_ {
        let stage = stage.to_owned();
        Pages::new(move |after: Option<&MessageId>| {
            let sql = "SELECT id FROM skips WHERE stage = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
            let after = id_bytes(after);
            self.list(sql, params![stage, after, signed(PAGE as u64)], |row| id_of(row.get_ref(0)?))
        })
    }

    /// Ids of parked messages, in rising order.
    ///
    /// # Errors
    /// Errors of reading are items of the iterator and end it.
    pub fn parked_ids(&self) -> impl Iterator<Item = Result<MessageId, Error>> + '_ {
        Pages::new(move |after: Option<&MessageId>| {
            parked::ids_after(&self.connection, &id_bytes(after), PAGE).map_err(|error| self.located(error))
        })
    }

    /// Skips by stage and rule.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn skip_counts(&self) -> Result<Vec<(String, String, u64)>, Error> {
        let sql = "SELECT stage, rule, count(*) FROM skips GROUP BY stage, rule ORDER BY stage, rule";
        self.list(sql, [], |row| Ok((row.get(0)?, row.get(1)?, unsigned(row.get(2)?))))
    }

    /// Dead letters by stage, reason and state.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn dead_letter_counts(&self) -> Result<Vec<LetterCount>, Error> {
        let sql = "SELECT stage, reason, state, count(*) FROM dead_letters GROUP BY 1, 2, 3 ORDER BY 1, 2, 3";
        self.list(sql, [], |row| {
            let count = unsigned(row.get(3)?);
            Ok(LetterCount { stage: row.get(0)?, reason: row.get(1)?, state: row.get(2)?, count })
        })
    }

    /// Dead letters in the order of stage and id, those after `after`, at most `limit`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn dead_letters(
        &self,
        filter: &LetterFilter,
        after: Option<&LetterKey>,
        limit: usize,
    ) -> Result<Vec<StoredLetter>, Error> {
        let limit = signed(limit as u64);
        let sql = format!(
            "SELECT {LETTER_COLUMNS} FROM dead_letters WHERE {WHERE} ORDER BY stage, id LIMIT {limit}"
        );
        self.list(&sql, params_from_iter(filter.values(after)), read_letter)
    }

    /// How many dead letters `filter` names.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn count_dead_letters(&self, filter: &LetterFilter) -> Result<u64, Error> {
        let sql = format!("SELECT count(*) FROM dead_letters WHERE {WHERE}");
        let counts = self.list(&sql, params_from_iter(filter.values(None)), |row| row.get(0))?;
        Ok(counts.first().copied().map_or(0, unsigned))
    }

    /// The dead letters of one message id; more than one when several stages gave it up.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn dead_letter(&self, id: MessageId) -> Result<Vec<StoredLetter>, Error> {
        let sql = format!("SELECT {LETTER_COLUMNS} FROM dead_letters WHERE id = ?1 ORDER BY stage");
        self.list(&sql, [id.to_string()], read_letter)
    }

    /// All that the file knows about a message.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn sightings(&self, id: MessageId) -> Result<Vec<Sighting>, Error> {
        let bytes = id.as_bytes().as_slice();
        let mut sightings = Vec::new();
        for topic in self.topics()? {
            let sql = TopicSql::new(&topic.name)?.find_id;
            let seq = self.list(&sql, [bytes], |row| row.get(0))?.first().copied().map(unsigned);
            if let Some(seq) = seq {
                sightings.push(Sighting::Published { topic: topic.name.clone() });
                self.add_subscriptions(&topic.name, seq, &mut sightings)?;
            }
        }
        let sql = "SELECT stage, rule FROM skips WHERE id = ?1 ORDER BY stage";
        sightings.extend(
            self.list(sql, [bytes], |row| Ok(Sighting::Skipped { stage: row.get(0)?, rule: row.get(1)? }))?,
        );
        let sql = "SELECT stage, reason, state FROM dead_letters WHERE id = ?1 ORDER BY stage";
        sightings.extend(self.list(sql, [id.to_string()], |row| {
            Ok(Sighting::DeadLettered { stage: row.get(0)?, reason: row.get(1)?, state: row.get(2)? })
        })?);
        sightings.extend(self.list("SELECT 1 FROM parked WHERE id = ?1", [bytes], |_| Ok(Sighting::Parked))?);
        Ok(sightings)
    }

    fn add_subscriptions(&self, topic: &str, seq: u64, sightings: &mut Vec<Sighting>) -> Result<(), Error> {
        for books in self.subscriptions()?.into_iter().filter(|books| books.topic == topic) {
            let position = self.position(topic, &books.name)?;
            let (topic, subscription) = (position.topic.clone(), books.name);
            sightings.push(if position.has_settled(seq) {
                Sighting::Settled { topic, subscription }
            } else {
                Sighting::Unsettled { topic, subscription }
            });
        }
        Ok(())
    }

    fn ids_where(
        &self,
        topic: &str,
        subscription: &str,
        settled: bool,
    ) -> Result<impl Iterator<Item = Result<MessageId, Error>> + '_, Error> {
        let position = self.position(topic, subscription)?;
        Ok(self.ledger(topic)?.filter_map(move |entry| match entry {
            Ok((id, seq)) => (position.has_settled(seq) == settled).then_some(Ok(id)),
            Err(error) => Some(Err(error)),
        }))
    }

    /// Ids and sequence numbers of a topic, in the order of ids.
    fn ledger(&self, topic: &str) -> Result<Pages<'_, (MessageId, u64)>, Error> {
        let known = self.topics()?.iter().any(|figures| figures.name == topic);
        if !known {
            return Err(missing(&format!("the bus has no topic {topic:?}")));
        }
        let sql = format!("SELECT id, seq FROM \"ids_{topic}\" WHERE id > ?1 ORDER BY id LIMIT ?2");
        Ok(Pages::new(move |after: Option<&(MessageId, u64)>| {
            let after = id_bytes(after.map(|(id, _)| id));
            self.list(&sql, params![after, signed(PAGE as u64)], |row| {
                Ok((id_of(row.get_ref(0)?)?, unsigned(row.get(1)?)))
            })
        }))
    }

    fn position(&self, topic: &str, subscription: &str) -> Result<Position, Error> {
        let sql = "SELECT s.id, s.cursor FROM subscriptions s JOIN topics t ON t.id = s.topic \
                   WHERE t.name = ?1 AND s.name = ?2";
        let found = self
            .connection
            .query_row(sql, params![topic, subscription], |row| Ok((row.get(0)?, row.get(1)?)));
        let found = found.optional().map_err(|error| self.located(error))?;
        let (id, cursor): (i64, i64) =
            found.ok_or_else(|| missing(&format!("topic {topic:?} has no subscription {subscription:?}")))?;
        let settled = read_settled(&self.connection, id, cursor).map_err(|error| self.located(error))?;
        Ok(Position { topic: topic.to_owned(), cursor: unsigned(cursor), settled })
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn list<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        let mut statement = self.connection.prepare_cached(sql).map_err(|error| self.located(error))?;
        let rows = statement.query_map(params, read).map_err(|error| self.located(error))?;
        rows.collect::<rusqlite::Result<_>>().map_err(|error| self.located(error))
    }

    pub(super) fn located(&self, error: rusqlite::Error) -> Error {
        Error::from(error).at(&self.path)
    }
}

impl Position {
    fn has_settled(&self, seq: u64) -> bool {
        seq <= self.cursor || self.settled.contains(seq)
    }
}

/// Blobs compare bytewise; the empty one is before every id.
fn id_bytes(id: Option<&MessageId>) -> Vec<u8> {
    id.map(|id| id.as_bytes().to_vec()).unwrap_or_default()
}

fn missing(detail: &str) -> Error {
    Error::refused(ErrorClass::Configuration, "not-found", detail)
}

/// Reads the page after an item.
type Fetch<'a, T> = Box<dyn FnMut(Option<&T>) -> Result<Vec<T>, Error> + 'a>;

/// A long list read page by page; each page begins after the last item of the one before.
struct Pages<'a, T> {
    fetch: Fetch<'a, T>,
    page: std::vec::IntoIter<T>,
    last: Option<T>,
    ended: bool,
}

impl<'a, T: Clone> Pages<'a, T> {
    fn new(fetch: impl FnMut(Option<&T>) -> Result<Vec<T>, Error> + 'a) -> Self {
        Self { fetch: Box::new(fetch), page: Vec::new().into_iter(), last: None, ended: false }
    }
}

impl<T: Clone> Iterator for Pages<'_, T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(item) = self.page.next() {
            return Some(Ok(item));
        }
        if self.ended {
            return None;
        }
        match (self.fetch)(self.last.as_ref()) {
            Ok(page) => {
                self.ended = page.len() < PAGE;
                self.last = page.last().cloned();
                self.page = page.into_iter();
                self.page.next().map(Ok)
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

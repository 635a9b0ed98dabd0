//! Forgetting ids: messages that are finished everywhere leave the ledger one by one and stay in it as a sum.
//!
//! The ledger gives every id a sequence number, and from time to time the highest number below which everything is
//! settled is noted with the time (`floors`). So an id's age since it was settled is known without a stamp per id, and
//! a fold never takes one that could still be delivered again.
//!
//! ```text
//!  1  candidates   read beside the writer: settled long enough by every subscription, no letter, not parked, and
//!                  not to be sent again at QoS 2
//!  2  (caller)     looks into the sinks and keeps those that are finished there
//!  3  fold         ONE transaction: what is still so by then, out of ledgers and skips, into the sums, and into
//!                  `folding`
//!  4  (caller)     has the archive's index forget what was folded, and nothing else
//!  5  fold_done    `folding` is emptied
//! ```
//!
//! A process that dies between 3 and 5 finds the ids of the last fold in `folding` and begins at 4.

use super::books::BusReader;
use super::housekeeping::read_floor;
use super::rows::{id_of, signed, unsigned};
use super::state::Shared;
use super::{Bus, schema::TopicSql};
use crate::Error;
use crate::sqlite::{self, Snapshot, Writer};
use messagepipeline::{Digest, MessageId, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The writing side of the ledger's retention.
#[derive(Clone, Debug)]
pub struct IdLedger {
    writer: Writer,
    shared: Arc<Shared>,
}

/// An id that is to be folded, with the sinks that hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The message, as it was judged.
    pub candidate: Candidate,
    /// Sinks that hold it; each keeps a sum of its own.
    pub stored: Vec<&'static str>,
}

/// An id whose age allows folding it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The message.
    pub id: MessageId,
    /// Topics whose ledger has it.
    pub topics: Vec<String>,
    /// Stages at which a rule ended it.
    pub skipped_at: Vec<String>,
}

/// A page of the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CandidatePage {
    /// Those that may be folded if the sinks agree.
    pub candidates: Vec<Candidate>,
    /// The last id that was looked at; `None` when there was none.
    pub last: Option<MessageId>,
}

/// What has been folded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Everything folded was settled before; `None` when nothing has been.
    pub horizon: Option<Timestamp>,
    sums: BTreeMap<String, Digest>,
}

impl Folded {
    /// Folded ids of `topic`.
    #[must_use]
    pub fn topic(&self, topic: &str) -> Digest {
        self.sum(&format!("topic:{topic}"))
    }

    /// Folded ids that `sink` held.
    #[must_use]
    pub fn stored(&self, sink: &str) -> Digest {
        self.sum(&format!("stored:{sink}"))
    }

    /// Folded ids that a rule ended at `stage`.
    #[must_use]
    pub fn skipped(&self, stage: &str) -> Digest {
        self.sum(&format!("skipped:{stage}"))
    }

    fn sum(&self, place: &str) -> Digest {
        self.sums.get(place).copied().unwrap_or_default()
    }
}

impl Bus {
    /// The ledger's retention.
    #[must_use]
    pub fn id_ledger(&self) -> IdLedger {
        IdLedger { writer: self.writer.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl IdLedger {
    /// Notes how far every topic is settled at `now`, unless that was noted less than `spacing` ago, and drops notes
    /// that are older than the newest one of before `horizon`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn note_floors(
        &self,
        now: Timestamp,
        horizon: Timestamp,
        spacing: Duration,
    ) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let recent = now.as_micros().saturating_sub(i64::try_from(spacing.as_micros()).unwrap_or(i64::MAX));
        self.writer
            .call(move |connection| {
                for topic in shared.topics.read().iter() {
                    let floor = read_floor(connection, topic.id)?;
                    connection.execute(
                        "INSERT INTO floors SELECT ?1, ?2, ?3 WHERE NOT EXISTS \
                             (SELECT 1 FROM floors WHERE topic = ?1 AND at > ?4)",
                        params![topic.id, now.as_micros(), signed(floor), recent],
                    )?;
                    connection.execute(
                        "DELETE FROM floors WHERE topic = ?1 AND at < \
                             (SELECT max(at) FROM floors WHERE topic = ?1 AND at <= ?2)",
                        params![topic.id, horizon.as_micros()],
                    )?;
                }
                Ok::<_, Error>(())
            })
            .await
    }

    /// The wall clock was set from `from` to `to`: notes move along, so that nothing gets older or younger by it. Those
    /// of a time that a clock set forward had not reached yet were made by another clock, and stay.
    ///
    /// # Errors
    /// When the file cannot be written; nothing has changed then.
    pub async fn clock_was_set(&self, from: Timestamp, to: Timestamp) -> Result<(), Error> {
        let job = move |connection: &Connection| sqlite::move_notes(connection, "floors", from, to);
        self.writer.call(job).await
    }

    /// Moves those of `finished` that are still as they were judged from ledgers and skips into the sums, and answers
    /// which: only these may be forgotten elsewhere. They stay in [`IdLedger::folding`] until [`IdLedger::fold_done`].
    ///
    /// # Errors
    /// When the file cannot be written; nothing has changed then.
    pub async fn fold(&self, finished: Vec<Finished>, horizon: Timestamp) -> Result<Vec<MessageId>, Error> {
        self.writer.call(move |connection| fold(connection, &finished, horizon)).await
    }

    /// Ids of the last fold that not every store has heard of.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub async fn folding(&self) -> Result<Vec<MessageId>, Error> {
        let read = |connection: &Connection| {
            let sql = "SELECT ids FROM folding";
            let bytes: Option<Vec<u8>> = connection.query_row(sql, [], |row| row.get(0)).optional()?;
            let (ids, _) = bytes.as_deref().unwrap_or_default().as_chunks::<16>();
            Ok::<_, Error>(ids.iter().map(|id| MessageId::from_bytes(*id)).collect())
        };
        self.writer.call(read).await
    }

    /// Every store has heard of the last fold.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn fold_done(&self) -> Result<(), Error> {
        let done = |connection: &Connection| connection.execute("UPDATE folding SET ids = x''", []);
        self.writer.call(done).await.map(drop)
    }
}

fn fold(connection: &Connection, finished: &[Finished], horizon: Timestamp) -> Result<Vec<MessageId>, Error> {
    let mut sums: BTreeMap<String, Digest> = BTreeMap::new();
    let mut folded = Vec::with_capacity(finished.len());
    let judge = Judge::new(connection, horizon)?;
    for Finished { candidate, stored } in finished {
        if judge.candidate(candidate.id)?.as_ref() != Some(candidate) {
            continue;
        }
        judge.forget(candidate)?;
        let places = candidate.topics.iter().map(|topic| format!("topic:{topic}"));
        let places = places.chain(candidate.skipped_at.iter().map(|stage| format!("skipped:{stage}")));
        for place in places.chain(stored.iter().map(|sink| format!("stored:{sink}"))) {
            sums.entry(place).or_default().insert(&candidate.id);
        }
        folded.push(candidate.id);
    }
    add_sums(connection, &sums)?;
    let ids: Vec<u8> = folded.iter().flat_map(|id| *id.as_bytes()).collect();
    connection.execute(
        "INSERT INTO folding VALUES (1, ?1, ?2) ON CONFLICT DO UPDATE SET \
             horizon = max(horizon, excluded.horizon), ids = excluded.ids",
        params![horizon.as_micros(), ids],
    )?;
    Ok(folded)
}

/// Says which ids may be folded. The same judgement chooses the candidates and is made again in the transaction that
/// folds them.
struct Judge<'c> {
    connection: &'c Connection,
    topics: Vec<AgedTopic>,
    stages: Vec<String>,
}

struct AgedTopic {
    name: String,
    sql: TopicSql,
    /// Up to this number everything was settled before the horizon.
    floor: u64,
}

impl<'c> Judge<'c> {
    fn new(connection: &'c Connection, horizon: Timestamp) -> Result<Self, Error> {
        let sql = "SELECT name, coalesce((SELECT floor FROM floors WHERE topic = t.id AND at <= ?1 \
                       ORDER BY at DESC LIMIT 1), 0) FROM topics t ORDER BY id";
        let mut select = connection.prepare_cached(sql)?;
        let mut rows = select.query([horizon.as_micros()])?;
        let mut topics = Vec::new();
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            topics.push(AgedTopic { sql: TopicSql::new(&name)?, name, floor: unsigned(row.get(1)?) });
        }
        Ok(Self { connection, topics, stages: skip_stages(connection)? })
    }

    fn candidate(&self, id: MessageId) -> rusqlite::Result<Option<Candidate>> {
        let bytes = id.as_bytes().as_slice();
        let mut candidate = Candidate { id, topics: Vec::new(), skipped_at: Vec::new() };
        for topic in &self.topics {
            let mut find = self.connection.prepare_cached(&topic.sql.find_id)?;
            match find.query_row([bytes], |row| row.get(0).map(unsigned)).optional()? {
                Some(seq) if seq > topic.floor => return Ok(None),
                Some(_) => candidate.topics.push(topic.name.clone()),
                None => {}
            }
        }
        let held = "SELECT 1 WHERE EXISTS (SELECT 1 FROM parked WHERE id = ?1) \
                    OR EXISTS (SELECT 1 FROM mqtt_held WHERE message_id = ?1) \
                    OR EXISTS (SELECT 1 FROM dead_letters WHERE id = ?2 AND state <> 'retried')";
        let mut buffer = [0; 36];
        if self.connection.prepare_cached(held)?.exists(params![bytes, id.encode(&mut buffer)])? {
            return Ok(None);
        }
        let mut skipped =
            self.connection.prepare_cached("SELECT 1 FROM skips WHERE stage = ?1 AND id = ?2")?;
        for stage in &self.stages {
            if skipped.exists(params![stage, bytes])? {
                candidate.skipped_at.push(stage.clone());
            }
        }
        let known = !candidate.topics.is_empty() || !candidate.skipped_at.is_empty();
        Ok(known.then_some(candidate))
    }

    fn forget(&self, candidate: &Candidate) -> rusqlite::Result<()> {
        let id = candidate.id.as_bytes().as_slice();
        for topic in self.topics.iter().filter(|topic| candidate.topics.contains(&topic.name)) {
            self.connection.prepare_cached(&topic.sql.forget)?.execute([id])?;
        }
        let mut unskip = self.connection.prepare_cached("DELETE FROM skips WHERE stage = ?1 AND id = ?2")?;
        candidate.skipped_at.iter().try_for_each(|stage| unskip.execute(params![stage, id]).map(drop))
    }
}

fn add_sums(connection: &Connection, sums: &BTreeMap<String, Digest>) -> rusqlite::Result<()> {
    let mut read = connection.prepare_cached("SELECT count, digest FROM folded WHERE place = ?1")?;
    let mut write = connection.prepare_cached("INSERT OR REPLACE INTO folded VALUES (?1, ?2, ?3)")?;
    for (place, more) in sums {
        let before = read.query_row([place], |row| Ok(digest(row.get(0)?, row.get(1)?))).optional()?;
        let sum = before.unwrap_or_default() + *more;
        write.execute(params![place, signed(sum.count), sum.sum.cast_signed()])?;
    }
    Ok(())
}

fn digest(count: i64, sum: i64) -> Digest {
    Digest { count: unsigned(count), sum: sum.cast_unsigned() }
}

/// The stages with skips, by stepping from one to the next: the table may be large, the stages are few.
fn skip_stages(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = "SELECT stage FROM skips WHERE stage > ?1 ORDER BY stage LIMIT 1";
    let mut next = connection.prepare_cached(sql)?;
    let mut stages: Vec<String> = Vec::new();
    loop {
        let after = stages.last().map_or("", String::as_str);
        match next.query_row([after], |row| row.get(0)).optional()? {
            Some(stage) => stages.push(stage),
            None => return Ok(stages),
        }
    }
}

impl BusReader {
    /// What this reader sees stays as it is now while the answer is held.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn hold(&self) -> Result<Snapshot<'_>, Error> {
        sqlite::snapshot(self.connection()).map_err(|error| self.located(error))
    }

    /// What has been folded.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn folded(&self) -> Result<Folded, Error> {
        let horizon = self.list("SELECT horizon FROM folding", [], |row| row.get(0))?;
        let sums = self.list("SELECT place, count, digest FROM folded", [], |row| {
            Ok((row.get(0)?, digest(row.get(1)?, row.get(2)?)))
        })?;
        let horizon = horizon.first().map(|micros| Timestamp::from_micros(*micros));
        Ok(Folded { horizon, sums: sums.into_iter().collect() })
    }

    /// The next `limit` ids of `topic` behind `after` and up to `to`, those of them that every subscription of every
    /// topic settled before `horizon`, that no dead letter holds, that are not parked and that no device may still send
    /// again at QoS 2. All is read in one [`BusReader::hold`].
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn candidates(
        &self,
        topic: &str,
        (after, to): (Option<MessageId>, MessageId),
        horizon: Timestamp,
        limit: usize,
    ) -> Result<CandidatePage, Error> {
        let _held = self.hold()?;
        TopicSql::new(topic)?;
        let sql = format!("SELECT id FROM \"ids_{topic}\" WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3");
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let bounds = params![after, to.as_bytes().as_slice(), signed(limit as u64)];
        let ids = self.list(&sql, bounds, |row| id_of(row.get_ref(0)?))?;
        self.page(&ids, horizon)
    }

    /// As [`BusReader::candidates`] for ids that a rule ended at `stage` before they reached a topic. Their age is
    /// what the id says, so `to` is the bound.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn skipped_candidates(
        &self,
        stage: &str,
        (after, to): (Option<MessageId>, MessageId),
        horizon: Timestamp,
        limit: usize,
    ) -> Result<CandidatePage, Error> {
        let _held = self.hold()?;
        let sql = "SELECT id FROM skips WHERE stage = ?1 AND id > ?2 AND id <= ?3 ORDER BY id LIMIT ?4";
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let bounds = params![stage, after, to.as_bytes().as_slice(), signed(limit as u64)];
        let ids = self.list(sql, bounds, |row| id_of(row.get_ref(0)?))?;
        self.page(&ids, horizon)
    }

    /// Which of `ids` some topic's ledger has.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn in_ledger(&self, ids: &[MessageId]) -> Result<Vec<bool>, Error> {
        let topics = self.topics()?;
        let mut known = vec![false; ids.len()];
        for topic in topics {
            let sql = TopicSql::new(&topic.name)?.find_id;
            for (known, id) in known.iter_mut().zip(ids).filter(|(known, _)| !**known) {
                *known = !self.list(&sql, [id.as_bytes().as_slice()], |_| Ok(()))?.is_empty();
            }
        }
        Ok(known)
    }

    fn page(&self, ids: &[MessageId], horizon: Timestamp) -> Result<CandidatePage, Error> {
        let judge = Judge::new(self.connection(), horizon)?;
        let mut page = CandidatePage { candidates: Vec::new(), last: ids.last().copied() };
        for id in ids {
            page.candidates.extend(judge.candidate(*id).map_err(|error| self.located(error))?);
        }
        Ok(page)
    }
}

//! Forgetting ids: messages that are finished everywhere leave the ledger one by one and stay in it as a sum.
//!
//! The ledger gives every id a sequence number, and from time to time the highest number below which everything is
//! settled is noted with the time (`floors`). So an id's age since it was settled is known without a stamp per id, and
//! a fold never takes one that could still be delivered again.
//!
//! ```text
//!  1  candidates   read beside the writer: settled long enough by every subscription, no letter, not parked
//!  2  (caller)     looks into the sinks and keeps those that are finished there
//!  3  fold         ONE transaction: ids out of ledgers and skips, into the sums, and into `folding`
//!  4  (caller)     has the archive's index forget them
//!  5  fold_done    `folding` is emptied
//! ```
//!
//! A process that dies between 3 and 5 finds the ids of the last fold in `folding` and begins at 4.

use super::books::BusReader;
use super::housekeeping::read_floor;
use super::rows::{id_of, signed, unsigned};
use super::sessions::held_ids;
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
    /// The message.
    pub id: MessageId,
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

    /// Moves `ids` from ledgers and skips into the sums, but for those that an MQTT device may still send again at
    /// QoS 2. Answers how many were there. They stay in
    /// [`IdLedger::folding`] until [`IdLedger::fold_done`].
    ///
    /// # Errors
    /// When the file cannot be written; nothing has changed then.
    pub async fn fold(&self, ids: Vec<Finished>, horizon: Timestamp) -> Result<u64, Error> {
        let shared = Arc::clone(&self.shared);
        self.writer.call(move |connection| fold(connection, &shared, &ids, horizon)).await
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

fn fold(
    connection: &Connection,
    shared: &Shared,
    ids: &[Finished],
    horizon: Timestamp,
) -> Result<u64, Error> {
    let mut sums: BTreeMap<String, Digest> = BTreeMap::new();
    let mut folded = Vec::with_capacity(ids.len() * 16);
    let topics = shared.topics.read().clone();
    let mut unskip = connection.prepare_cached("DELETE FROM skips WHERE stage = ?1 AND id = ?2")?;
    let stages = skip_stages(connection)?;
    let awaited = held_ids(connection)?;
    for finished in ids.iter().filter(|finished| !awaited.contains(&finished.id)) {
        let (id, digest) = (finished.id.as_bytes().as_slice(), Digest::of(&finished.id));
        let mut known = false;
        for topic in &topics {
            if connection.prepare_cached(&topic.sql.forget)?.execute([id])? > 0 {
                *sums.entry(format!("topic:{}", topic.name)).or_default() += digest;
                known = true;
            }
        }
        for stage in &stages {
            if unskip.execute(params![stage, id])? > 0 {
                *sums.entry(format!("skipped:{stage}")).or_default() += digest;
                known = true;
            }
        }
        if known {
            for sink in &finished.stored {
                *sums.entry(format!("stored:{sink}")).or_default() += digest;
            }
            folded.extend_from_slice(id);
        }
    }
    add_sums(connection, &sums)?;
    connection.execute(
        "INSERT INTO folding VALUES (1, ?1, ?2) ON CONFLICT DO UPDATE SET \
             horizon = max(horizon, excluded.horizon), ids = excluded.ids",
        params![horizon.as_micros(), folded],
    )?;
    Ok((folded.len() / 16) as u64)
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
    /// topic settled before `horizon`, that no dead letter holds and that are not parked.
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
        let topics = self.aged_topics(horizon)?;
        TopicSql::new(topic)?;
        let sql = format!("SELECT id FROM \"ids_{topic}\" WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3");
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let bounds = params![after, to.as_bytes().as_slice(), signed(limit as u64)];
        let ids = self.list(&sql, bounds, |row| id_of(row.get_ref(0)?))?;
        self.page(&ids, &topics)
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
        let topics = self.aged_topics(horizon)?;
        let sql = "SELECT id FROM skips WHERE stage = ?1 AND id > ?2 AND id <= ?3 ORDER BY id LIMIT ?4";
        let after = after.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
        let bounds = params![stage, after, to.as_bytes().as_slice(), signed(limit as u64)];
        let ids = self.list(sql, bounds, |row| id_of(row.get_ref(0)?))?;
        self.page(&ids, &topics)
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

    /// Every topic with the number up to which it was settled before `horizon`.
    fn aged_topics(&self, horizon: Timestamp) -> Result<Vec<(String, u64)>, Error> {
        let sql = "SELECT name, coalesce((SELECT floor FROM floors WHERE topic = t.id AND at <= ?1 \
                       ORDER BY at DESC LIMIT 1), 0) FROM topics t ORDER BY id";
        self.list(sql, [horizon.as_micros()], |row| Ok((row.get(0)?, unsigned(row.get(1)?))))
    }

    fn page(&self, ids: &[MessageId], topics: &[(String, u64)]) -> Result<CandidatePage, Error> {
        let mut page = CandidatePage { candidates: Vec::new(), last: ids.last().copied() };
        let stages = self.skip_stages()?;
        for id in ids {
            if let Some(candidate) = self.candidate(*id, topics, &stages)? {
                page.candidates.push(candidate);
            }
        }
        Ok(page)
    }

    fn skip_stages(&self) -> Result<Vec<String>, Error> {
        skip_stages(self.connection()).map_err(|error| self.located(error))
    }

    fn candidate(
        &self,
        id: MessageId,
        topics: &[(String, u64)],
        stages: &[String],
    ) -> Result<Option<Candidate>, Error> {
        let bytes = id.as_bytes().as_slice();
        let mut candidate = Candidate { id, topics: Vec::new(), skipped_at: Vec::new() };
        for (topic, floor) in topics {
            let sql = format!("SELECT seq FROM \"ids_{topic}\" WHERE id = ?1");
            match self.list(&sql, [bytes], |row| row.get(0).map(unsigned))?.first() {
                Some(seq) if seq > floor => return Ok(None),
                Some(_) => candidate.topics.push(topic.clone()),
                None => {}
            }
        }
        let held = "SELECT 1 WHERE EXISTS (SELECT 1 FROM parked WHERE id = ?1) \
                    OR EXISTS (SELECT 1 FROM dead_letters WHERE id = ?2 AND state <> 'retried')";
        if !self.list(held, params![bytes, id.to_string()], |_| Ok(()))?.is_empty() {
            return Ok(None);
        }
        for stage in stages {
            let sql = "SELECT 1 FROM skips WHERE stage = ?1 AND id = ?2";
            if !self.list(sql, params![stage, bytes], |_| Ok(()))?.is_empty() {
                candidate.skipped_at.push(stage.clone());
            }
        }
        Ok(Some(candidate))
    }
}

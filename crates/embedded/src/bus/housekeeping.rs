//! What rides in the writer's transactions: verdicts, trimming, giving free pages back.

use super::leases::Changes;
use super::rows::{signed, unsigned};
use super::state::{Shared, SubscriptionState, TopicState};
use crate::Error;
use crate::sqlite::Background;
use rusqlite::{Connection, params};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Messages trimmed from one topic in one transaction, so that none gets long.
const TRIM_STEP: u64 = 4_096;
/// Fewer are trimmed only when nothing else is unsettled, so that a step is worth its statements.
const TRIM_LEAST: u64 = 512;
/// Free pages (of 16 KiB) that are kept for the next backlog.
const SPARE_PAGES: i64 = 4_096;
/// Free pages given back in one transaction; each one means moving another.
const SHRINK_STEP: i64 = 128;

/// The bus's background work.
pub(super) struct Housekeeping {
    shared: Arc<Shared>,
    /// What the last write took, until its transaction ends.
    saving: Vec<(Arc<SubscriptionState>, Changes)>,
    /// Floors and ends of trimming that hold once the transaction is committed.
    moved: Vec<(Arc<TopicState>, u64, u64)>,
    /// More than the spare pages are free.
    shrinking: bool,
}

impl Housekeeping {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, saving: Vec::new(), moved: Vec::new(), shrinking: false }
    }

    fn save_verdicts(&mut self, connection: &Connection) -> Result<(), Error> {
        for subscription in self.shared.subscriptions.read().iter() {
            let changes = subscription.leases.lock().take_changes();
            if let Some(changes) = changes {
                // Remembered before the first statement, which may fail.
                self.saving.push((Arc::clone(subscription), changes));
            }
        }
        for (subscription, changes) in &self.saving {
            save(connection, subscription.id, changes)?;
        }
        Ok(())
    }

    fn trim_topics(&mut self, connection: &Connection) -> Result<(), Error> {
        let topics = self.shared.topics.read().clone();
        for topic in topics {
            let touched = self.saving.iter().any(|(subscription, _)| subscription.topic.id == topic.id);
            let mut floor = topic.floor.load(Ordering::Acquire);
            if touched {
                floor = read_floor(connection, topic.id)?;
            }
            let trimmed = topic.trimmed.load(Ordering::Acquire);
            let mut to = trimmed;
            if is_worth_trimming(&topic, floor) {
                to = floor.min(trimmed + TRIM_STEP);
                trim(connection, &topic, to)?;
                self.shrinking = free_pages(connection)? > SPARE_PAGES;
            }
            if touched || to > trimmed {
                self.moved.push((topic, floor, to));
            }
        }
        Ok(())
    }

    fn shrink(&mut self, connection: &Connection) -> Result<(), Error> {
        if !self.shrinking {
            return Ok(());
        }
        let mut statement =
            connection.prepare_cached(&format!("PRAGMA incremental_vacuum({SHRINK_STEP})"))?;
        let mut rows = statement.query([])?;
        while rows.next()?.is_some() {}
        self.shrinking = free_pages(connection)? > SPARE_PAGES;
        Ok(())
    }
}

impl Background for Housekeeping {
    fn is_pending(&self) -> bool {
        self.shrinking
            || self.shared.subscriptions.read().iter().any(|s| s.leases.lock().is_dirty())
            || self.shared.topics.read().iter().any(|t| is_worth_trimming(t, t.floor.load(Ordering::Acquire)))
    }

    fn write(&mut self, connection: &Connection) -> Result<(), Error> {
        self.save_verdicts(connection)?;
        self.trim_topics(connection)?;
        self.shrink(connection)
    }

    fn finished(&mut self, result: Result<(), Error>) {
        for (subscription, changes) in self.saving.drain(..) {
            let mut leases = subscription.leases.lock();
            match result {
                Ok(()) => leases.saved(changes.version),
                Err(_) => leases.restore(changes),
            }
        }
        for (topic, floor, trimmed) in self.moved.drain(..) {
            if result.is_ok() {
                topic.floor.fetch_max(floor, Ordering::AcqRel);
                topic.tail.forget(floor);
                topic.trimmed.fetch_max(trimmed, Ordering::AcqRel);
            }
        }
        let failure = result.err().map(|error| error.to_string());
        let mut last = self.shared.failure.lock();
        if let Some(text) = &failure
            && last.is_none()
        {
            tracing::error!(
                error = text,
                "verdicts cannot be stored; what is not stored comes again after a restart"
            );
        }
        *last = failure;
    }
}

fn is_worth_trimming(topic: &TopicState, floor: u64) -> bool {
    let settled = floor.saturating_sub(topic.trimmed.load(Ordering::Acquire));
    settled >= TRIM_LEAST || (settled > 0 && floor >= topic.head())
}

fn save(connection: &Connection, subscription: i64, changes: &Changes) -> rusqlite::Result<()> {
    let cursor = signed(changes.cursor);
    connection
        .prepare_cached("UPDATE subscriptions SET cursor = max(cursor, ?2) WHERE id = ?1")?
        .execute(params![subscription, cursor])?;
    connection
        .prepare_cached("DELETE FROM settled WHERE subscription = ?1 AND first <= ?2")?
        .execute(params![subscription, cursor])?;
    connection
        .prepare_cached("DELETE FROM attempts WHERE subscription = ?1 AND seq <= ?2")?
        .execute(params![subscription, cursor])?;
    for &(first, last) in &changes.runs {
        add_settled(connection, subscription, first, last)?;
    }
    let mut count = connection.prepare_cached(
        "INSERT INTO attempts VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET attempts = excluded.attempts",
    )?;
    for &(seq, attempt) in &changes.attempts {
        // The number of failures: one less than the delivery that comes next.
        count.execute(params![subscription, signed(seq), attempt.saturating_sub(1)])?;
    }
    Ok(())
}

/// Records `first` to `last` as settled above the cursor.
pub(super) fn add_settled(
    connection: &Connection,
    subscription: i64,
    first: u64,
    last: u64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO settled VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET last = max(last, excluded.last)",
        )?
        .execute(params![subscription, signed(first), signed(last)])?;
    Ok(())
}

/// What every subscription of a topic has settled, those that nobody has opened included. Nothing is, when there is
/// no subscription.
pub(super) fn read_floor(connection: &Connection, topic: i64) -> rusqlite::Result<u64> {
    let sql = "SELECT coalesce(min(cursor), 0) FROM subscriptions WHERE topic = ?1";
    connection.prepare_cached(sql)?.query_row([topic], |row| row.get(0)).map(unsigned)
}

fn trim(connection: &Connection, topic: &TopicState, to: u64) -> rusqlite::Result<()> {
    let to = signed(to);
    let bytes: i64 = connection.prepare_cached(&topic.sql.weigh)?.query_row([to], |row| row.get(0))?;
    connection.prepare_cached(&topic.sql.trim)?.execute([to])?;
    connection
        .prepare_cached("UPDATE topics SET trimmed = ?2, bytes = max(bytes - ?3, 0) WHERE id = ?1")?
        .execute(params![topic.id, to, bytes])?;
    Ok(())
}

fn free_pages(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA freelist_count")?.query_row([], |row| row.get(0))
}

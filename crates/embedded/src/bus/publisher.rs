//! Publishing: one job per call, idempotent by message id.

use super::rows::{copies, signed, unsigned};
use super::state::TopicState;
use crate::Error;
use crate::sqlite::Writer;
use futures_util::future::BoxFuture;
use messagepipeline::metric_names::{BUS_DUPLICATES, BUS_PUBLISHED};
use messagepipeline::{BatchOutcome, Digest, ErrorClass, ID_CONFLICT, Message, Publisher, StageError};
use rusqlite::{CachedStatement, Connection, params};
use std::cell::Cell;
use std::sync::Arc;

/// Publishes to one topic of the bus.
#[derive(Clone)]
pub struct BusPublisher {
    topic: Arc<TopicState>,
    writer: Writer,
    max_bytes: u64,
    published: metrics::Counter,
    duplicates: metrics::Counter,
}

impl BusPublisher {
    pub(super) fn new(topic: Arc<TopicState>, writer: Writer, max_bytes: u64) -> Self {
        let published = metrics::counter!(BUS_PUBLISHED, "topic" => topic.name.clone());
        let duplicates = metrics::counter!(BUS_DUPLICATES, "topic" => topic.name.clone());
        Self { topic, writer, max_bytes, published, duplicates }
    }

    async fn store(&self, messages: Vec<Message>) -> BatchOutcome {
        let count = messages.len();
        let bytes = messages.iter().map(Message::weight).sum();
        let (topic, max_bytes) = (Arc::clone(&self.topic), self.max_bytes);
        let this = self.clone();
        let stored = self.writer.call_weighing(
            bytes,
            move |connection| append(connection, &topic, &messages, max_bytes),
            move |appended: &Appended| {
                this.published.increment(appended.stored);
                this.duplicates.increment(appended.duplicates);
                this.topic.tail.extend(appended.head + 1 - appended.stored, appended.copies.take());
                this.topic.announce(appended.head);
            },
        );
        match stored.await {
            Err(error) => BatchOutcome::Failed(error.into()),
            Ok(appended) if appended.conflicts.is_empty() => BatchOutcome::Done,
            Ok(appended) => BatchOutcome::Each(self.each(count, &appended.conflicts)),
        }
    }

    fn each(&self, count: usize, conflicts: &[usize]) -> Vec<Result<(), StageError>> {
        let refuse = |index| match conflicts.binary_search(&index) {
            Err(_) => Ok(()),
            Ok(_) => Err(StageError::permanent(
                ID_CONFLICT,
                format!("topic {} already holds another payload under this message id", self.topic.name),
            )),
        };
        (0..count).map(refuse).collect()
    }
}

impl Publisher for BusPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        Box::pin(self.store(messages))
    }
}

impl std::fmt::Debug for BusPublisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BusPublisher").field("topic", &self.topic.name).finish_non_exhaustive()
    }
}

/// What an append did.
#[derive(Default)]
struct Appended {
    /// The topic's highest sequence number after it.
    head: u64,
    stored: u64,
    duplicates: u64,
    /// Indexes of messages whose id stands for other bytes, rising.
    conflicts: Vec<usize>,
    /// What was stored, for the topic's tail.
    copies: Cell<Vec<Message>>,
}

/// The topic's row.
struct Counters {
    head: u64,
    digest: Digest,
    duplicates: u64,
    bytes: u64,
}

fn append(
    connection: &Connection,
    topic: &TopicState,
    messages: &[Message],
    max_bytes: u64,
) -> Result<Appended, Error> {
    let mut counters = read_counters(connection, topic.id)?;
    let incoming: u64 = messages.iter().map(stored_bytes).sum();
    if counters.bytes > 0 && counters.bytes.saturating_add(incoming) > max_bytes {
        return Err(full(topic, counters.bytes, max_bytes));
    }
    let mut appended = Appended::default();
    let mut stored = Vec::with_capacity(messages.len());
    let mut insert_id = connection.prepare_cached(&topic.sql.insert_id)?;
    let mut insert = connection.prepare_cached(&topic.sql.insert_message)?;
    for (index, message) in messages.iter().enumerate() {
        let (seq, fingerprint) = (counters.head + 1, fingerprint(&message.payload));
        let id = message.id.as_bytes().as_slice();
        if insert_id.execute(params![id, signed(seq), fingerprint])? == 0 {
            if stored_fingerprint(connection, topic, id)? == fingerprint {
                appended.duplicates += 1;
            } else {
                appended.conflicts.push(index);
            }
            continue;
        }
        insert_message(&mut insert, seq, message)?;
        counters.head = seq;
        counters.digest.insert(&message.id);
        counters.bytes += stored_bytes(message);
        stored.push(message);
    }
    appended.stored = stored.len() as u64;
    appended.head = counters.head;
    counters.duplicates += appended.duplicates;
    write_counters(connection, topic.id, &counters)?;
    if topic.has_listeners() {
        appended.copies = Cell::new(copies(&stored)?);
    }
    Ok(appended)
}

/// Runs a topic's statement that puts `message` into its log.
pub(super) fn insert_message(
    insert: &mut CachedStatement<'_>,
    seq: u64,
    message: &Message,
) -> rusqlite::Result<()> {
    insert.execute(params![
        signed(seq),
        message.id.as_bytes().as_slice(),
        message.publish_time.as_micros(),
        &message.attributes.as_bytes()[..],
        message.enrichment.text(),
        &message.payload[..],
    ])?;
    Ok(())
}

/// What a message counts for against the topic's size limit.
pub(super) fn stored_bytes(message: &Message) -> u64 {
    (message.payload.len() + message.attributes.size()) as u64
}

/// FarmHash's `Fingerprint64` of a payload. It tells a repeated publish from a reused id; it does not stand against
/// somebody who makes collisions on purpose, who could only harm messages under an id of their own.
pub(super) fn fingerprint(payload: &[u8]) -> i64 {
    farmhash::fingerprint64(payload).cast_signed()
}

fn stored_fingerprint(connection: &Connection, topic: &TopicState, id: &[u8]) -> rusqlite::Result<i64> {
    connection.prepare_cached(&topic.sql.find_id)?.query_row([id], |row| row.get(1))
}

fn read_counters(connection: &Connection, topic: i64) -> rusqlite::Result<Counters> {
    let sql = "SELECT last_seq, published, digest, duplicates, bytes FROM topics WHERE id = ?1";
    connection.prepare_cached(sql)?.query_row([topic], |row| {
        Ok(Counters {
            head: unsigned(row.get(0)?),
            digest: Digest { count: unsigned(row.get(1)?), sum: row.get::<_, i64>(2)?.cast_unsigned() },
            duplicates: unsigned(row.get(3)?),
            bytes: unsigned(row.get(4)?),
        })
    })
}

fn write_counters(connection: &Connection, topic: i64, counters: &Counters) -> rusqlite::Result<()> {
    let sql = "UPDATE topics SET last_seq = ?2, published = ?3, digest = ?4, duplicates = ?5, bytes = ?6 \
               WHERE id = ?1";
    connection.prepare_cached(sql)?.execute(params![
        topic,
        signed(counters.head),
        signed(counters.digest.count),
        counters.digest.sum.cast_signed(),
        signed(counters.duplicates),
        signed(counters.bytes),
    ])?;
    Ok(())
}

fn full(topic: &TopicState, bytes: u64, max_bytes: u64) -> Error {
    Error::refused(
        ErrorClass::Transient,
        "bus-full",
        format!(
            "topic {} holds {bytes} bytes that are not settled, its limit is {max_bytes}: publishing waits until the \
             slowest subscription has caught up; raise the limit if the disk has room",
            topic.name
        ),
    )
}

#[cfg(test)]
mod tests {
    use crate::bus::{Bus, BusOptions, ConsumerOptions, SubscriptionOptions};
    use messagepipeline::{
        BatchOutcome, Consumer, IdGenerator, Message, Publisher, SystemClock, Timestamp, all_done,
    };
    use std::sync::Arc;
    use tokio::sync::oneshot;

    fn messages(count: usize) -> Vec<Message> {
        let ids = IdGenerator::default();
        (0..count).map(|_| Message::new(ids.next_id(), "reading", Timestamp::from_micros(1))).collect()
    }

    #[tokio::test]
    async fn what_a_failed_commit_takes_back_is_never_delivered() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bus.db");
        let bus = Bus::open(path, BusOptions::default(), Arc::new(SystemClock)).await.unwrap();
        let topic = bus.topic("raw").await.unwrap();
        let subscription = bus.subscription(&topic, "left", SubscriptionOptions::default()).await.unwrap();
        let mut consumer = bus.consumer(&subscription, ConsumerOptions::default());
        consumer.open().await.unwrap();
        let publisher = bus.publisher(&topic);

        // Both jobs below wait while this one runs, so they share a transaction; the second one makes its commit fail.
        let (begin, begun) = oneshot::channel();
        let (release, released) = std::sync::mpsc::sync_channel(1);
        let hold = bus.writer.call(move |_| {
            begin.send(()).unwrap();
            released.recv().unwrap();
            Ok::<_, crate::Error>(())
        });
        let together = async {
            begun.await.unwrap();
            let orphan = "PRAGMA defer_foreign_keys = ON; INSERT INTO settled VALUES (-1, 1, 1)";
            let spoil = bus.writer.call(|connection| connection.execute_batch(orphan));
            let release = async { release.send(()).unwrap() };
            tokio::join!(publisher.publish(messages(10)), spoil, release)
        };
        let (held, (outcome, spoilt, ())) = tokio::join!(hold, together);
        held.unwrap();
        assert!(matches!(outcome, BatchOutcome::Failed(_)) && spoilt.is_err(), "{outcome:?}");

        let stored = messages(3);
        all_done(publisher.publish(stored.clone()).await).unwrap();
        let (_, deliveries) = consumer.next().await.unwrap().unwrap().into_parts();
        let delivered: Vec<_> = deliveries.into_iter().map(|delivery| delivery.message).collect();
        assert_eq!(delivered, stored);
        consumer.close().await.unwrap();
        bus.close().await.unwrap();
    }
}

//! The batch processor that writes objects.

use crate::{ArchiveObject, ArchiveSettings, BatchKey, Error, ObjectStore, PutOutcome, payload_fingerprint};
use messagepipeline::{
    BatchOutcome, BatchProcessor, Clock, ID_CONFLICT, Item, Message, MessageId, StageError, metric_names,
};
use metrics::Counter;
use std::collections::HashMap;
use std::sync::Arc;

/// How often an object is made anew because some of its ids were archived meanwhile. Each time at least one message
/// less is in it; more than a few times cannot happen unless two archivers fight over one subscription.
const ROUNDS: usize = 8;

/// Bytes of messages (payload, attributes and enrichment, which all go into its lines) up to which an object is built
/// in place. That takes less than 0.2 ms, a hand-over to another thread not much less.
const BUILT_IN_PLACE: usize = 32 * 1024;

/// Writes each group of messages with the same key as one object, without what is archived already.
#[derive(Clone)]
pub struct ArchiveProcessor {
    store: Arc<dyn ObjectStore>,
    settings: Arc<ArchiveSettings>,
    clock: Arc<dyn Clock>,
    counters: Counters,
}

#[derive(Clone)]
struct Counters {
    objects: Counter,
    lines: Counter,
    bytes: Counter,
    duplicates: Counter,
}

impl ArchiveProcessor {
    /// Writes to `store`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, settings: ArchiveSettings, clock: Arc<dyn Clock>) -> Self {
        let counters = Counters {
            objects: metrics::counter!(metric_names::ARCHIVE_OBJECTS),
            lines: metrics::counter!(metric_names::ARCHIVE_LINES),
            bytes: metrics::counter!(metric_names::ARCHIVE_BYTES),
            duplicates: metrics::counter!(metric_names::ARCHIVE_DUPLICATES),
        };
        Self { store, settings: Arc::new(settings), clock, counters }
    }

    /// Archives the messages of one key. Says which of them can never be archived.
    async fn archive(&self, key: &BatchKey, group: &[&Message]) -> Result<Vec<Conflict>, StageError> {
        let (mut fresh, mut conflicts) = without_doubles(group);
        for _ in 0..ROUNDS {
            self.leave_out_known(&mut fresh, &mut conflicts).await?;
            if fresh.is_empty() {
                return Ok(conflicts);
            }
            let object = self.build(key, fresh.clone()).await?;
            let (lines, bytes) = (object.lines.len() as u64, object.bytes.len() as u64);
            match self.store.put(object).await? {
                PutOutcome::Stored => {
                    self.counters.objects.increment(1);
                    self.counters.lines.increment(lines);
                    self.counters.bytes.increment(bytes);
                    return Ok(conflicts);
                }
                PutOutcome::Overlaps => {}
            }
        }
        Err(StageError::transient("archive-overlap", "others keep archiving the same messages"))
    }

    async fn leave_out_known(
        &self,
        fresh: &mut Vec<(Message, u64)>,
        conflicts: &mut Vec<Conflict>,
    ) -> Result<(), StageError> {
        let known = self.store.known(fresh.iter().map(|(message, _)| message.id).collect()).await?;
        let before = fresh.len();
        let mut known = known.into_iter();
        fresh.retain(|(message, fingerprint)| match known.next().flatten() {
            None => true,
            Some(stored) => {
                if stored != *fingerprint {
                    conflicts.push((message.id, *fingerprint));
                }
                false
            }
        });
        self.counters.duplicates.increment((before - fresh.len()) as u64);
        Ok(())
    }

    /// Encoding and compressing 1,000 messages takes about six milliseconds: too long for a thread that serves
    /// connections.
    async fn build(&self, key: &BatchKey, messages: Vec<(Message, u64)>) -> Result<ArchiveObject, Error> {
        let (settings, key, now) = (Arc::clone(&self.settings), key.clone(), self.clock.now());
        let weigh = |message: &Message| message.weight() + message.enrichment.text().map_or(0, str::len);
        if messages.iter().map(|(message, _)| weigh(message)).sum::<usize>() <= BUILT_IN_PLACE {
            return ArchiveObject::build(&settings, &key, &messages, now);
        }
        let built =
            tokio::task::spawn_blocking(move || ArchiveObject::build(&settings, &key, &messages, now)).await;
        match built {
            Ok(result) => result,
            // The service finds the message at fault.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(error) => {
                Err(Error::Compression { action: "compressing", source: std::io::Error::other(error) })
            }
        }
    }
}

impl std::fmt::Debug for ArchiveProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArchiveProcessor").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// An id and the fingerprint of a payload that cannot be archived under it.
type Conflict = (MessageId, u64);

/// The messages with their fingerprints, each id once.
fn without_doubles(group: &[&Message]) -> (Vec<(Message, u64)>, Vec<Conflict>) {
    let mut first: HashMap<MessageId, u64> = HashMap::with_capacity(group.len());
    let (mut fresh, mut conflicts) = (Vec::with_capacity(group.len()), Vec::new());
    for message in group {
        let fingerprint = payload_fingerprint(&message.payload);
        match first.get(&message.id) {
            None => {
                first.insert(message.id, fingerprint);
                fresh.push(((*message).clone(), fingerprint));
            }
            Some(other) if *other != fingerprint => conflicts.push((message.id, fingerprint)),
            Some(_) => {}
        }
    }
    (fresh, conflicts)
}

impl BatchProcessor<BatchKey> for ArchiveProcessor {
    async fn process(&self, batch: &[Item<BatchKey>]) -> BatchOutcome {
        let mut results: Vec<Result<(), StageError>> = batch.iter().map(|_| Ok(())).collect();
        let (mut archived, mut failed) = (false, None);
        for (key, places) in by_key(batch) {
            let group: Vec<_> = places.iter().map(|&at| &batch[at].message).collect();
            match self.archive(key, &group).await {
                Ok(conflicts) => {
                    archived = true;
                    for &at in &places {
                        results[at] = result_of(&batch[at].message, &conflicts);
                    }
                }
                Err(error) => {
                    for &at in &places {
                        let detail = error.detail().to_owned();
                        results[at] = Err(StageError::new(error.class(), error.reason().to_owned(), detail));
                    }
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if !archived => BatchOutcome::Failed(error),
            None if results.iter().all(Result::is_ok) => BatchOutcome::Done,
            _ => BatchOutcome::Each(results),
        }
    }
}

/// The places of the batch's messages by key. A service that groups by key makes batches of one key only.
fn by_key(batch: &[Item<BatchKey>]) -> Vec<(&BatchKey, Vec<usize>)> {
    let mut groups: Vec<(&BatchKey, Vec<usize>)> = Vec::new();
    for (at, item) in batch.iter().enumerate() {
        match groups.iter_mut().find(|(key, _)| **key == item.value) {
            Some((_, places)) => places.push(at),
            None => groups.push((&item.value, vec![at])),
        }
    }
    groups
}

fn result_of(message: &Message, conflicts: &[Conflict]) -> Result<(), StageError> {
    if conflicts.is_empty() || !conflicts.contains(&(message.id, payload_fingerprint(&message.payload))) {
        return Ok(());
    }
    let detail = format!("message {} is archived with another payload", message.id);
    Err(StageError::permanent(ID_CONFLICT, detail))
}

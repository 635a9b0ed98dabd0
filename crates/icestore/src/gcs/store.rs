//! The archive in a bucket.

use super::GcsOptions;
use super::client::{Client, Upload};
use super::memory::{Claim, Memory};
use super::{metadata, recall};
use crate::{ArchiveObject, Error, LineRef, ObjectStore, PutOutcome, StoredObject};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use messagepipeline::{Clock, ErrorClass, MessageId, StageError, Timestamp};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// Names tried for one object. All but the first are needed only when somebody else puts objects under our names.
const NAMES: u32 = 8;
/// By how much less than this the clocks differ of those who receive messages and of us.
const CLOCKS: Duration = Duration::from_secs(60);
/// Objects that a look reads at once.
const READS: usize = 4;

/// Objects in a Cloud Storage bucket.
#[derive(Clone)]
pub struct GcsStore(Arc<Inner>);

struct Inner {
    client: Client,
    options: GcsOptions,
    clock: Arc<dyn Clock>,
    memory: Mutex<Memory>,
    /// Some object's ids are no longer claimed.
    released: Notify,
    /// What was stored later than this is not of those who were there before us.
    others_until: Timestamp,
    /// One look at a time: each holds objects in memory.
    looks: Semaphore,
}

impl std::fmt::Debug for GcsStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GcsStore").field("options", &self.0.options).finish_non_exhaustive()
    }
}

impl GcsStore {
    /// A store in the bucket that `options` name. Asks nothing before it is [opened](ObjectStore::open).
    ///
    /// # Errors
    /// When the endpoint is no URL or the client cannot be set up.
    pub async fn new(options: GcsOptions, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let unknown_until = moved(clock.now(), CLOCKS.as_micros(), i64::saturating_add);
        Ok(Self(Arc::new(Inner {
            client: Client::new(&options).await?,
            memory: Mutex::new(Memory::new(options.remembered, unknown_until)),
            others_until: moved(unknown_until, options.timeout.as_micros(), i64::saturating_add),
            options,
            clock,
            released: Notify::new(),
            looks: Semaphore::new(1),
        })))
    }
}

impl ObjectStore for GcsStore {
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(self.0.open().await?) })
    }

    fn known(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Option<u64>>, StageError>> {
        let memory = self.0.memory.lock();
        let known = ids.iter().map(|id| memory.fingerprint(id)).collect();
        Box::pin(std::future::ready(Ok(known)))
    }

    fn put(&self, object: ArchiveObject) -> BoxFuture<'_, Result<PutOutcome, StageError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let Some(claimed) = inner.claim(&object).await else { return Ok(PutOutcome::Overlaps) };
            // A task of its own: a caller whose patience ends must not leave an upload behind of which nobody knows
            // how it ended.
            let task = tokio::spawn(async move { claimed.inner.store(&object).await });
            match task.await {
                Ok(outcome) => Ok(outcome?),
                Err(error) => Err(StageError::transient("archive-task", error.to_string())),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// The ids of an object that is on its way. No other object with one of them is stored meanwhile.
struct Claimed {
    inner: Arc<Inner>,
    ids: Vec<MessageId>,
}

impl Drop for Claimed {
    fn drop(&mut self) {
        self.inner.memory.lock().release(self.ids.drain(..));
        self.inner.released.notify_waiters();
    }
}

impl Inner {
    async fn open(&self) -> Result<(), Error> {
        if self.client.bucket_exists().await? {
            return Ok(());
        }
        let missing = |detail: &str| Error::Store {
            action: "opening bucket",
            place: format!("gs://{}", self.options.bucket),
            reason: "gcs-not-found",
            class: ErrorClass::Configuration,
            detail: detail.to_owned(),
        };
        if !self.options.create_bucket {
            return Err(missing("it does not exist; create it, or have it created by configuration"));
        }
        let Some(project) = &self.options.project else {
            return Err(missing("it does not exist, and no project is named in which to create it"));
        };
        self.client.create_bucket(project, self.options.location.as_deref()).await?;
        tracing::info!(bucket = self.options.bucket, project, "bucket created for the archive");
        // Names are shared by all of the world: it may be there and not ours.
        if self.client.bucket_exists().await? { Ok(()) } else { Err(missing("it was created and is gone")) }
    }

    /// The claim on the ids of `object`; `None` when some are archived. Waits for those that are on their way, which
    /// ends with the deadline of their upload.
    async fn claim(self: &Arc<Self>, object: &ArchiveObject) -> Option<Claimed> {
        loop {
            let mut released = std::pin::pin!(self.released.notified());
            released.as_mut().enable();
            let claim = self.memory.lock().claim(object);
            match claim {
                Claim::Granted => {
                    let ids = object.lines.iter().map(|line| line.id).collect();
                    return Some(Claimed { inner: Arc::clone(self), ids });
                }
                Claim::Overlaps => return None,
                Claim::Busy => released.await,
            }
        }
    }

    async fn store(&self, object: &ArchiveObject) -> Result<PutOutcome, Error> {
        if let Some(stored) = self.unknown(object)
            && self.look(object, &stored).await?
        {
            return Ok(PutOutcome::Overlaps);
        }
        let outcome = self.upload(object).await;
        if outcome.is_err() {
            self.memory.lock().doubt(object.name.folder(), object.last_received);
        }
        outcome
    }

    /// When those objects were stored that may hold messages of `object` without our knowing. Nothing when none may,
    /// which spares the look.
    fn unknown(&self, object: &ArchiveObject) -> Option<RangeInclusive<Timestamp>> {
        let memory = self.memory.lock();
        let since = moved(self.clock.now(), self.options.recall.as_micros(), i64::saturating_sub);
        if object.redelivered || memory.is_doubtful(object.name.folder(), object.first_received) {
            Some(since..=Timestamp::from_micros(i64::MAX))
        } else if memory.is_from_before(object.first_received) {
            // What was stored later is ours or of a replica beside us: then the message would count as redelivered. So the
            // looks after a long outage do not grow with what is stored meanwhile.
            Some(since..=self.others_until)
        } else {
            None
        }
    }

    /// Looks for messages of `object` in what was `stored` then. Says whether some are there; they are remembered.
    async fn look(&self, object: &ArchiveObject, stored: &RangeInclusive<Timestamp>) -> Result<bool, Error> {
        let Ok(_turn) = self.looks.acquire().await else { return Ok(false) };
        // All that are found are remembered at the end: what is read meanwhile may be more than the memory holds.
        let mut found = Vec::new();
        let candidates = recall::candidates(&self.client, object, stored, |met| {
            let memory = self.memory.lock();
            let count = met.len();
            met.retain(|candidate| !memory.has_seen(&candidate.name));
            if met.len() < count {
                found.extend(memory.archived(object));
            }
        })
        .await?;
        let objects = candidates.len();
        let read = async |candidate: StoredObject| self.learn_if_readable(&candidate.name, object).await;
        let mut reads = stream::iter(candidates.into_iter().map(read)).buffer_unordered(READS);
        while let Some(read) = reads.next().await {
            found.extend(read?);
        }
        if objects > 0 {
            tracing::debug!(objects, folder = object.name.folder(), "archived objects read again");
        }
        self.memory.lock().remember(&found);
        Ok(!found.is_empty())
    }

    /// Reads the object `name` and remembers its ids. Answers with the messages of `object` that are in it.
    async fn learn(&self, name: &str, object: &ArchiveObject) -> Result<Vec<LineRef>, Error> {
        let mut lines = recall::lines(&self.client, name).await?;
        self.memory.lock().record(name, &lines);
        let wanted: HashSet<_> = object.lines.iter().map(|line| line.id).collect();
        lines.retain(|line| wanted.contains(&line.id));
        Ok(lines)
    }

    async fn upload(&self, object: &ArchiveObject) -> Result<PutOutcome, Error> {
        let mut name = object.name.clone();
        for number in 1..=NAMES {
            let mut stored = self.client.upload(&name, object, &self.options.writer).await? == Upload::Stored;
            if !stored {
                // What was there and is gone leaves the name free for the next try.
                let Some(found) = self.client.resource_of(name.as_str()).await? else { continue };
                // The answer to an earlier try got lost.
                stored = metadata::is(&found.metadata, object);
            }
            if stored {
                self.memory.lock().record(name.as_str(), &object.lines);
                return Ok(PutOutcome::Stored);
            }
            // An object is called like its first message: it holds ours, or it is not an archive's.
            let found = self.learn_if_readable(name.as_str(), object).await?;
            if !found.is_empty() {
                self.memory.lock().remember(&found);
                return Ok(PutOutcome::Overlaps);
            }
            name = object.name.alternative(number);
        }
        Err(Error::Store {
            action: "uploading",
            place: self.client.place(object.name.as_str()),
            reason: "gcs-name-taken",
            class: ErrorClass::Configuration,
            detail: format!("this name and {NAMES} others are taken by objects that are not the archive's"),
        })
    }

    async fn learn_if_readable(&self, name: &str, object: &ArchiveObject) -> Result<Vec<LineRef>, Error> {
        match self.learn(name, object).await {
            // What cannot be read as an archive's object is none, and must not hold up the others.
            Err(error @ (Error::InvalidLine(_) | Error::Compression { .. })) => {
                tracing::warn!(object = name, %error, "not an object of the archive; it is passed over");
                Ok(Vec::new())
            }
            // Deleted since it was listed, as a rule of the bucket does with old ones. A bucket that is gone shows in
            // every other request.
            Err(Error::Store { reason: "gcs-not-found", .. }) => Ok(Vec::new()),
            other => other,
        }
    }
}

/// `time` moved by so many microseconds.
fn moved(time: Timestamp, micros: u128, by: fn(i64, i64) -> i64) -> Timestamp {
    Timestamp::from_micros(by(time.as_micros(), i64::try_from(micros).unwrap_or(i64::MAX)))
}

//! The one task that writes: what was put and removed goes to Redis in the order in which it was asked for, so that an
//! entry put before a removal never comes back after it.

use crate::client::WriteRequest;
use crate::keys::KeyBuffer;
use crate::link::Link;
use crate::value;
use crate::{CachedValue, Error};
use cache::Fetched;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};

/// Jobs that wait; the entries in them have a bound of their own.
const JOBS: usize = 1_024;
/// Jobs taken from the queue at once.
const TAKEN: usize = 64;

/// Entries to be written.
pub(crate) struct Entries<V> {
    /// What their keys begin with.
    pub(crate) prefix: Arc<str>,
    /// Each with its key and the time it may live.
    pub(crate) entries: Vec<(Box<str>, Fetched<V>)>,
}

enum Job<V> {
    Put { entries: Entries<V>, since: Instant, _room: OwnedSemaphorePermit },
    Remove { key: Box<str>, done: oneshot::Sender<Result<(), Error>> },
    Flush { done: oneshot::Sender<Result<(), Error>> },
}

/// Hands work to the task; the task ends when this is dropped and the queue is empty.
pub(crate) struct Writer<V> {
    jobs: mpsc::Sender<Job<V>>,
    room: Arc<Semaphore>,
    link: Arc<Link>,
}

impl<V: CachedValue> Writer<V> {
    pub(crate) fn start(link: Arc<Link>, chunk: usize, max_queued: usize) -> Self {
        let (jobs, queue) = mpsc::channel(JOBS);
        let room = Arc::new(Semaphore::new(max_queued.min(Semaphore::MAX_PERMITS)));
        let task = Task { link: Arc::clone(&link), chunk, failing: AtomicBool::new(false) };
        tokio::spawn(task.run(queue));
        Self { jobs, room, link }
    }

    /// Takes entries to be written, when there is room for them.
    pub(crate) fn put(&self, entries: Entries<V>) {
        let count = u32::try_from(entries.entries.len()).unwrap_or(u32::MAX);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(count) else { return };
        // Dropped when the queue is full: the next look-up brings them again.
        let _ = self.jobs.try_send(Job::Put { entries, since: Instant::now(), _room: room });
    }

    /// Removes `key` behind all that was put before.
    pub(crate) async fn remove(&self, key: &str) -> Result<(), Error> {
        let removed = self.behind_the_others(|done| Job::Remove { key: key.into(), done }).await;
        if removed.is_err() {
            self.link.distrust();
        }
        removed
    }

    /// Waits for all that was put before.
    pub(crate) async fn flush(&self) -> Result<(), Error> {
        self.behind_the_others(|done| Job::Flush { done }).await
    }

    async fn behind_the_others(
        &self,
        job: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Job<V>,
    ) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        let turn = async {
            self.jobs.send(job(done)).await.map_err(|_| self.full())?;
            answer.await.unwrap_or_else(|_| Err(self.full()))
        };
        timeout(2 * self.link.timeout(), turn).await.unwrap_or_else(|_| Err(self.full()))
    }

    fn full(&self) -> Error {
        Error::QueueFull { server: self.link.server().to_owned() }
    }
}

struct Task {
    link: Arc<Link>,
    chunk: usize,
    failing: AtomicBool,
}

impl Task {
    async fn run<V: CachedValue>(self, mut queue: mpsc::Receiver<Job<V>>) {
        let mut jobs = Vec::with_capacity(TAKEN);
        while queue.recv_many(&mut jobs, TAKEN).await > 0 {
            let mut request = WriteRequest::with_capacity(self.chunk);
            for job in jobs.drain(..) {
                match job {
                    Job::Put { entries, since, _room } => {
                        request = self.add(request, &entries, since.elapsed()).await;
                    }
                    // Nobody waits for an answer any more when the caller's time is over.
                    Job::Remove { key, done } => {
                        self.flush(request).await;
                        request = WriteRequest::with_capacity(self.chunk);
                        let _ = done.send(self.remove(&key).await);
                    }
                    Job::Flush { done } => {
                        self.flush(request).await;
                        request = WriteRequest::with_capacity(self.chunk);
                        let _ = done.send(Ok(()));
                    }
                }
            }
            self.flush(request).await;
        }
    }

    /// Adds `entries` to `request`, which is sent whenever it is full.
    async fn add<V: CachedValue>(
        &self,
        mut request: WriteRequest,
        entries: &Entries<V>,
        waited: Duration,
    ) -> WriteRequest {
        let mut keys = KeyBuffer::new(&entries.prefix);
        let mut json = Vec::new();
        for (key, fetched) in &entries.entries {
            json.clear();
            value::write(fetched.value.as_ref(), &mut json);
            request.set(keys.of(key), &json, fetched.fresh_for.saturating_sub(waited));
            if request.entries() >= self.chunk {
                self.flush(request).await;
                request = WriteRequest::with_capacity(self.chunk);
            }
        }
        request
    }

    async fn flush(&self, request: WriteRequest) {
        if request.entries() == 0 {
            return;
        }
        let request = &request;
        let written =
            self.link.call(|mut session| async move { session.connection.write(request).await }).await;
        self.report(written);
    }

    async fn remove(&self, key: &str) -> Result<(), Error> {
        let unlink = |mut session: crate::link::Session| async move {
            let key = KeyBuffer::new(&session.prefix).of(key).to_owned();
            session.connection.unlink(&key).await
        };
        self.link.call(unlink).await
    }

    /// Says when writing begins to fail and when it works again. A connection that is gone is told by those who read.
    fn report(&self, written: Result<(), Error>) {
        match written {
            Ok(()) => {
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(server = self.link.server(), "Redis takes entries again");
                }
            }
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "look-up answers cannot be written to Redis; they are asked for again");
                }
            }
        }
    }
}

//! The archive of one machine: finished objects in a folder, and `archive.db`, which lists them and every id in them.
//!
//! ```text
//!  1  archive-tmp/<name>   written and synced, the folder too
//!  2  archive.db           ONE transaction: the object, pending, and its ids ──► the messages are archived
//!  3  archive/<name>       renamed, never over another file; its folder synced
//!  4  archive.db           no longer pending, within a later transaction
//! ```
//!
//! A process that dies before 2 leaves a temporary file that the next start removes; one that dies after it leaves a
//! pending object that the next start finishes. So what people see in the folder is complete, listed and final, and
//! the folder is never scanned. A rename that fails (no space for a folder, no permission) is tried again while the
//! process lives; the messages stay archived meanwhile.

mod files;
mod index;
mod reader;
mod retention;

pub use reader::{ArchiveReader, ArchiveSummary, ObjectEntry, Verification};
pub use retention::{ObjectRetention, RemovedObjects};

use crate::Error;
use crate::sqlite::{self, Writer};
use files::Files;
use futures_util::future::BoxFuture;
use icestore::{ArchiveObject, ObjectStore, PutOutcome};
use index::{Pending, Recorded, SCHEMA};
use messagepipeline::{ErrorClass, MessageId, StageError, StageHealth};
use parking_lot::Mutex;
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Objects that may wait for their rename. Beyond it no object is taken, so the temporary folder stays bounded.
const STUCK_LIMIT: usize = 256;
/// First and longest pause between two tries at the waiting renames.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The archive folder with its index.
#[derive(Debug)]
pub struct Archive(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    writer: Writer,
    reader: Arc<Mutex<Connection>>,
    files: Files,
    /// Makes temporary names unique: an abandoned attempt may still be writing while the next one begins.
    attempts: AtomicU64,
    /// Renamed objects that the index still calls pending.
    finished: Mutex<Vec<i64>>,
    stuck: Mutex<Stuck>,
    /// Temporary files that a commit whose sync failed may list after a crash.
    doubtful: Mutex<Vec<String>>,
    tasks: TaskTracker,
    closing: CancellationToken,
    health: Option<StageHealth>,
}

#[derive(Debug, Default)]
struct Stuck {
    objects: Vec<Pending>,
    retrying: bool,
    reason: String,
}

impl Archive {
    /// Opens the index `index` and the folders `folder` (finished objects) and `temporary` (unfinished ones; on the
    /// same file system), finishes pending objects and removes other temporary files. Trouble with finishing an
    /// object shows in `health`. Reads and writes the disk before it returns.
    ///
    /// # Errors
    /// When a file or folder cannot be used. An object that the index lists and nobody has is only logged: the reader
    /// tells which messages it held.
    pub fn open(
        index: &Path,
        folder: &Path,
        temporary: &Path,
        health: Option<StageHealth>,
    ) -> Result<Self, Error> {
        let connection = sqlite::open(index, &SCHEMA)?;
        // The list of objects is the parent of all ids: removing one would search all of them for its own, which are
        // gone by then.
        connection
            .pragma_update(None, "foreign_keys", false)
            .map_err(|error| Error::from(error).at(index))?;
        let files = Files::open(folder, temporary)?;
        index::repair(&connection, index, &files)?;
        retention::finish_removals(&connection, index, &files)?;
        let reader = sqlite::open_reader(index, &SCHEMA)?;
        let writer = Writer::spawn("archive", connection)?;
        if let Some(health) = &health {
            health.ready();
        }
        Ok(Self(Arc::new(Inner {
            writer,
            reader: Arc::new(Mutex::new(reader)),
            files,
            attempts: AtomicU64::new(0),
            finished: Mutex::default(),
            stuck: Mutex::default(),
            doubtful: Mutex::default(),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
            health,
        })))
    }
}

impl ObjectStore for Archive {
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(()) })
    }

    fn known(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Option<u64>>, StageError>> {
        Box::pin(async { Ok(self.0.known(ids).await?) })
    }

    fn put(&self, object: ArchiveObject) -> BoxFuture<'_, Result<PutOutcome, StageError>> {
        // A task of its own: between commit and rename nobody's patience may end.
        let inner = Arc::clone(&self.0);
        let task = self.0.tasks.spawn(async move { inner.put(object).await });
        Box::pin(async {
            match task.await {
                Ok(outcome) => Ok(outcome?),
                Err(error) => Err(StageError::transient("archive-task", error.to_string())),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(self.0.close().await?) })
    }
}

impl Inner {
    async fn known(&self, ids: Vec<MessageId>) -> Result<Vec<Option<u64>>, Error> {
        let reader = Arc::clone(&self.reader);
        let known = blocking(move || index::known(&reader.lock(), &ids)).await?;
        known.map_err(|error| Error::from(error).at(self.writer.path()))
    }

    async fn put(self: Arc<Self>, object: ArchiveObject) -> Result<PutOutcome, Error> {
        self.refuse_when_stuck()?;
        self.remove_doubtful().await?;
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("{}.{attempt}", object.name.file_name());
        self.write(&temporary, &object).await?;
        let Some(pending) = self.record(&object, &temporary).await? else {
            self.remove(temporary).await;
            return Ok(PutOutcome::Overlaps);
        };
        if let Err((pending, error)) = self.publish(pending).await {
            self.set_aside(pending, &error);
        }
        Ok(PutOutcome::Stored)
    }

    async fn write(self: &Arc<Self>, temporary: &str, object: &ArchiveObject) -> Result<(), Error> {
        let (inner, name, bytes) = (Arc::clone(self), temporary.to_owned(), object.bytes.clone());
        blocking(move || inner.files.write(&name, &bytes)).await?
    }

    async fn remove(self: &Arc<Self>, temporary: String) {
        let inner = Arc::clone(self);
        // What cannot be removed now is removed at the next start.
        let _ = blocking(move || inner.files.remove(&temporary)).await;
    }

    /// Step 2. `None` when some id was archived meanwhile.
    async fn record(
        self: &Arc<Self>,
        object: &ArchiveObject,
        temporary: &str,
    ) -> Result<Option<Pending>, Error> {
        let finished = std::mem::take(&mut *self.finished.lock());
        let pending = Pending { object: 0, name: object.name.clone(), temporary: temporary.to_owned() };
        let (row, mut waiting, done) = (object.clone(), pending.clone(), finished.clone());
        let job = move |connection: &Connection| {
            index::confirm(connection, &done)?;
            let recorded = index::record(connection, &row, &waiting.temporary)?;
            Ok::<_, Error>(match recorded {
                Recorded::As(id) => {
                    waiting.object = id;
                    Some(waiting)
                }
                Recorded::Overlaps => None,
            })
        };
        let weight = object.lines.len() * size_of::<icestore::LineRef>();
        match self.writer.call_weighing(weight, job, |_| ()).await {
            Ok(recorded) => Ok(recorded),
            Err(error) => {
                self.finished.lock().extend(finished);
                self.resolve(pending, error).await
            }
        }
    }

    /// After a failed commit: it may have reached the disk all the same, and then the file must stay.
    async fn resolve(self: &Arc<Self>, pending: Pending, error: Error) -> Result<Option<Pending>, Error> {
        let (reader, wanted) = (Arc::clone(&self.reader), pending.clone());
        match blocking(move || index::find(&reader.lock(), &wanted)).await? {
            Ok(Some(object)) => Ok(Some(Pending { object, ..pending })),
            Ok(None) if error.may_stand() => {
                self.doubtful.lock().push(pending.temporary);
                Err(error)
            }
            Ok(None) => {
                self.remove(pending.temporary).await;
                Err(error)
            }
            // Left to the next start, which knows.
            Err(_) => Err(error),
        }
    }

    /// Removes the doubtful files once a further commit has taken the place of those that failed.
    async fn remove_doubtful(self: &Arc<Self>) -> Result<(), Error> {
        let doubtful = std::mem::take(&mut *self.doubtful.lock());
        if doubtful.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.writer.call(index::touch).await {
            self.doubtful.lock().extend(doubtful);
            return Err(error);
        }
        for temporary in doubtful {
            self.remove(temporary).await;
        }
        Ok(())
    }

    /// Step 3.
    async fn publish(self: &Arc<Self>, pending: Pending) -> Result<(), (Pending, Error)> {
        let (inner, object) = (Arc::clone(self), pending.clone());
        match blocking(move || inner.files.publish(&object.temporary, &object.name)).await {
            Ok(Ok(())) => {
                self.finished.lock().push(pending.object);
                Ok(())
            }
            Ok(Err(error)) | Err(error) => Err((pending, error)),
        }
    }

    fn refuse_when_stuck(&self) -> Result<(), Error> {
        let stuck = self.stuck.lock();
        if stuck.objects.len() < STUCK_LIMIT {
            return Ok(());
        }
        let detail = format!(
            "{} finished objects cannot be moved into the archive folder, the last one because: {}",
            stuck.objects.len(),
            stuck.reason
        );
        Err(Error::refused(ErrorClass::Configuration, "archive-folder", detail))
    }

    /// Keeps an object whose rename failed and sees to it that somebody tries again.
    fn set_aside(self: &Arc<Self>, pending: Pending, error: &Error) {
        tracing::warn!(object = %pending.name, %error, "an archived object could not be moved to its place; trying again");
        if let Some(health) = &self.health {
            health.not_ready(error.to_string());
        }
        let mut stuck = self.stuck.lock();
        stuck.reason = error.to_string();
        stuck.objects.push(pending);
        if !stuck.retrying && !self.closing.is_cancelled() {
            stuck.retrying = true;
            self.tasks.spawn(Arc::clone(self).retry());
        }
    }

    async fn retry(self: Arc<Self>) {
        let (mut pause, longest) = PAUSES;
        while self.closing.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            self.publish_stuck().await;
            let mut stuck = self.stuck.lock();
            if stuck.objects.is_empty() {
                stuck.retrying = false;
                tracing::info!("all archived objects are in their places again");
                if let Some(health) = &self.health {
                    health.ready();
                }
                return;
            }
            pause = (pause * 2).min(longest);
        }
    }

    async fn publish_stuck(self: &Arc<Self>) {
        let waiting = std::mem::take(&mut self.stuck.lock().objects);
        for pending in waiting {
            if let Err((pending, error)) = self.publish(pending).await {
                let mut stuck = self.stuck.lock();
                stuck.reason = error.to_string();
                stuck.objects.push(pending);
            }
        }
    }

    async fn close(self: &Arc<Self>) -> Result<(), Error> {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.publish_stuck().await;
        let finished = std::mem::take(&mut *self.finished.lock());
        if !finished.is_empty() {
            self.writer.call(move |connection| index::confirm(connection, &finished)).await?;
        }
        self.writer.close().await?;
        let stuck = self.stuck.lock();
        if stuck.objects.is_empty() {
            return Ok(());
        }
        let detail = format!(
            "{} archived objects are still in {}; the next start moves them: {}",
            stuck.objects.len(),
            self.files.temporary().display(),
            stuck.reason
        );
        Err(Error::refused(ErrorClass::Configuration, "archive-folder", detail))
    }
}

/// Runs what waits for the disk where it may wait.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::refused(ErrorClass::Transient, "archive-task", error.to_string()))
}

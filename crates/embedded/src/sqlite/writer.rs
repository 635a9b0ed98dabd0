//! The thread that writes: all jobs that wait go into one transaction.

use super::BUSY_TIMEOUT;
use crate::Error;
use crate::error::unwritable;
use messagepipeline::metric_names::COMMIT_SECONDS;
use rusqlite::Connection;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Jobs that may wait; a place costs a pointer.
const QUEUE_JOBS: usize = 1_024;
/// Bytes that the waiting jobs may hold together.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Jobs in one transaction, so that none gets long.
const TRANSACTION_JOBS: usize = 1_024;
/// Size of the write-ahead log at which readers are waited for so that it can start again. Ordinary checkpoints
/// (every 60 MiB) reuse the file as soon as no reader is in it; this is for when they never meet such
/// a moment.
const WAL_LIMIT: u64 = 128 * 1024 * 1024;
/// How long readers are waited for then; nothing is written meanwhile.
const WAL_PATIENCE: Duration = Duration::from_millis(250);
/// Commits between two looks at the size of the write-ahead log.
const WAL_LOOK: u32 = 64;
/// How long background work waits for a job whose transaction it can share. What it writes may come late: a verdict
/// that a crash takes along is a redelivery, and a commit costs a sync.
const BACKGROUND_LINGER: Duration = Duration::from_millis(20);
/// How long after a failure the background work is tried again when nothing else is written.
const BACKGROUND_RETRY: Duration = Duration::from_secs(1);

/// The handle of a thread that owns a database's writing connection. Cloning shares it.
///
/// A job runs inside a savepoint: when it fails, only its own changes are undone. When the commit fails, every job
/// of the transaction fails with the commit's error, and the thread goes on with the next transaction.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    queue: SyncSender<Command>,
    places: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    nudged: Arc<AtomicBool>,
    path: Arc<Path>,
    thread: Arc<parking_lot::Mutex<Option<JoinHandle<()>>>>,
}

enum Command {
    Job(Box<dyn Job>),
    /// Look at the background work.
    Nudge,
    Close(oneshot::Sender<Result<(), Error>>),
}

/// Work of the store's own that rides in every transaction, after the jobs.
pub(crate) trait Background: Send {
    /// Whether there is something to write.
    fn is_pending(&self) -> bool;

    /// Writes it, or a bounded part of it, inside a savepoint.
    ///
    /// # Errors
    /// When it cannot be written; it is tried again later.
    fn write(&mut self, connection: &Connection) -> Result<(), Error>;

    /// What became of the last write.
    fn finished(&mut self, result: Result<(), Error>);
}

/// No background work.
struct Nothing;

impl Background for Nothing {
    fn is_pending(&self) -> bool {
        false
    }

    fn write(&mut self, _: &Connection) -> Result<(), Error> {
        Ok(())
    }

    fn finished(&mut self, _: Result<(), Error>) {}
}

impl Writer {
    /// Starts the thread `name` on `connection`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn(name: &'static str, connection: Connection) -> Result<Self, Error> {
        Self::spawn_with(name, connection, Nothing)
    }

    /// [`Writer::spawn`] with work of the store's own in every transaction; [`Writer::nudge`] makes one happen.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn_with(
        name: &'static str,
        connection: Connection,
        background: impl Background + 'static,
    ) -> Result<Self, Error> {
        let path: Arc<Path> = PathBuf::from(connection.path().unwrap_or_default()).into();
        // Every job and every close holds a place; of nudges there is never more than one.
        let (sender, queue) = sync_channel(QUEUE_JOBS + 1);
        let nudged = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            name,
            connection,
            path: Arc::clone(&path),
            queue,
            nudged: Arc::clone(&nudged),
            nudge_taken: false,
            background: Box::new(background),
            background_failed: false,
            closing: Vec::new(),
            commits: 0,
        };
        let thread = std::thread::Builder::new()
            .name(format!("{name}-writer"))
            .spawn(move || worker.run())
            .map_err(|error| Error::io("start the writer thread of", &*path, error))?;
        Ok(Self {
            queue: sender,
            places: Arc::new(Semaphore::new(QUEUE_JOBS)),
            bytes: Arc::new(Semaphore::new(QUEUE_BYTES)),
            nudged,
            path,
            thread: Arc::new(parking_lot::Mutex::new(Some(thread))),
        })
    }

    /// Runs `job` in the writer's next transaction. The answer comes when its changes are durable.
    ///
    /// Waits for a place in the queue. Dropping the future while it waits leaves the job undone; dropping it later
    /// leaves it to run.
    ///
    /// # Errors
    /// The job's own error, or the commit's.
    pub(crate) async fn call<T, E, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        E: Into<Error> + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
    {
        self.call_weighing(0, job, |_| ()).await
    }

    /// [`Writer::call`] for a job that holds `bytes` bytes while it waits. `committed` runs on the writer's thread
    /// after the commit, also when nobody waits for the answer any more.
    pub(crate) async fn call_weighing<T, E, F, C>(
        &self,
        bytes: usize,
        job: F,
        committed: C,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        E: Into<Error> + 'static,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        C: FnOnce(&T) + Send + 'static,
    {
        let weight = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(weight).await.map_err(|_| self.closed())?;
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| self.closed())?;
        let (answer, answered) = oneshot::channel();
        let job = TypedJob { work: Some(job), result: None, committed, answer, _permits: (bytes, place) };
        // There is room for everybody who holds a place, so this fails only when the thread is gone.
        self.queue.try_send(Command::Job(Box::new(job))).map_err(|_| self.closed())?;
        answered.await.map_err(|_| self.closed())?
    }

    /// Has the background work looked at. Never waits.
    pub(crate) fn nudge(&self) {
        if !self.nudged.swap(true, Ordering::AcqRel) {
            // Full or closed: a transaction is under way, or none comes any more.
            let _ = self.queue.try_send(Command::Nudge);
        }
    }

    /// Lets the queue run empty, writes everything into the database file itself and ends the thread. Later calls
    /// answer [`Error::Closed`].
    ///
    /// # Errors
    /// When the last checkpoint fails; nothing is lost then, the next start reads the write-ahead log.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        let Ok(place) = self.places.acquire().await else { return Ok(()) };
        self.places.close();
        self.bytes.close();
        let (answer, answered) = oneshot::channel();
        let sent = self.queue.try_send(Command::Close(answer));
        let result = if sent.is_ok() { answered.await.unwrap_or(Ok(())) } else { Ok(()) };
        drop(place);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // It has answered as its last act; only its stack is left to go.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        result
    }

    fn closed(&self) -> Error {
        Error::Closed { path: self.path.to_path_buf() }
    }

    /// The database file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A job whose result type the thread does not know.
trait Job: Send {
    /// Does the work and keeps its result.
    fn run(&mut self, connection: &Connection, path: &Path) -> Ran;
    /// Answers with the kept result, or with the transaction's error.
    fn finish(self: Box<Self>, transaction: Result<(), Error>);
}

/// How a job went, as far as its transaction must know.
enum Ran {
    Well,
    /// Its changes must be undone. The error is there when it was SQLite's.
    Failed(Option<Arc<rusqlite::Error>>),
}

impl Ran {
    fn of<T>(result: &Result<T, Error>) -> Self {
        match result {
            Ok(_) => Self::Well,
            Err(Error::Database { source, .. }) => Self::Failed(Some(Arc::clone(source))),
            Err(_) => Self::Failed(None),
        }
    }
}

struct TypedJob<T, F, C> {
    work: Option<F>,
    result: Option<Result<T, Error>>,
    committed: C,
    answer: oneshot::Sender<Result<T, Error>>,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

impl<T, E, F, C> Job for TypedJob<T, F, C>
where
    T: Send,
    E: Into<Error>,
    F: FnOnce(&Connection) -> Result<T, E> + Send,
    C: FnOnce(&T) + Send,
{
    fn run(&mut self, connection: &Connection, path: &Path) -> Ran {
        let Some(work) = self.work.take() else { return Ran::Failed(None) };
        let result = match catch_unwind(AssertUnwindSafe(|| work(connection))) {
            Ok(result) => result.map_err(|error| error.into().at(path)),
            Err(_) => Err(Error::Panicked { path: path.to_owned() }),
        };
        let ran = Ran::of(&result);
        self.result = Some(result.map_err(Error::of_write));
        ran
    }

    fn finish(self: Box<Self>, transaction: Result<(), Error>) {
        let result = match (self.result, transaction) {
            (Some(Err(own)), _) => Err(own),
            (_, Err(error)) => Err(error),
            (Some(Ok(value)), Ok(())) => {
                (self.committed)(&value);
                Ok(value)
            }
            // Not reached: the thread runs every job that it finishes without an error.
            (None, Ok(())) => return,
        };
        // Nobody may be waiting any more.
        let _ = self.answer.send(result);
    }
}

struct Worker {
    name: &'static str,
    connection: Connection,
    path: Arc<Path>,
    queue: Receiver<Command>,
    nudged: Arc<AtomicBool>,
    nudge_taken: bool,
    background: Box<dyn Background>,
    /// The background work waits for its next try, or for the next job.
    background_failed: bool,
    closing: Vec<oneshot::Sender<Result<(), Error>>>,
    commits: u32,
}

impl Worker {
    fn run(mut self) {
        let seconds = metrics::histogram!(COMMIT_SECONDS, "database" => self.name);
        let mut jobs = Vec::new();
        while self.gather(&mut jobs) {
            if jobs.is_empty() && !self.background.is_pending() {
                continue;
            }
            self.want_nudges();
            let started = Instant::now();
            self.transact(&mut jobs);
            seconds.record(started.elapsed());
            self.mind_the_log();
        }
        if self.background.is_pending() {
            self.transact(&mut jobs);
        }
        self.finish();
    }

    /// Waits for something to do and takes all of it. False when nothing will come any more.
    fn gather(&mut self, jobs: &mut Vec<Box<dyn Job>>) -> bool {
        let mut until = None;
        loop {
            match self.receive(&mut until) {
                Ok(Command::Nudge) => self.take_nudge(),
                Ok(command) => {
                    self.sort(command, jobs);
                    break;
                }
                Err(RecvTimeoutError::Timeout) => return self.closing.is_empty(),
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        while jobs.len() < TRANSACTION_JOBS
            && let Ok(more) = self.queue.try_recv()
        {
            self.sort(more, jobs);
        }
        true
    }

    /// The next command, or a timeout when the background work need not wait for one any longer. `until` is that
    /// time, once it is known.
    fn receive(&self, until: &mut Option<Instant>) -> Result<Command, RecvTimeoutError> {
        if !self.closing.is_empty() {
            return self.queue.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            });
        }
        if !self.background.is_pending() {
            return self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected);
        }
        let wait = if self.background_failed { BACKGROUND_RETRY } else { BACKGROUND_LINGER };
        let until = *until.get_or_insert_with(|| Instant::now() + wait);
        self.queue.recv_timeout(until.saturating_duration_since(Instant::now()))
    }

    fn sort(&mut self, command: Command, jobs: &mut Vec<Box<dyn Job>>) {
        match command {
            Command::Job(job) => jobs.push(job),
            Command::Nudge => self.take_nudge(),
            Command::Close(answer) => self.closing.push(answer),
        }
    }

    /// Further nudges are not wanted before the next transaction, which does what this one asks for.
    fn take_nudge(&mut self) {
        self.nudge_taken = true;
        if !self.background.is_pending() {
            self.want_nudges();
        }
    }

    fn want_nudges(&mut self) {
        if std::mem::take(&mut self.nudge_taken) {
            self.nudged.store(false, Ordering::Release);
        }
    }

    /// Runs all of `jobs`, in one transaction unless one of them makes SQLite give it up.
    fn transact(&mut self, jobs: &mut Vec<Box<dyn Job>>) {
        let mut waiting = jobs.drain(..);
        loop {
            let mut done: Vec<Box<dyn Job>> = Vec::with_capacity(waiting.len());
            let mut background = None;
            let outcome = self.run_transaction(&mut waiting, &mut done, &mut background);
            let unwritable = outcome.as_ref().err().and_then(|error| unwritable(&self.path, error));
            let outcome = || {
                outcome.clone().map_err(|source| match unwritable {
                    Some(why) => Error::io("write to", &*self.path, io::Error::from_raw_os_error(why)),
                    None => Error::Database { path: self.path.to_path_buf(), source },
                })
            };
            self.background_failed = match background {
                Some(written) => {
                    let result = written.and_then(|()| outcome());
                    let failed = result.is_err();
                    self.background.finished(result);
                    failed
                }
                None => outcome().is_err(),
            };
            for job in done {
                job.finish(outcome());
            }
            if waiting.len() == 0 {
                return;
            }
        }
    }

    /// Moves jobs from `waiting` to `done`, each inside a savepoint, lets the background write and commits. Ends
    /// early when SQLite has rolled the whole transaction back by itself, as it may on a full disk.
    fn run_transaction(
        &mut self,
        waiting: &mut impl Iterator<Item = Box<dyn Job>>,
        done: &mut Vec<Box<dyn Job>>,
        background: &mut Option<Result<(), Error>>,
    ) -> Result<(), Arc<rusqlite::Error>> {
        if let Err(error) = execute(&self.connection, "BEGIN IMMEDIATE") {
            done.extend(waiting);
            return Err(error);
        }
        let result =
            self.run_all(waiting, done, background).and_then(|()| execute(&self.connection, "COMMIT"));
        if result.is_err() {
            roll_back(&self.connection);
        }
        result
    }

    fn run_all(
        &mut self,
        waiting: &mut impl Iterator<Item = Box<dyn Job>>,
        done: &mut Vec<Box<dyn Job>>,
        background: &mut Option<Result<(), Error>>,
    ) -> Result<(), Arc<rusqlite::Error>> {
        for mut job in waiting {
            let result = in_savepoint(&self.connection, |connection| job.run(connection, &self.path));
            done.push(job);
            result?;
        }
        if self.background.is_pending() {
            let written = background.insert(Ok(()));
            in_savepoint(&self.connection, |connection| {
                *written = self.background.write(connection).map_err(|error| error.at(&self.path));
                Ran::of(written)
            })?;
        }
        Ok(())
    }

    fn mind_the_log(&mut self) {
        self.commits += 1;
        if !self.commits.is_multiple_of(WAL_LOOK) {
            return;
        }
        let mut log = self.path.as_os_str().to_owned();
        log.push("-wal");
        let size = std::fs::metadata(&log).map_or(0, |file| file.len());
        if size > WAL_LIMIT
            && let Err(error) = checkpoint(&self.connection)
        {
            tracing::warn!(file = %self.path.display(), %error, bytes = size, "the write-ahead log could not be emptied");
        }
    }

    fn finish(self) {
        let result = checkpoint(&self.connection).map_err(Arc::new);
        drop(self.connection);
        for answer in self.closing {
            let result = result.clone();
            let _ = answer
                .send(result.map_err(|source| Error::Database { path: self.path.to_path_buf(), source }));
        }
    }
}

/// Undoes what `work` did if it failed. Fails when the transaction cannot go on.
fn in_savepoint(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Ran,
) -> Result<(), Arc<rusqlite::Error>> {
    execute(connection, "SAVEPOINT job")?;
    if let Ran::Failed(cause) = work(connection) {
        if connection.is_autocommit()
            && let Some(cause) = cause
        {
            return Err(cause);
        }
        execute(connection, "ROLLBACK TO job")?;
    }
    execute(connection, "RELEASE job")
}

/// Ends a transaction that failed, unless SQLite has ended it already.
fn roll_back(connection: &Connection) {
    if !connection.is_autocommit()
        && let Err(error) = execute(connection, "ROLLBACK")
    {
        tracing::error!(%error, "a failed transaction could not be rolled back");
    }
}

fn execute(connection: &Connection, sql: &str) -> Result<(), Arc<rusqlite::Error>> {
    connection.prepare_cached(sql).and_then(|mut statement| statement.execute([])).map(drop).map_err(Arc::new)
}

/// Brings the write-ahead log into the database file and cuts it to nothing, unless a reader stays in it.
fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(WAL_PATIENCE)?;
    let result = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    connection.busy_timeout(BUSY_TIMEOUT)?;
    result
}

#[cfg(test)]
mod tests;

//! How every store opens its database, and the one thread that writes to it.
//!
//! All stores use SQLite in WAL mode with `synchronous=FULL`: what a commit has answered is on the disk. A sync
//! costs milliseconds whatever it writes, so the [`Writer`] takes all jobs that wait into one transaction.

use crate::Error;
use messagepipeline::metric_names::COMMIT_SECONDS;
use rusqlite::{Connection, OpenFlags};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Half the CPU per message of SQLite's default of 4 KiB, because messages then share pages.
const PAGE_SIZE: u32 = 16 * 1024;
/// How long a statement waits for another connection's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Statements kept prepared per connection; more than any store has.
const STATEMENTS: usize = 128;
/// Page cache of a connection, in KiB.
const CACHE_KIB: i64 = 16 * 1024;
/// Jobs that may wait; a place costs a pointer.
const QUEUE_JOBS: usize = 1_024;
/// Bytes that the waiting jobs may hold together.
const QUEUE_BYTES: usize = 64 * 1024 * 1024;
/// Jobs in one transaction, so that none gets long.
const TRANSACTION_JOBS: usize = 1_024;
/// Size of the write-ahead log at which readers are waited for so that it can start again. Ordinary checkpoints
/// (every 1,000 pages, 16 MB) reuse the file as soon as no reader is in it; this is for when they never meet such
/// a moment.
const WAL_LIMIT: u64 = 128 * 1024 * 1024;
/// Commits between two looks at the size of the write-ahead log.
const WAL_LOOK: u32 = 64;

/// The kind of a database file and how its tables came to be.
#[derive(Debug)]
pub(crate) struct Schema {
    /// What people call it: `bus`, `warehouse`.
    pub(crate) kind: &'static str,
    /// SQLite's `application_id`, so that a file of another kind is recognised.
    pub(crate) application_id: i32,
    /// Whether free pages can be given back to the file system (`auto_vacuum=INCREMENTAL`); for stores that delete.
    pub(crate) shrinks: bool,
    /// SQL scripts; the n-th leads from format n-1 to format n. The format stands in `PRAGMA user_version`.
    pub(crate) migrations: &'static [&'static str],
}

impl Schema {
    fn format(&self) -> i64 {
        i64::try_from(self.migrations.len()).unwrap_or(i64::MAX)
    }
}

/// Opens `path` for writing; creates it and brings it to the newest format.
///
/// # Errors
/// When the file cannot be opened or is of another kind or a newer format.
pub(crate) fn open(path: &Path, schema: &Schema) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let located = |error: rusqlite::Error| Error::from(error).at(path);
    let mut connection = Connection::open_with_flags(path, flags).map_err(located)?;
    configure(&connection).map_err(located)?;
    let pages: i64 = connection.pragma_query_value(None, "page_count", |row| row.get(0)).map_err(located)?;
    if pages == 0 {
        lay_out(&connection, schema).map_err(located)?;
    }
    check_kind(&connection, path, schema)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(located)?;
    migrate(&mut connection, path, schema)?;
    Ok(connection)
}

/// Opens `path` for reading only, beside a process that may be writing it.
///
/// # Errors
/// When the file is missing, cannot be opened, or is of another kind or format.
pub(crate) fn open_reader(path: &Path, schema: &Schema) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let located = |error: rusqlite::Error| Error::from(error).at(path);
    let connection = Connection::open_with_flags(path, flags).map_err(located)?;
    configure(&connection).map_err(located)?;
    check_kind(&connection, path, schema)?;
    let found = format_of(&connection).map_err(located)?;
    if found != schema.format() {
        return Err(Error::Inconsistent {
            path: path.to_owned(),
            detail: format!(
                "format {found} where this version reads {}: `millstream up` brings it there",
                schema.format()
            ),
        });
    }
    Ok(connection)
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "foreign_keys", true)
}

/// What only an empty file can be told. The page size must come before WAL mode, both before the first table.
fn lay_out(connection: &Connection, schema: &Schema) -> rusqlite::Result<()> {
    connection.pragma_update(None, "page_size", PAGE_SIZE)?;
    if schema.shrinks {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "application_id", schema.application_id)
}

fn check_kind(connection: &Connection, path: &Path, schema: &Schema) -> Result<(), Error> {
    let id: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|error| Error::from(error).at(path))?;
    let found = format_of(connection).map_err(|error| Error::from(error).at(path))?;
    if id != schema.application_id {
        return Err(Error::ForeignFile { path: path.to_owned(), kind: schema.kind });
    }
    if found > schema.format() {
        return Err(Error::NewerFormat { path: path.to_owned(), found, supported: schema.format() });
    }
    Ok(())
}

fn format_of(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn migrate(connection: &mut Connection, path: &Path, schema: &Schema) -> Result<(), Error> {
    let located = |error: rusqlite::Error| Error::from(error).at(path);
    let found = format_of(connection).map_err(located)?;
    if found > 0 && found < schema.format() {
        tracing::info!(file = %path.display(), from = found, to = schema.format(), "bringing the database to the new format");
    }
    for (format, script) in (1..).zip(schema.migrations).skip_while(|(format, _)| *format <= found) {
        let step = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate);
        let step = step.map_err(located)?;
        // Another process may have been faster.
        if format_of(&step).map_err(located)? < format {
            step.execute_batch(script).map_err(located)?;
            step.pragma_update(None, "user_version", format).map_err(located)?;
        }
        step.commit().map_err(located)?;
    }
    Ok(())
}

/// The handle of a thread that owns a database's writing connection. Cloning shares it.
///
/// A job runs inside a savepoint: when it fails, only its own changes are undone. When the commit fails, every job
/// of the transaction fails with the commit's error, and the thread goes on with the next transaction.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Command>,
    bytes: Arc<Semaphore>,
    path: Arc<Path>,
    thread: Arc<parking_lot::Mutex<Option<JoinHandle<()>>>>,
}

enum Command {
    Job(Box<dyn Job>),
    Close(oneshot::Sender<Result<(), Error>>),
}

impl Writer {
    /// Starts the thread `name` on `connection`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn spawn(name: &'static str, connection: Connection) -> Result<Self, Error> {
        let path: Arc<Path> = PathBuf::from(connection.path().unwrap_or_default()).into();
        let (jobs, queue) = mpsc::channel(QUEUE_JOBS);
        let worker = Worker { name, connection, path: Arc::clone(&path), queue, commits: 0 };
        let thread = std::thread::Builder::new()
            .name(format!("{name}-writer"))
            .spawn(move || worker.run())
            .map_err(|error| Error::io("start the writer thread of", &*path, error))?;
        let thread = Arc::new(parking_lot::Mutex::new(Some(thread)));
        Ok(Self { jobs, bytes: Arc::new(Semaphore::new(QUEUE_BYTES)), path, thread })
    }

    /// Runs `job` in the writer's next transaction. The answer comes when its changes are durable.
    ///
    /// Waits for a place in the queue. Dropping the future while it waits undoes nothing and does nothing; dropping
    /// it later leaves the job to run.
    ///
    /// # Errors
    /// The job's own error, or the commit's.
    pub(crate) async fn call<T, E, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        E: Into<Error>,
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
        E: Into<Error>,
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        C: FnOnce(&T) + Send + 'static,
    {
        let closed = || Error::Closed { path: self.path.to_path_buf() };
        let weight = u32::try_from(bytes.min(QUEUE_BYTES)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.bytes).acquire_many_owned(weight).await.map_err(|_| closed())?;
        let (answer, answered) = oneshot::channel();
        let job = TypedJob { work: Some(job), result: None, committed, answer, _permit: permit };
        self.jobs.send(Command::Job(Box::new(job))).await.map_err(|_| closed())?;
        answered.await.map_err(|_| closed())?
    }

    /// Lets the queue run empty, writes everything into the database file itself and ends the thread. Later calls
    /// answer [`Error::Closed`].
    ///
    /// # Errors
    /// When the last checkpoint fails; nothing is lost then, the next start reads the write-ahead log.
    pub(crate) async fn close(&self) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        if self.jobs.send(Command::Close(answer)).await.is_err() {
            return Ok(());
        }
        let result = answered.await.unwrap_or(Ok(()));
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // It has answered as its last act; only its stack is left to go.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        result
    }

    /// The database file.
    #[allow(dead_code, reason = "stores name their file in errors")]
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

struct TypedJob<T, F, C> {
    work: Option<F>,
    result: Option<Result<T, Error>>,
    committed: C,
    answer: oneshot::Sender<Result<T, Error>>,
    _permit: OwnedSemaphorePermit,
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
        let ran = match &result {
            Ok(_) => Ran::Well,
            Err(Error::Database { source, .. }) => Ran::Failed(Some(Arc::clone(source))),
            Err(_) => Ran::Failed(None),
        };
        self.result = Some(result);
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
    queue: mpsc::Receiver<Command>,
    commits: u32,
}

impl Worker {
    fn run(mut self) {
        let seconds = metrics::histogram!(COMMIT_SECONDS, "database" => self.name);
        let mut jobs = Vec::new();
        let mut closing = Vec::new();
        while let Some(first) = self.queue.blocking_recv() {
            self.sort(first, &mut jobs, &mut closing);
            while jobs.len() < TRANSACTION_JOBS
                && let Ok(more) = self.queue.try_recv()
            {
                self.sort(more, &mut jobs, &mut closing);
            }
            if jobs.is_empty() {
                continue;
            }
            let started = Instant::now();
            self.transact(&mut jobs);
            seconds.record(started.elapsed());
            self.mind_the_log();
        }
        self.finish(closing);
    }

    fn sort(
        &mut self,
        command: Command,
        jobs: &mut Vec<Box<dyn Job>>,
        closing: &mut Vec<oneshot::Sender<Result<(), Error>>>,
    ) {
        match command {
            Command::Job(job) => jobs.push(job),
            Command::Close(answer) => {
                self.queue.close();
                closing.push(answer);
            }
        }
    }

    /// Runs all of `jobs`, in one transaction unless one of them makes SQLite give it up.
    fn transact(&mut self, jobs: &mut Vec<Box<dyn Job>>) {
        let mut waiting = jobs.drain(..);
        while waiting.len() > 0 {
            let mut done: Vec<Box<dyn Job>> = Vec::with_capacity(waiting.len());
            let outcome = run_transaction(&self.connection, &self.path, &mut waiting, &mut done);
            for job in done {
                job.finish(
                    outcome
                        .clone()
                        .map_err(|source| Error::Database { path: self.path.to_path_buf(), source }),
                );
            }
        }
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

    fn finish(self, closing: Vec<oneshot::Sender<Result<(), Error>>>) {
        let result = checkpoint(&self.connection).map_err(Arc::new);
        drop(self.connection);
        for answer in closing {
            let result = result.clone();
            let _ = answer
                .send(result.map_err(|source| Error::Database { path: self.path.to_path_buf(), source }));
        }
    }
}

/// Moves jobs from `waiting` to `done`, each inside a savepoint, and commits. Ends early when SQLite has rolled the
/// whole transaction back by itself, as it may on a full disk.
fn run_transaction(
    connection: &Connection,
    path: &Path,
    waiting: &mut impl Iterator<Item = Box<dyn Job>>,
    done: &mut Vec<Box<dyn Job>>,
) -> Result<(), Arc<rusqlite::Error>> {
    if let Err(error) = execute(connection, "BEGIN IMMEDIATE") {
        done.extend(waiting);
        return Err(error);
    }
    for mut job in waiting {
        let result = run_in_savepoint(connection, path, job.as_mut());
        done.push(job);
        if let Err(error) = result {
            roll_back(connection);
            return Err(error);
        }
    }
    let committed = execute(connection, "COMMIT");
    if committed.is_err() {
        roll_back(connection);
    }
    committed
}

/// Fails when the transaction cannot go on.
fn run_in_savepoint(
    connection: &Connection,
    path: &Path,
    job: &mut dyn Job,
) -> Result<(), Arc<rusqlite::Error>> {
    execute(connection, "SAVEPOINT job")?;
    if let Ran::Failed(cause) = job.run(connection, path) {
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

/// Brings the whole write-ahead log into the database file and cuts it to nothing; waits for readers.
fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::ErrorClass;

    const SCHEMA: Schema = Schema {
        kind: "test",
        application_id: 7,
        shrinks: false,
        migrations: &["CREATE TABLE t(n INTEGER PRIMARY KEY, body BLOB)"],
    };

    fn insert(connection: &Connection, n: i64) -> rusqlite::Result<usize> {
        connection.execute("INSERT INTO t VALUES (?1, zeroblob(4000))", [n])
    }

    fn count(path: &Path) -> i64 {
        let reader = open_reader(path, &SCHEMA).unwrap();
        reader.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap()
    }

    fn writer(path: &Path) -> Writer {
        Writer::spawn("test", open(path, &SCHEMA).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_failing_or_panicking_job_undoes_only_itself_and_an_answer_is_durable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let writer = writer(&path);
        let jobs = (0..50).map(|n| {
            let writer = writer.clone();
            async move {
                writer
                    .call(move |tx| -> Result<(), Error> {
                        insert(tx, n)?;
                        assert!(n % 10 != 3, "a bug in a job");
                        if n % 10 == 7 {
                            insert(tx, n)?;
                        }
                        Ok(())
                    })
                    .await
            }
        });
        let results = futures_util::future::join_all(jobs).await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 40);
        assert!(matches!(results[3], Err(Error::Panicked { .. })));
        assert_eq!(results[7].as_ref().unwrap_err().class(), ErrorClass::Permanent);
        assert_eq!(count(&path), 40);
        writer.close().await.unwrap();
        assert!(matches!(writer.call(|tx| insert(tx, 99)).await, Err(Error::Closed { .. })));
        assert_eq!(count(&path), 40);
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_for_a_person_and_work_goes_on_when_there_is_space() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let writer = writer(&path);
        let limit = |pages: i64| {
            writer.call(move |tx| tx.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(())))
        };
        limit(4).await.unwrap();
        let jobs = (0..100).map(|n| writer.call(move |tx| insert(tx, n)));
        let results = futures_util::future::join_all(jobs).await;
        let stored = results.iter().filter(|r| r.is_ok()).count();
        let error = results.iter().find_map(|r| r.as_ref().err()).unwrap();
        assert_eq!((error.class(), &*error.reason()), (ErrorClass::Configuration, "disk-full"), "{error}");
        assert_eq!(count(&path), i64::try_from(stored).unwrap());
        limit(1_000_000).await.unwrap();
        writer.call(|tx| insert(tx, 1_000)).await.unwrap();
        assert_eq!(count(&path), i64::try_from(stored).unwrap() + 1);
    }

    #[test]
    fn a_file_of_another_kind_or_of_a_newer_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let connection = open(&path, &SCHEMA).unwrap();
        let other = Schema { kind: "other", application_id: 8, ..SCHEMA };
        assert!(matches!(open(&path, &other), Err(Error::ForeignFile { .. })));
        connection.pragma_update(None, "user_version", 2).unwrap();
        assert!(matches!(open(&path, &SCHEMA), Err(Error::NewerFormat { found: 2, supported: 1, .. })));
    }

    #[test]
    fn an_older_file_is_brought_to_the_newest_format_and_keeps_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        insert(&open(&path, &SCHEMA).unwrap(), 1).unwrap();
        let newer = Schema { migrations: &["", "ALTER TABLE t ADD COLUMN more TEXT"], ..SCHEMA };
        let connection = open(&path, &newer).unwrap();
        let row: (i64, Option<String>) =
            connection.query_row("SELECT n, more FROM t", [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        assert_eq!(row, (1, None));
        assert_eq!(
            connection.pragma_query_value(None, "page_size", |row| row.get::<_, u32>(0)).unwrap(),
            PAGE_SIZE
        );
    }
}

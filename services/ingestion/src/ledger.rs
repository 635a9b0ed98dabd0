//! The ledger: the ids of all messages that ingestion has taken on, for the books.
//!
//! Where no bus keeps a history (Pub/Sub forgets what is acknowledged), the books compare the sinks with these files. A
//! file is a row of ids, 16 bytes each, and never changes once it is there but by growing; a process writes its own, so
//! replicas need no agreement. Between the ids stand marks of the time, at most one a second: a device's own id tells
//! none, and the books must know what is still on its way.
//!
//! A file is of one day (UTC) and is written on that day only; what was written longer ago than on the day before the
//! next id comes is taken along into that day's, because the clock may have been set. So one whose day is over can be
//! deleted whole, and is when it is older than `ingestion.ledger_keep`: the ledger shares its disk with the spool.
//!
//! Ids are written after their messages are durable and before they are acknowledged to the device. So an id that is
//! missing in the sinks is a loss, and a message whose id the ledger has not (the process died between the two) is
//! one whose device has no acknowledgement. Behind a spool there are two kinds of files: what the spool has on disk, and
//! what the bus has. What stands in the first alone is still in the spool. What is written outlives the process; it is
//! not synced for each batch, so a machine that loses its power may lose the last ids.

mod reading;

pub use self::reading::Ledgers;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use messagepipeline::{BatchOutcome, Clock, Message, MessageId, Publisher, Shutdown, Timestamp};
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Folder of the ledger below the data folder.
pub const LEDGER_FOLDER: &str = "ledger";

/// Bytes of an id, and of a mark.
const ID: usize = 16;
/// A mark begins so, and the time in microseconds follows. No id does: there the version of the UUID is zero.
const MARK: [u8; 8] = [0; 8];
/// Time between two marks.
const MARK_EVERY: Duration = Duration::from_secs(1);
/// How often old files are looked for.
const FORGET_EVERY: Duration = Duration::from_hours(1);
/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;
/// Characters of a day in a file's name, `2026-03-01`.
const DAY_LENGTH: usize = 10;

/// What a file's ids have reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// The bus.
    Bus,
    /// The spool on this machine.
    Spool,
}

impl Reached {
    /// Ending of the files.
    fn extension(self) -> &'static str {
        match self {
            Self::Bus => "ids",
            Self::Spool => "spooled",
        }
    }

    /// What the file at `path` tells, if it is one of a ledger.
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?;
        [Self::Bus, Self::Spool].into_iter().find(|kind| extension == kind.extension())
    }
}

/// Where and how a ledger is kept.
#[derive(Clone, Debug)]
pub struct LedgerOptions {
    /// Its folder, which is created when it is not there.
    pub folder: PathBuf,
    /// Unlike that of any other process that ever wrote there.
    pub name: MessageId,
    /// How long ids are kept at least. They go with the file of their day.
    pub keep: Duration,
}

/// A ledger of this process. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: LedgerOptions,
    reached: Reached,
    open: Mutex<Open>,
    clock: Arc<dyn Clock>,
    is_failing: AtomicBool,
}

/// The file of a day.
#[derive(Debug)]
struct Open {
    file: File,
    /// Days since 1970.
    day: i64,
    /// Bytes of the whole ids and marks in it.
    length: u64,
    /// Whether something may stand behind them.
    is_torn: bool,
    marked: Option<Timestamp>,
}

impl Open {
    /// Writes `ids`, behind a mark of the time where the last one is old.
    fn add(&mut self, ids: &[MessageId], now: Timestamp) -> io::Result<()> {
        self.mend()?;
        let is_marked = self.marked.is_some_and(|marked| marked <= now && now < marked.plus(MARK_EVERY));
        let mut bytes = Vec::with_capacity((ids.len() + 1) * ID);
        if !is_marked {
            bytes.extend_from_slice(&MARK);
            bytes.extend_from_slice(&now.as_micros().to_be_bytes());
        }
        bytes.extend(ids.iter().flat_map(|id| *id.as_bytes()));
        if let Err(error) = self.file.write_all(&bytes) {
            self.is_torn = true;
            // Readers are spared the part at once where that works; before the next ids it must.
            let _ = self.mend();
            return Err(error);
        }
        self.length += bytes.len() as u64;
        self.marked = if is_marked { self.marked } else { Some(now) };
        Ok(())
    }

    /// Moves the whole ids of the file `from` to the end of this one, which stays as it was when that fails. Cut short by
    /// a crash it leaves some in both, and an id counts once.
    fn take_over(&mut self, from: &Path) -> io::Result<()> {
        self.mend()?;
        let source = File::open(from)?;
        let length = whole(source.metadata()?.len());
        let moved = io::copy(&mut source.take(length), &mut self.file)
            .and_then(|_| self.file.sync_data())
            .and_then(|()| std::fs::remove_file(from));
        if moved.is_err() {
            self.file.set_len(self.length)?;
        }
        moved
    }

    /// Cuts off the part of an id that a failed write left: it would shift all that come after it.
    fn mend(&mut self) -> io::Result<()> {
        if self.is_torn {
            self.file.set_len(self.length)?;
            self.is_torn = false;
        }
        Ok(())
    }
}

/// Of so many bytes those of whole ids.
fn whole(bytes: u64) -> u64 {
    bytes - bytes % ID as u64
}

impl LedgerOptions {
    /// The file of the day `now`.
    fn path(&self, reached: Reached, now: Timestamp) -> PathBuf {
        self.folder.join(format!("{}_{}.{}", day(now), self.name, reached.extension()))
    }

    /// Opens the file of the day `now`, which is there already when the clock was set back.
    fn open(&self, reached: Reached, now: Timestamp) -> io::Result<Open> {
        let path = self.path(reached, now);
        let file = OpenOptions::new().append(true).create(true).open(&path)?;
        let written = file.metadata()?.len();
        let length = whole(written);
        let is_torn = written != length;
        Ok(Open { file, day: now.as_micros().div_euclid(DAY), length, is_torn, marked: None })
    }

    /// Deletes the files whose whole day is longer ago than `keep`. They are written no more, by nobody. One that cannot
    /// be deleted holds up no other.
    fn forget(&self, now: Timestamp) {
        let (mut deleted, mut failure) = (0, None);
        match self.old(now) {
            Ok(paths) => {
                for path in paths {
                    match std::fs::remove_file(&path) {
                        Ok(()) => deleted += 1,
                        // Another process of the folder was faster.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => failure = failure.or(Some(error)),
                    }
                }
            }
            Err(error) => failure = Some(error),
        }
        let folder = self.folder.display();
        if deleted > 0 {
            tracing::info!(%folder, files = deleted, "old files of the ledger were deleted");
        }
        if let Some(error) = failure {
            tracing::warn!(%folder, %error, "old files of the ledger cannot be deleted; that is tried again");
        }
    }

    /// The files to delete: of a day the spool's before the bus's, or what the bus has would seem to be in the spool.
    ///
    /// Their age is that at the end of the last day before this one on which something was written: a clock that is far
    /// ahead when a process starts deletes nothing.
    fn old(&self, now: Timestamp) -> io::Result<Vec<PathBuf>> {
        let mut paths = std::fs::read_dir(&self.folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()?;
        let today = day(now);
        let last = paths.iter().filter_map(|path| day_of(path)).filter(|day| *day < today.as_str()).max();
        let Some(last) = last.and_then(start_of) else { return Ok(Vec::new()) };
        let now = now.min(Timestamp::from_micros(last.as_micros() + DAY));
        let kept = i64::try_from(self.keep.as_micros()).unwrap_or(i64::MAX);
        let oldest = day(Timestamp::from_micros(now.as_micros().saturating_sub(kept).max(0)));
        paths.retain(|path| day_of(path).is_some_and(|day| day < oldest.as_str()));
        paths.sort_by_cached_key(|path| {
            (day_of(path).map(str::to_owned), Reached::of(path) == Some(Reached::Bus))
        });
        Ok(paths)
    }
}

/// The day of `time` in UTC, `2026-03-01`.
fn day(time: Timestamp) -> String {
    let mut text = time.to_string();
    text.truncate(DAY_LENGTH);
    text
}

/// The beginning of a day.
fn start_of(day: &str) -> Option<Timestamp> {
    format!("{day}T00:00:00Z").parse().ok()
}

/// The day of a file of the ledger.
fn day_of(path: &Path) -> Option<&str> {
    Reached::of(path)?;
    let (day, _) = path.file_name()?.to_str()?.split_once('_')?;
    (day.len() == DAY_LENGTH).then_some(day)
}

impl Ledger {
    /// Begins the file of this process and this day, and deletes what is older than is kept.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(options: LedgerOptions, reached: Reached, clock: Arc<dyn Clock>) -> io::Result<Self> {
        std::fs::create_dir_all(&options.folder)?;
        let now = clock.now();
        options.forget(now);
        let open = Mutex::new(options.open(reached, now)?);
        Ok(Self(Arc::new(Inner { options, reached, open, clock, is_failing: AtomicBool::new(false) })))
    }

    /// `publisher`, of which everything it has published is entered here.
    #[must_use]
    pub fn record(&self, publisher: Arc<dyn Publisher>) -> Arc<dyn Publisher> {
        Arc::new(Recorded { inner: publisher, ledger: self.clone() })
    }

    /// Adds `ids`. A ledger that cannot be written must not stop the messages: it is told once and goes on.
    fn add(&self, ids: &[MessageId]) {
        let written = self.write(ids);
        let was_failing = self.0.is_failing.swap(written.is_err(), Ordering::Relaxed);
        match written {
            Err(error) if !was_failing => {
                let folder = self.0.options.folder.display();
                tracing::error!(%folder, %error, "the ledger cannot be written; books will not know of these messages");
            }
            Ok(()) if was_failing => tracing::info!("the ledger is written again"),
            _ => {}
        }
    }

    fn write(&self, ids: &[MessageId]) -> io::Result<()> {
        let mut open = self.0.open.lock();
        let now = self.0.clock.now();
        let today = now.as_micros().div_euclid(DAY);
        if open.day != today {
            if today > open.day + 1 {
                self.0.bring_forward(open.day, now)?;
            }
            *open = self.0.options.open(self.0.reached, now)?;
        }
        open.add(ids, now)
    }

    /// Deletes old files of the folder, of whatever process and kind, until the shutdown begins. Not with the messages,
    /// because on a full disk none come until something was deleted.
    pub async fn forget_old(self, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(FORGET_EVERY);
        loop {
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                _ = ticks.tick() => {}
            }
            let ledger = self.clone();
            // A panic has said so itself; it costs disk and no message.
            let _ = tokio::task::spawn_blocking(move || ledger.forget()).await;
        }
    }

    /// Deletes what is older than is kept.
    fn forget(&self) {
        self.0.options.forget(self.0.clock.now());
    }
}

impl Inner {
    /// Makes the file of `day` the one of today. The clock may have been set only now, as on a device without a battery for
    /// it: then what was written by 1970 is of today, and would be forgotten at once.
    fn bring_forward(&self, day: i64, now: Timestamp) -> io::Result<()> {
        let (old, new) = (Timestamp::from_micros(day * DAY), self.options.path(self.reached, now));
        let old = self.options.path(self.reached, old);
        // The file of today is there already when the clock was set back and is right again.
        let moved = if new.try_exists()? {
            self.options.open(self.reached, now)?.take_over(&old)
        } else {
            std::fs::rename(&old, &new)
        };
        match moved {
            // Deleted by a person, or by another process whose clock was set before.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }
}

/// A publisher that enters what it has published in the ledger.
struct Recorded {
    inner: Arc<dyn Publisher>,
    ledger: Ledger,
}

impl Publisher for Recorded {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        let mut ids: Vec<MessageId> = messages.iter().map(|message| message.id).collect();
        async move {
            let outcome = self.inner.publish(messages).await;
            match &outcome {
                BatchOutcome::Done => {}
                BatchOutcome::Failed(_) => ids.clear(),
                BatchOutcome::Each(results) => {
                    let mut results = results.iter();
                    ids.retain(|_| results.next().is_some_and(Result::is_ok));
                }
            }
            if !ids.is_empty() {
                self.ledger.add(&ids);
            }
            outcome
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;

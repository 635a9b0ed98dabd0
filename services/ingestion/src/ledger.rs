//! The ledger: the ids of all messages that ingestion has taken on, for the books.
//!
//! Where no bus keeps a history (Pub/Sub forgets what is acknowledged), the books compare the sinks with these files. A
//! file is a row of ids, 16 bytes each, and never changes once it is there but by growing; a process writes its own, so
//! replicas need no agreement. Between the ids stand marks of the time, at most one a second: a device's own id tells
//! none, and the books must know what is still on its way.
//!
//! A file is of one day (UTC) and is written on that day only. So one whose day is over can be deleted whole, and is
//! when it is older than `ingestion.ledger_keep`: the ledger shares its disk with the spool.
//!
//! Ids are written after their messages are durable and before they are acknowledged to the device. So an id that is
//! missing in the sinks is a loss, and a message whose id the ledger has not (the process died between the two) is
//! one whose device has no acknowledgement. Behind a spool there are two kinds of files: what the spool has on disk, and
//! what the bus has. What stands in the first alone is still in the spool. What is written outlives the process; it is
//! not synced for each batch, so a machine that loses its power may lose the last ids.

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

    /// Cuts off the part of an id that a failed write left: it would shift all that come after it.
    fn mend(&mut self) -> io::Result<()> {
        if self.is_torn {
            self.file.set_len(self.length)?;
            self.is_torn = false;
        }
        Ok(())
    }
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
        let length = written - written % ID as u64;
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
        match std::fs::rename(self.options.path(self.reached, old), new) {
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

/// What ledgers hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledgers {
    /// The ids of everything that was taken on, sorted, each once.
    pub ids: Vec<MessageId>,
    /// Those of them that were published lately, sorted, each once.
    pub recent: Vec<MessageId>,
    /// Those of them that a spool has and the bus has not yet, sorted, each once.
    pub spooled: Vec<MessageId>,
    /// They hold everything since then: of each folder the first time it tells, and of these the last. Nothing where
    /// no folder tells one.
    pub since: Option<Timestamp>,
}

impl Ledgers {
    /// Reads the ledgers of `folders`. An id counts as recent when it was published at `recent_since` or later, by the
    /// time of the process that did. Needs 16 bytes of memory for each id, and as many again for what went through a
    /// spool.
    ///
    /// # Errors
    /// The folder, when it or a file in it cannot be read.
    pub fn read<'a>(
        folders: impl IntoIterator<Item = &'a Path>,
        recent_since: Timestamp,
    ) -> Result<Self, (&'a Path, io::Error)> {
        let mut ledgers = Self::default();
        for folder in folders {
            let first = ledgers.read_folder(folder, recent_since).map_err(|error| (folder, error))?;
            ledgers.since = ledgers.since.max(first);
        }
        for ids in [&mut ledgers.ids, &mut ledgers.recent, &mut ledgers.spooled] {
            ids.sort_unstable();
            ids.dedup();
        }
        let Self { ids, spooled, .. } = &mut ledgers;
        spooled.retain(|id| ids.binary_search(id).is_err());
        ids.extend_from_slice(spooled);
        ids.sort_unstable();
        Ok(ledgers)
    }

    /// The first time that the files of `folder` tell.
    fn read_folder(&mut self, folder: &Path, recent_since: Timestamp) -> io::Result<Option<Timestamp>> {
        let mut first: Option<Timestamp> = None;
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let Some(reached) = Reached::of(&path) else { continue };
            let mut bytes = Vec::new();
            match File::open(&path) {
                Ok(mut file) => file.read_to_end(&mut bytes)?,
                // Old files are deleted while ingestion runs.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            // An id that is being written stands there in part.
            let begins = self.add(bytes.as_chunks::<ID>().0, reached, recent_since);
            // A clock that was set later tells no time since which the ledger is whole.
            let begins = begins.max(day_of(&path).and_then(start_of).filter(|_| begins.is_some()));
            first = [first, begins].into_iter().flatten().min();
        }
        Ok(first)
    }

    /// The first time that `entries` tell.
    fn add(&mut self, entries: &[[u8; ID]], reached: Reached, recent_since: Timestamp) -> Option<Timestamp> {
        let mut is_recent = false;
        let mut first: Option<Timestamp> = None;
        for entry in entries {
            if let Some(time) = entry.strip_prefix(&MARK).and_then(|time| time.try_into().ok()) {
                let time = Timestamp::from_micros(i64::from_be_bytes(time));
                // What follows was published before the next mark is due.
                is_recent = time.plus(MARK_EVERY) >= recent_since;
                first = Some(first.map_or(time, |first| first.min(time)));
                continue;
            }
            let id = MessageId::from_bytes(*entry);
            match reached {
                Reached::Spool => self.spooled.push(id),
                Reached::Bus => {
                    self.ids.push(id);
                    if is_recent {
                        self.recent.push(id);
                    }
                }
            }
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::{IdGenerator, ManualClock, StageError, SystemClock};

    const NOON: i64 = 1_772_366_400_000_000;

    fn options(folder: &Path, keep: Duration) -> LedgerOptions {
        LedgerOptions { folder: folder.to_owned(), name: IdGenerator::default().next_id(), keep }
    }

    /// Of a device's own: it tells no time.
    fn id(number: u8) -> MessageId {
        MessageId::from_bytes([number, 0, 0, 0, 0, 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, number])
    }

    fn read(folder: &Path, recent_since: Timestamp) -> Ledgers {
        Ledgers::read([folder], recent_since).unwrap()
    }

    fn files(folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Refuses every second message.
    struct Half;

    impl Publisher for Half {
        fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
            let refused = || Err(StageError::permanent("refused", "for the test"));
            let results = (0..messages.len()).map(|at| if at % 2 == 0 { Ok(()) } else { refused() });
            std::future::ready(BatchOutcome::Each(results.collect())).boxed()
        }
    }

    #[tokio::test]
    async fn the_ledger_has_what_was_published_over_all_processes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let ids = IdGenerator::default();
        let mut expected = Vec::new();
        for _ in 0..2 {
            let options = options(folder.path(), Duration::from_hours(24));
            let ledger = Ledger::create(options, Reached::Bus, Arc::new(SystemClock)).unwrap();
            let publisher = ledger.record(Arc::new(Half));
            let messages: Vec<_> =
                (0..10).map(|_| Message::new(ids.next_id(), "x", Timestamp::default())).collect();
            expected.extend(messages.iter().step_by(2).map(|message| message.id));
            // What is published again is one id.
            publisher.publish(messages.clone()).await;
            publisher.publish(messages).await;
        }
        let torn = folder.path().join("torn.ids");
        std::fs::write(torn, [1; 7]).unwrap();
        expected.sort_unstable();
        let ledgers = read(folder.path(), Timestamp::default());
        assert_eq!((ledgers.ids, ledgers.recent, ledgers.spooled), (expected.clone(), expected, Vec::new()));
    }

    #[test]
    fn the_ledger_knows_what_was_published_lately_whatever_the_ids_tell() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Timestamp::from_micros(1_000_000_000));
        let options = options(folder.path(), Duration::from_hours(24));
        let ledger = Ledger::create(options, Reached::Bus, Arc::new(clock.clone())).unwrap();
        for number in 1..=4 {
            ledger.add(&[id(number)]);
            clock.advance(Duration::from_millis(600));
        }
        let recent = |micros| {
            let ledgers = read(folder.path(), Timestamp::from_micros(micros));
            assert_eq!(ledgers.ids, [1, 2, 3, 4].map(id));
            assert_eq!(ledgers.since, Some(Timestamp::from_micros(1_000_000_000)));
            ledgers.recent
        };
        assert_eq!(recent(1_000_000_000), [1, 2, 3, 4].map(id));
        assert_eq!(
            recent(1_001_100_000),
            [3, 4].map(id),
            "of what stands behind one mark all counts as its youngest"
        );
        assert_eq!(recent(1_900_000_000), []);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().metadata().unwrap().len(),
            6 * 16
        );
    }

    #[test]
    fn ids_are_forgotten_by_whole_days_and_never_those_of_a_day_that_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Timestamp::from_micros(NOON));
        let begin = || {
            let options = options(folder.path(), Duration::from_hours(48));
            Ledger::create(options, Reached::Bus, Arc::new(clock.clone())).unwrap()
        };
        let foreign = folder.path().join("2026-01-01_notes.txt");
        std::fs::write(&foreign, "of somebody else").unwrap();
        let ledger = begin();
        for number in 1..=4 {
            ledger.add(&[id(number)]);
            ledger.forget();
            clock.advance(Duration::from_hours(24));
        }
        let days =
            |names: Vec<String>| names.into_iter().map(|name| name[..10].to_owned()).collect::<Vec<_>>();
        // On the 4th at noon everything since the 2nd at noon is kept, and with it the rest of that day.
        assert_eq!(days(files(folder.path())), ["2026-01-01", "2026-03-02", "2026-03-03", "2026-03-04"]);
        assert_eq!(read(folder.path(), Timestamp::default()).ids, [2, 3, 4].map(id));
        assert_eq!(
            read(folder.path(), Timestamp::default()).since,
            Some(Timestamp::from_micros(NOON + DAY)),
            "books know since when they are whole"
        );
        clock.advance(Duration::from_hours(24 * 10));
        let ledger = begin();
        assert_eq!(
            days(files(folder.path())),
            ["2026-01-01", "2026-03-03", "2026-03-04", "2026-03-15"],
            "a start forgets too, but may be by a clock that is wrong"
        );
        clock.advance(Duration::from_hours(24));
        ledger.forget();
        assert_eq!(days(files(folder.path())), ["2026-01-01", "2026-03-15"]);
    }

    #[test]
    fn ids_that_were_written_before_the_clock_was_set_are_kept_like_those_of_that_day() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Timestamp::from_micros(10_000_000));
        let options = options(folder.path(), Duration::from_hours(48));
        let ledger = Ledger::create(options, Reached::Bus, Arc::new(clock.clone())).unwrap();
        ledger.add(&[id(1)]);
        clock.advance(Duration::from_micros(NOON as u64));
        ledger.forget();
        ledger.add(&[id(2)]);
        clock.advance(Duration::from_hours(24));
        ledger.add(&[id(3)]);
        ledger.forget();
        let kept = read(folder.path(), Timestamp::default());
        assert_eq!(kept.ids, [1, 2, 3].map(id));
        assert_eq!(kept.since, Some(Timestamp::from_micros(NOON / DAY * DAY)), "whole since that day");
        clock.advance(Duration::from_hours(72));
        ledger.add(&[id(4)]);
        clock.advance(Duration::from_hours(24));
        ledger.forget();
        assert_eq!(read(folder.path(), Timestamp::default()).ids, [3, 4].map(id));
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_cannot_be_deleted_holds_up_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Timestamp::from_micros(NOON));
        let options = options(folder.path(), Duration::from_hours(24));
        // What is no file cannot be deleted like one.
        std::fs::create_dir(folder.path().join("2026-01-01_a.ids")).unwrap();
        for name in ["2026-01-01_b.ids", "2026-01-01_b.spooled", "2026-01-02_b.ids", "2026-02-28_b.ids"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let old: Vec<_> = options.old(clock.now()).unwrap();
        assert!(old[0].ends_with("2026-01-01_b.spooled"), "{old:?}");
        options.forget(clock.now());
        assert_eq!(files(folder.path()), ["2026-01-01_a.ids", "2026-02-28_b.ids"]);
    }

    #[test]
    fn a_file_that_is_opened_again_goes_on_behind_its_last_whole_id() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Timestamp::from_micros(NOON));
        let options = options(folder.path(), Duration::ZERO);
        let mut first = options.open(Reached::Bus, clock.now()).unwrap();
        first.add(&[id(1)], clock.now()).unwrap();
        first.file.write_all(&[7; 5]).unwrap();
        let mut again = options.open(Reached::Bus, clock.now()).unwrap();
        again.add(&[id(2)], clock.now()).unwrap();
        options.forget(clock.now());
        assert_eq!(read(folder.path(), Timestamp::default()).ids, [1, 2].map(id));
    }

    #[test]
    fn a_torn_write_that_cannot_be_cut_off_at_once_shifts_no_later_id() {
        let folder = tempfile::tempdir().unwrap();
        let options = options(folder.path(), Duration::from_hours(24));
        let mut open = options.open(Reached::Bus, Timestamp::default()).unwrap();
        open.add(&[id(1)], Timestamp::default()).unwrap();
        open.file.write_all(&[7; 5]).unwrap();
        open.is_torn = true;
        let path = folder.path().join(&files(folder.path())[0]);
        let whole = std::mem::replace(&mut open.file, File::open(&path).unwrap());
        open.add(&[id(2)], Timestamp::default()).unwrap_err();
        assert!(open.is_torn, "nothing is written behind a part that could not be cut off");
        open.file = whole;
        open.add(&[id(3)], Timestamp::default()).unwrap();
        assert_eq!(read(folder.path(), Timestamp::default()).ids, [1, 3].map(id));
    }

    #[test]
    fn what_the_spool_has_and_the_bus_has_not_is_told_apart_over_all_processes() {
        let folder = tempfile::tempdir().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        for (reached, numbers) in [(Reached::Spool, 1..=4), (Reached::Bus, 1..=2), (Reached::Bus, 4..=5)] {
            let options = options(folder.path(), Duration::from_hours(24));
            let ledger = Ledger::create(options, reached, Arc::clone(&clock)).unwrap();
            ledger.add(&numbers.map(id).collect::<Vec<_>>());
        }
        let ledgers = read(folder.path(), Timestamp::default());
        assert_eq!(ledgers.ids, [1, 2, 3, 4, 5].map(id));
        assert_eq!(ledgers.spooled, [id(3)]);
    }
}

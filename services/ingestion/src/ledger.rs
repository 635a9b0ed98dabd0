//! The ledger: the ids of all messages that ingestion has published, for the books.
//!
//! Where no bus keeps a history (Pub/Sub forgets what is acknowledged), the books compare the sinks with these files. A
//! file is a row of ids, 16 bytes each, and never changes once it is there but by growing; a process writes one of
//! its own, so replicas need no agreement. Between the ids stand marks of the time, at most one a second: a device's own
//! id tells none, and the books must know what is still on its way.
//!
//! Ids are written after their messages are durable and before they are acknowledged to the device. So an id that is
//! missing in the sinks is a loss, and a message whose id the ledger has not (the process died between the two) is
//! one whose device has no acknowledgement. What is written outlives the process; it is not synced for each batch, so
//! a machine that loses its power may lose the last ids.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use messagepipeline::{BatchOutcome, Clock, Message, MessageId, Publisher, Timestamp};
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Folder of the ledger below the data folder.
pub const LEDGER_FOLDER: &str = "ledger";

/// Ending of the files.
const EXTENSION: &str = "ids";
/// Bytes of an id, and of a mark.
const ID: usize = 16;
/// A mark begins so, and the time in microseconds follows. No id does: there the version of the UUID is zero.
const MARK: [u8; 8] = [0; 8];
/// Time between two marks.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// The ledger of this process. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    open: Mutex<Open>,
    clock: Arc<dyn Clock>,
    is_failing: AtomicBool,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Bytes of the whole ids and marks in it.
    length: u64,
    marked: Option<Timestamp>,
}

impl Open {
    /// Writes `ids`, behind a mark of the time where the last one is old.
    fn add(&mut self, ids: &[MessageId], now: Timestamp) -> io::Result<()> {
        let is_marked = self.marked.is_some_and(|marked| marked <= now && now < marked.plus(MARK_EVERY));
        let mut bytes = Vec::with_capacity((ids.len() + 1) * ID);
        if !is_marked {
            bytes.extend_from_slice(&MARK);
            bytes.extend_from_slice(&now.as_micros().to_be_bytes());
        }
        bytes.extend(ids.iter().flat_map(|id| *id.as_bytes()));
        match self.file.write_all(&bytes) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                self.marked = if is_marked { self.marked } else { Some(now) };
                Ok(())
            }
            Err(error) => {
                // A part of an id would shift all that come after it. Where even this fails, the next one tries again.
                let _ = self.file.set_len(self.length);
                Err(error)
            }
        }
    }
}

impl Ledger {
    /// Begins the file of this process in `folder`, which is created when it is not there. `name` is unlike that of
    /// any other process that ever wrote there.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(folder: &Path, name: MessageId, clock: Arc<dyn Clock>) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("{name}.{EXTENSION}"));
        let file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        let open = Mutex::new(Open { file, length: 0, marked: None });
        Ok(Self(Arc::new(Inner { path, open, clock, is_failing: AtomicBool::new(false) })))
    }

    /// `publisher`, of which everything it has published is entered here.
    #[must_use]
    pub fn record(&self, publisher: Arc<dyn Publisher>) -> Arc<dyn Publisher> {
        Arc::new(Recorded { inner: publisher, ledger: self.clone() })
    }

    /// Adds `ids`. A ledger that cannot be written must not stop the messages: it is told once and goes on.
    fn add(&self, ids: &[MessageId]) {
        let now = self.0.clock.now();
        let written = self.0.open.lock().add(ids, now);
        let was_failing = self.0.is_failing.swap(written.is_err(), Ordering::Relaxed);
        match written {
            Err(error) if !was_failing => {
                let file = self.0.path.display();
                tracing::error!(%file, %error, "the ledger cannot be written; books will not know of these messages");
            }
            Ok(()) if was_failing => tracing::info!("the ledger is written again"),
            _ => {}
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
    /// The ids of everything that was published, sorted, each once.
    pub ids: Vec<MessageId>,
    /// Those of them that were published lately, sorted, each once.
    pub recent: Vec<MessageId>,
}

impl Ledgers {
    /// Reads the ledgers of `folder` too. An id counts as recent when it was published at `since` or later, by the time
    /// of the process that did. Needs 16 bytes of memory for each id.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(&mut self, folder: &Path, since: Timestamp) -> io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                let mut bytes = Vec::new();
                File::open(&path)?.read_to_end(&mut bytes)?;
                // An id that is being written stands there in part.
                self.add(bytes.as_chunks::<ID>().0, since);
            }
        }
        for ids in [&mut self.ids, &mut self.recent] {
            ids.sort_unstable();
            ids.dedup();
        }
        Ok(())
    }

    fn add(&mut self, entries: &[[u8; ID]], since: Timestamp) {
        let mut is_recent = false;
        for entry in entries {
            if let Some(time) = entry.strip_prefix(&MARK).and_then(|time| time.try_into().ok()) {
                // What follows was published before the next mark is due.
                is_recent = Timestamp::from_micros(i64::from_be_bytes(time)).plus(MARK_EVERY) >= since;
                continue;
            }
            let id = MessageId::from_bytes(*entry);
            self.ids.push(id);
            if is_recent {
                self.recent.push(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::{IdGenerator, ManualClock, StageError, SystemClock};

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
            let ledger = Ledger::create(folder.path(), ids.next_id(), Arc::new(SystemClock)).unwrap();
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
        let mut ledgers = Ledgers::default();
        ledgers.read(folder.path(), Timestamp::default()).unwrap();
        assert_eq!(ledgers, Ledgers { ids: expected.clone(), recent: expected });
    }

    #[test]
    fn the_ledger_knows_what_was_published_lately_whatever_the_ids_tell() {
        let folder = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Timestamp::from_micros(1_000_000_000));
        let ledger =
            Ledger::create(folder.path(), IdGenerator::default().next_id(), Arc::new(clock.clone())).unwrap();
        // Ids of devices tell no time.
        let id = |number: u8| {
            MessageId::from_bytes([number, 0, 0, 0, 0, 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, number])
        };
        for number in 1..=4 {
            ledger.add(&[id(number)]);
            clock.advance(Duration::from_millis(600));
        }
        let read = |micros| {
            let mut ledgers = Ledgers::default();
            ledgers.read(folder.path(), Timestamp::from_micros(micros)).unwrap();
            assert_eq!(ledgers.ids, [1, 2, 3, 4].map(id));
            ledgers.recent
        };
        assert_eq!(read(1_000_000_000), [1, 2, 3, 4].map(id));
        assert_eq!(
            read(1_001_100_000),
            [3, 4].map(id),
            "of what stands behind one mark all counts as its youngest"
        );
        assert_eq!(read(1_900_000_000), []);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().metadata().unwrap().len(),
            6 * 16
        );
    }
}

//! The ledger: the ids of all messages that ingestion has published, for the books.
//!
//! Where no bus keeps a history (Pub/Sub forgets what is acknowledged), the books compare the sinks with these files. A
//! file is a row of ids, 16 bytes each, and never changes once it is there but by growing; a process writes one of
//! its own, so replicas need no agreement.
//!
//! Ids are written after their messages are durable and before they are acknowledged to the device. So an id that is
//! missing in the sinks is a loss, and a message whose id the ledger has not (the process died between the two) is
//! one whose device has no acknowledgement. What is written outlives the process; it is not synced for each batch, so
//! a machine that loses its power may lose the last ids.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use messagepipeline::{BatchOutcome, Message, MessageId, Publisher};
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Folder of the ledger below the data folder.
pub const LEDGER_FOLDER: &str = "ledger";

/// Ending of the files.
const EXTENSION: &str = "ids";
/// Bytes of an id.
const ID: usize = 16;

/// The ledger of this process. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    /// With the bytes of the whole ids in it.
    file: Mutex<(File, u64)>,
    is_failing: AtomicBool,
}

impl Ledger {
    /// Begins the file of this process in `folder`, which is created when it is not there. `name` is unlike that of
    /// any other process that ever wrote there.
    ///
    /// # Errors
    /// When the file cannot be created.
    pub fn create(folder: &Path, name: MessageId) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let path = folder.join(format!("{name}.{EXTENSION}"));
        let file = OpenOptions::new().append(true).create_new(true).open(&path)?;
        Ok(Self(Arc::new(Inner { path, file: Mutex::new((file, 0)), is_failing: AtomicBool::new(false) })))
    }

    /// `publisher`, of which everything it has published is entered here.
    #[must_use]
    pub fn record(&self, publisher: Arc<dyn Publisher>) -> Arc<dyn Publisher> {
        Arc::new(Recorded { inner: publisher, ledger: self.clone() })
    }

    /// Adds `ids`. A ledger that cannot be written must not stop the messages: it is told once and goes on.
    fn add(&self, ids: &[MessageId]) {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| *id.as_bytes()).collect();
        let written = {
            let mut file = self.0.file.lock();
            let written = file.0.write_all(&bytes);
            match written {
                Ok(()) => file.1 += bytes.len() as u64,
                // A part of an id would shift all that come after it. Where even this fails, the next one tries again.
                Err(_) => drop(file.0.set_len(file.1)),
            }
            written
        };
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

/// All ids in the ledgers of `folder`, sorted, each once. Needs 16 bytes of memory for each.
///
/// # Errors
/// When a file cannot be read.
pub fn read_ledgers(folder: &Path) -> io::Result<Vec<MessageId>> {
    let mut ids = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            let mut bytes = Vec::new();
            File::open(&path)?.read_to_end(&mut bytes)?;
            // An id that is being written stands there in part.
            ids.extend(bytes.as_chunks::<ID>().0.iter().map(|id| MessageId::from_bytes(*id)));
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::{IdGenerator, StageError, Timestamp};

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
            let ledger = Ledger::create(folder.path(), ids.next_id()).unwrap();
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
        assert_eq!(read_ledgers(folder.path()).unwrap(), expected);
    }
}

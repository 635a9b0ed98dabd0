//! The list of acknowledged lines.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Batches of numbers that may wait for the disk; then the connections wait.
const QUEUE: usize = 64;

/// The list while it is written: where numbers go, and how writing ended.
pub(super) struct AckedList {
    pub(super) numbers: mpsc::Sender<Vec<u64>>,
    pub(super) written: JoinHandle<io::Result<()>>,
}

/// Writes numbers to `path`, one a line, each batch with one write: a process killed at any instant leaves only
/// numbers of messages that had their PUBACK. Ends when all senders are gone.
pub(super) fn write_to(path: &Path) -> io::Result<AckedList> {
    let mut file = File::create(path)?;
    let (numbers, mut batches) = mpsc::channel::<Vec<u64>>(QUEUE);
    let written = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        while let Some(batch) = batches.blocking_recv() {
            text.clear();
            append(&mut text, &batch);
            while let Ok(batch) = batches.try_recv() {
                append(&mut text, &batch);
            }
            file.write_all(text.as_bytes())?;
        }
        Ok(())
    });
    Ok(AckedList { numbers, written })
}

fn append(text: &mut String, batch: &[u64]) {
    for number in batch {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{number}");
    }
}

//! Replay: archived objects become messages again, in order, for a topic or a broker.
//!
//! ```text
//!  ObjectReader ─► objects of one day ─► those whose times meet ─► by first receipt, then id ─► Publisher
//!                  (a day's objects are in its folder)  in memory      chunks, paced, retried
//! ```
//!
//! Messages come by the time of their first receipt and, at the same time, by id, over all objects of the selection:
//! so every device's messages come in the order in which they were received. An object belongs to one day, so a day is
//! played before the next one is looked at; within a day an object is opened when the play gets to its first message,
//! and its messages leave memory as they are played. In memory are therefore the messages of objects whose times
//! overlap, which is about what the archiver held in its groups; [`ReplayOptions::memory`] bounds it.

mod merge;
mod publish;
mod selection;

pub use selection::{Day, Selection};

use crate::{Error, ObjectReader, StoredObject};
use merge::Merge;
use messagepipeline::{
    Enrichment, ErrorClass, IdGenerator, Message, Publisher, Shutdown, StageError, Timestamp, names,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Messages, and bytes of them, published together.
const CHUNK_MESSAGES: usize = 256;
const CHUNK_BYTES: usize = 1 << 20;
/// Problems that are named.
const NAMED: usize = 100;
/// Objects of one day that can be put in order.
const MAX_OBJECTS: usize = 500_000;

/// How messages are replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayOptions {
    /// Give every message a new id. With the ids it had, whatever holds the message already takes it as a repetition.
    pub new_ids: bool,
    /// Keep what enrichment added. Without it a message is as it was before that stage.
    pub enrichment: bool,
    /// Most bytes of messages in memory.
    pub memory: usize,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self { new_ids: false, enrichment: true, memory: 512 << 20 }
    }
}

/// What was done so far. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct ReplayProgress(Arc<Mutex<(ReplayCounts, Vec<String>)>>);

/// Counters of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayCounts {
    /// Objects read.
    pub objects: u64,
    /// Messages published.
    pub published: u64,
    /// Messages that the publisher refused for good.
    pub refused: u64,
    /// Lines of a message that had come already.
    pub repeated: u64,
    /// Objects that are damaged, and were played up to the damage or not at all.
    pub damaged: u64,
    /// Objects whose name does not begin with a day: not the archive's.
    pub foreign: u64,
}

impl ReplayProgress {
    /// The counters now.
    #[must_use]
    pub fn counts(&self) -> ReplayCounts {
        self.0.lock().0
    }

    /// The first hundred problems, for people.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        self.0.lock().1.clone()
    }

    fn count(&self, change: impl FnOnce(&mut ReplayCounts)) {
        change(&mut self.0.lock().0);
    }

    fn problem(&self, problem: String, change: impl FnOnce(&mut ReplayCounts)) {
        let mut state = self.0.lock();
        change(&mut state.0);
        if state.1.len() < NAMED {
            state.1.push(problem);
        }
    }
}

/// How a replay ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// Everything selected was played.
    Complete,
    /// The shutdown came first. What was published before is.
    Stopped,
}

/// One replay.
pub struct Replay<'a, P> {
    reader: &'a dyn ObjectReader,
    publisher: &'a dyn Publisher,
    selection: &'a Selection,
    options: ReplayOptions,
    pace: P,
    ids: IdGenerator,
    start: Instant,
    progress: ReplayProgress,
    shutdown: &'a Shutdown,
}

impl<P> std::fmt::Debug for Replay<'_, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let selection = &self.selection;
        f.debug_struct("Replay")
            .field("selection", selection)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<'a, P: FnMut(Timestamp) -> Duration> Replay<'a, P> {
    /// A replay of what `selection` names in the archive of `reader` to `publisher`. `pace` says for each message, by
    /// the time of its first receipt, when it is due, counted from the beginning; messages that are due are published
    /// together.
    #[must_use]
    pub fn new(
        reader: &'a dyn ObjectReader,
        publisher: &'a dyn Publisher,
        selection: &'a Selection,
        options: ReplayOptions,
        pace: P,
        shutdown: &'a Shutdown,
    ) -> Self {
        Self {
            reader,
            publisher,
            selection,
            options,
            pace,
            ids: IdGenerator::default(),
            start: Instant::now(),
            progress: ReplayProgress::default(),
            shutdown,
        }
    }

    /// Its counters, to be watched while it runs.
    #[must_use]
    pub fn progress(&self) -> ReplayProgress {
        self.progress.clone()
    }

    /// Plays. A damaged object and a refused message are counted and named, and the rest goes on.
    ///
    /// # Errors
    /// When the archive cannot be listed or read, when more messages overlap than memory may hold, or when the
    /// publisher cannot go on.
    pub async fn run(mut self) -> Result<Replayed, StageError> {
        self.start = Instant::now();
        let (range, mut page) = (self.selection.range(), None);
        let (mut day, mut objects): (String, Vec<StoredObject>) = (String::new(), Vec::new());
        loop {
            let listed = publish::retried(|| self.reader.list(&range, page.clone())).await?;
            for object in listed.objects {
                let Some(of) = self.selection.day_of(&object.name) else {
                    self.progress.count(|counts| counts.foreign += 1);
                    continue;
                };
                if of != day {
                    let finished = std::mem::replace(&mut day, of.to_owned());
                    if !self.play_day(&finished, std::mem::take(&mut objects)).await? {
                        return Ok(Replayed::Stopped);
                    }
                }
                if self.selection.wants(&object.name) {
                    objects.push(object);
                }
                if objects.len() > MAX_OBJECTS {
                    return Err(too_many(&day));
                }
            }
            page = listed.next;
            if page.is_none() {
                let all = self.play_day(&day, objects).await?;
                return Ok(if all { Replayed::Complete } else { Replayed::Stopped });
            }
        }
    }

    /// Plays the objects of one day. Says whether all of them were played.
    async fn play_day(&mut self, day: &str, objects: Vec<StoredObject>) -> Result<bool, StageError> {
        let (reader, progress) = (self.reader, self.progress.clone());
        let selection = self.selection;
        let mut merge = Merge::new(reader, selection, day, self.options.memory, objects, progress).await?;
        let mut chunk = Vec::with_capacity(CHUNK_MESSAGES);
        let mut bytes = 0;
        while let Some(message) = merge.next().await? {
            let due = self.start.checked_add((self.pace)(message.publish_time));
            let full = chunk.len() >= CHUNK_MESSAGES || bytes >= CHUNK_BYTES;
            let waits = due.is_none_or(|due| due > Instant::now());
            if full || (waits && !chunk.is_empty()) {
                self.publish(std::mem::take(&mut chunk)).await?;
                bytes = 0;
            }
            if self.shutdown.has_begun() || (waits && !self.wait_until(due).await) {
                self.publish(chunk).await?;
                return Ok(false);
            }
            bytes += message.weight();
            chunk.push(self.again(message));
        }
        self.publish(chunk).await?;
        Ok(true)
    }

    /// Whether the time came before the shutdown.
    async fn wait_until(&self, due: Option<Instant>) -> bool {
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shutdown.begun() => false,
            () = wait => true,
        }
    }

    /// The message as it is published.
    fn again(&self, mut message: Message) -> Message {
        if self.options.new_ids {
            message.id = self.ids.next_id();
        }
        if !self.options.enrichment {
            message.enrichment = Enrichment::none();
            let kept = message.attributes.iter().filter(|(name, _)| *name != names::ENRICHMENT_STATUS);
            message.attributes = kept.collect();
        }
        message
    }

    async fn publish(&self, chunk: Vec<Message>) -> Result<(), StageError> {
        if chunk.is_empty() {
            return Ok(());
        }
        publish::publish(self.publisher, chunk, &self.progress).await
    }
}

fn too_many(day: &str) -> StageError {
    Error::Store {
        action: "replaying",
        place: day.to_owned(),
        reason: "replay-objects",
        class: ErrorClass::Configuration,
        detail: format!(
            "the day has more than {MAX_OBJECTS} objects; select locations and replay them in parts"
        ),
    }
    .into()
}

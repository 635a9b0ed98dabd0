//! The messages of one day in order.

use super::{ReplayProgress, Selection, publish};
use crate::{Error, ObjectReader, StoredObject, decode_line, decompress};
use bytes::Bytes;
use messagepipeline::{ErrorClass, Message, MessageId, StageError, Timestamp};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{BufRead, BufReader};

/// Opens objects as their first message's turn comes, and hands out messages by time and id.
pub(super) struct Merge<'a> {
    reader: &'a dyn ObjectReader,
    selection: &'a Selection,
    day: String,
    memory: usize,
    /// By first receipt of their first message.
    waiting: VecDeque<(Timestamp, StoredObject)>,
    open: BinaryHeap<Reverse<Placed>>,
    bytes: usize,
    last: Option<MessageId>,
    progress: ReplayProgress,
}

/// A message, ordered by time and id.
struct Placed(Message);

impl Placed {
    fn place(&self) -> (Timestamp, MessageId) {
        (self.0.publish_time, self.0.id)
    }
}

impl PartialEq for Placed {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Placed {}

impl PartialOrd for Placed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Placed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place().cmp(&other.place())
    }
}

impl<'a> Merge<'a> {
    /// The messages of `objects`, which are those of `day`.
    ///
    /// # Errors
    /// When an object that does not say its times cannot be read.
    pub(super) async fn new(
        reader: &'a dyn ObjectReader,
        selection: &'a Selection,
        day: &str,
        memory: usize,
        objects: Vec<StoredObject>,
        progress: ReplayProgress,
    ) -> Result<Self, StageError> {
        let mut merge = Self {
            reader,
            selection,
            day: day.to_owned(),
            memory,
            waiting: VecDeque::new(),
            open: BinaryHeap::new(),
            bytes: 0,
            last: None,
            progress,
        };
        let mut waiting = Vec::with_capacity(objects.len());
        for object in objects {
            let first = match object.contents {
                Some(contents) => Some(contents.first_received),
                None => {
                    let (messages, _) = merge.read(&object.name).await?;
                    messages.iter().map(|message| message.publish_time).min()
                }
            };
            // One without a readable message is opened all the same, to be counted as damaged.
            waiting.push((first.unwrap_or_default(), object));
        }
        waiting.sort_by(|one, other| (one.0, &one.1.name).cmp(&(other.0, &other.1.name)));
        merge.waiting = waiting.into();
        Ok(merge)
    }

    /// The next message that is wanted.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, StageError> {
        loop {
            while let Some((first, _)) = self.waiting.front()
                && self.open.peek().is_none_or(|Reverse(next)| *first <= next.0.publish_time)
            {
                let Some((_, object)) = self.waiting.pop_front() else { break };
                self.open(&object).await?;
            }
            let Some(Reverse(Placed(message))) = self.open.pop() else { return Ok(None) };
            self.bytes -= message.weight();
            if self.last.replace(message.id) == Some(message.id) {
                self.progress.count(|counts| counts.repeated += 1);
                continue;
            }
            return Ok(Some(message));
        }
    }

    async fn open(&mut self, object: &StoredObject) -> Result<(), StageError> {
        let (messages, damage) = self.read(&object.name).await?;
        self.progress.count(|counts| counts.objects += 1);
        if let Some(damage) = damage {
            let problem = format!("{}: {damage}", self.reader.place(&object.name));
            self.progress.problem(problem, |counts| counts.damaged += 1);
        }
        for message in messages {
            self.bytes += message.weight();
            self.open.push(Reverse(Placed(message)));
        }
        if self.bytes > self.memory { Err(too_much(&self.day, self.memory)) } else { Ok(()) }
    }

    /// The wanted messages of an object, up to what is damaged in it.
    async fn read(&self, name: &str) -> Result<(Vec<Message>, Option<Error>), StageError> {
        let bytes = publish::retried(|| self.reader.read(name)).await?;
        let (owned, selection) = (name.to_owned(), self.selection.clone());
        let decoded = tokio::task::spawn_blocking(move || decode(&owned, &bytes, &selection)).await;
        decoded.map_err(|error| StageError::transient("archive-task", error.to_string()))
    }
}

fn decode(name: &str, bytes: &Bytes, selection: &Selection) -> (Vec<Message>, Option<Error>) {
    let mut messages = Vec::new();
    let text = match decompress(name, &bytes[..]) {
        Ok(text) => text,
        Err(error) => return (messages, Some(error)),
    };
    let (mut text, mut line) = (BufReader::new(text), Vec::new());
    loop {
        line.clear();
        match text.read_until(b'\n', &mut line) {
            Ok(0) => return (messages, None),
            Ok(_) => {}
            Err(source) => {
                return (messages, Some(Error::Compression { action: "decompressing", source }));
            }
        }
        match decode_line(&line) {
            Ok(archived) => {
                let message = archived.into_message();
                if selection.takes(&message) {
                    messages.push(message);
                }
            }
            Err(error) => return (messages, Some(error)),
        }
    }
}

fn too_much(day: &str, memory: usize) -> StageError {
    Error::Store {
        action: "replaying",
        place: day.to_owned(),
        reason: "replay-memory",
        class: ErrorClass::Configuration,
        detail: format!(
            "messages of objects whose times overlap take more than {} MiB: select locations and replay them in parts, or allow more",
            memory >> 20
        ),
    }
    .into()
}

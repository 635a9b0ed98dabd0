//! What is published: recordings, or anything else that makes messages.

use crate::pointer::Pointers;
use crate::rate::{Pacer, Rate, record_time};
use crate::recording::{Line, ReadProgress, Recording, RecordingError};
use crate::template::TopicTemplate;
use bytes::Bytes;
use messagepipeline::{Attributes, Timestamp, names};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// One message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Its running number, from 1; lines that are not sent have one too.
    pub number: u64,
    /// When it is due, counted from the start of the feed.
    pub due: Duration,
    /// Its topic.
    pub topic: Bytes,
    /// Its payload.
    pub payload: Bytes,
    /// What it was when it came before.
    pub origin: Option<Box<Origin>>,
}

/// What a message that came before says about itself. MQTT 3.1.1 has no place for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Its attributes.
    pub attributes: Attributes,
    /// When it was first received.
    pub received_at: Timestamp,
}

impl Publication {
    /// A message that never came before.
    #[must_use]
    pub fn new(number: u64, due: Duration, topic: Bytes, payload: Bytes) -> Self {
        Self { number, due, topic, payload, origin: None }
    }

    /// Bytes of memory it stands for.
    #[must_use]
    pub fn weight(&self) -> usize {
        let origin = self.origin.as_ref().map_or(0, |origin| origin.attributes.size());
        self.topic.len() + self.payload.len() + origin
    }

    /// Messages with the same one are published in order: those of a device, where it is known, or else of a topic.
    #[must_use]
    pub fn order_key(&self) -> &[u8] {
        let device = self.origin.as_ref().and_then(|origin| origin.attributes.get(names::DEVICE_ID));
        device.map_or(&self.topic[..], str::as_bytes)
    }
}

/// What a source has next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A message to publish.
    Publish(Publication),
    /// A line that cannot be published. It is reported, and the feed goes on.
    Skip {
        /// Its running number.
        number: u64,
        /// What is wrong with it.
        reason: String,
    },
}

/// Makes messages, on a thread of its own. It may wait for input and for the processor.
pub trait Source: Send + 'static {
    /// The next item, or none at the end.
    ///
    /// # Errors
    /// When it cannot go on. What was made before is still published.
    fn next(&mut self) -> Result<Option<Item>, RecordingError>;

    /// Whether the next item needs no waiting for input. What was made before is passed on when it does.
    fn is_ready(&mut self) -> bool {
        true
    }

    /// How its messages are called in reports.
    fn numbering(&self) -> Numbering {
        Numbering::default()
    }
}

/// Finds file and line of a running number. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Numbering(Arc<Mutex<Vec<(u64, String)>>>);

impl Numbering {
    /// `FILE:LINE`, or `message N` where there are no files.
    #[must_use]
    pub fn place(&self, number: u64) -> String {
        let files = self.0.lock();
        match files.iter().rev().find(|(before, _)| *before < number) {
            Some((before, name)) => format!("{name}:{}", number - before),
            None => format!("message {number}"),
        }
    }

    fn begin_file(&self, before: u64, name: &str) {
        self.0.lock().push((before, name.to_owned()));
    }
}

/// Recordings, one after another.
///
/// A line's running number counts the lines of all recordings before it, blank ones included; with one recording it is
/// the line number.
#[derive(Debug)]
pub struct Playlist {
    waiting: VecDeque<PathBuf>,
    current: Option<Recording>,
    /// Lines, and bytes on disk, of the recordings already finished.
    lines_before: u64,
    bytes_before: u64,
    topic: TopicTemplate,
    times: Pointers,
    pacer: Pacer,
    numbering: Numbering,
    progress: ReadProgress,
    scratch: String,
}

impl Playlist {
    /// A playlist of `files` in this order; `-` is standard input.
    ///
    /// # Errors
    /// When one of the files cannot be opened.
    pub fn new(
        files: Vec<PathBuf>,
        topic: TopicTemplate,
        rate: Rate,
        times: Pointers,
    ) -> Result<Self, RecordingError> {
        let mut total = Some(0);
        for path in &files {
            total = size_of(path)?.and_then(|size| Some(total? + size));
        }
        Ok(Self {
            waiting: files.into(),
            current: None,
            lines_before: 0,
            bytes_before: 0,
            topic,
            times,
            pacer: Pacer::new(rate),
            numbering: Numbering::default(),
            progress: ReadProgress::new(total),
            scratch: String::new(),
        })
    }

    /// How much of all recordings has been read.
    #[must_use]
    pub fn progress(&self) -> ReadProgress {
        self.progress.clone()
    }

    fn next_line(&mut self) -> Result<Option<Line>, RecordingError> {
        loop {
            let Some(recording) = &mut self.current else {
                let Some(path) = self.waiting.pop_front() else { return Ok(None) };
                let recording = Recording::open(&path)?;
                self.numbering.begin_file(self.lines_before, recording.name());
                self.pacer.begin_recording();
                self.current = Some(recording);
                continue;
            };
            let line = recording.next_line()?;
            let consumed = recording.progress().consumed();
            self.progress.set_consumed(self.bytes_before + consumed);
            if let Some(line) = line {
                return Ok(Some(line));
            }
            self.lines_before += recording.lines();
            self.bytes_before += consumed;
            self.current = None;
        }
    }

    fn item(&mut self, line: Line) -> Item {
        let number = self.lines_before + line.number;
        self.scratch.clear();
        if let Err(error) = self.topic.render(&line.payload, &mut self.scratch) {
            return Item::Skip { number, reason: error.to_string() };
        }
        let time =
            if self.pacer.needs_record_times() { record_time(&self.times, &line.payload) } else { None };
        let due = self.pacer.due(time);
        let topic = Bytes::copy_from_slice(self.scratch.as_bytes());
        Item::Publish(Publication::new(number, due, topic, line.payload))
    }
}

impl Source for Playlist {
    fn next(&mut self) -> Result<Option<Item>, RecordingError> {
        let line = self.next_line()?;
        Ok(line.map(|line| self.item(line)))
    }

    fn is_ready(&mut self) -> bool {
        self.current.as_mut().is_none_or(Recording::is_ready)
    }

    fn numbering(&self) -> Numbering {
        self.numbering.clone()
    }
}

/// Size on disk, unknown for what is not a file. Fails for what cannot be read, so that a slip in the third name is
/// reported before the first recording is played.
fn size_of(path: &PathBuf) -> Result<Option<u64>, RecordingError> {
    if path.as_os_str() == "-" {
        return Ok(None);
    }
    let metadata = std::fs::metadata(path).and_then(|metadata| {
        if metadata.is_dir() {
            return Err(std::io::Error::from(std::io::ErrorKind::IsADirectory));
        }
        if metadata.is_file() {
            // Opening a named pipe twice would take data from its first reader.
            File::open(path)?;
        }
        Ok(metadata)
    });
    match metadata {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
        Err(source) => Err(RecordingError::Open { name: path.display().to_string(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rate::DEFAULT_TIME_POINTERS;
    use crate::template::DEFAULT_TOPIC;

    #[test]
    fn running_numbers_count_all_lines_and_lead_back_to_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        std::fs::write(&one, "{\"device_id\":\"a\"}\n\n{}\n").unwrap();
        std::fs::write(&two, "\n{\"dev_eui\":7}").unwrap();
        let files = vec![one.clone(), two.clone()];
        let times = Pointers::parse(DEFAULT_TIME_POINTERS).unwrap();
        let mut playlist = Playlist::new(files, DEFAULT_TOPIC.parse().unwrap(), Rate::Max, times).unwrap();
        let mut published = Vec::new();
        let mut skipped = Vec::new();
        while let Some(item) = playlist.next().unwrap() {
            match item {
                Item::Publish(publication) => published.push((publication.number, publication.topic)),
                Item::Skip { number, .. } => skipped.push(number),
            }
        }
        assert_eq!(published, [(1, "devices/a/up".into()), (5, "devices/7/up".into())]);
        assert_eq!(skipped, [3]);
        let numbering = playlist.numbering();
        assert_eq!(numbering.place(3), format!("{}:3", one.display()));
        assert_eq!(numbering.place(5), format!("{}:2", two.display()));
        assert_eq!(Some(playlist.progress().consumed()), playlist.progress().total());
    }

    #[test]
    fn a_missing_file_is_named_before_anything_is_played() {
        let folder = tempfile::tempdir().unwrap();
        let good = folder.path().join("good");
        std::fs::write(&good, "x\n").unwrap();
        for bad in [folder.path().join("missing"), folder.path().to_owned()] {
            let times = Pointers::parse("/ts").unwrap();
            let playlist =
                Playlist::new(vec![good.clone(), bad.clone()], "t".parse().unwrap(), Rate::Max, times);
            let error = playlist.unwrap_err().to_string();
            assert!(error.contains(&bad.display().to_string()), "{error}");
        }
    }
}

//! Recordings: NDJSON, plain or gzip, one line = one payload.
//!
//! A line is taken byte for byte, without its end: `\n` or `\r\n`. A last line without an end is a line. Lines of
//! nothing but an end are skipped and counted, so that line numbers stay those of an editor. Nothing else is changed
//! or checked; a line need not be JSON.

use bytes::{Bytes, BytesMut};
use flate2::bufread::MultiGzDecoder;
use messagepipeline::{ErrorClass, StageError};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The longest line a recording may have unless said otherwise, in bytes.
pub const DEFAULT_LINE_LIMIT: usize = 16 * 1024 * 1024;

/// Bytes asked of the file at once. Lines read together share one buffer of about this size.
const READ_SIZE: usize = 64 * 1024;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// One line of a recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number in the file, from 1, blank lines counted.
    pub number: u64,
    /// Its bytes, without the line end.
    pub payload: Bytes,
}

/// A recording that cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The file cannot be opened.
    #[error("cannot open the recording {name}: {source}")]
    Open {
        /// The file.
        name: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Reading or decompressing failed.
    #[error("{name}:{line}: cannot read the recording: {source}")]
    Read {
        /// The file.
        name: String,
        /// The line that could not be read.
        line: u64,
        /// The reason.
        source: io::Error,
    },
    /// The compressed data ends in the middle.
    #[error("{name}:{line}: the gzip data ends in the middle; the file is cut short, copy it again")]
    CutShort {
        /// The file.
        name: String,
        /// The line that could not be read.
        line: u64,
    },
    /// A line is longer than the limit.
    #[error("{name}:{line}: the line is longer than {limit} bytes; a recording has one payload per line")]
    LineTooLong {
        /// The file.
        name: String,
        /// The line.
        line: u64,
        /// The limit.
        limit: usize,
    },
}

impl RecordingError {
    /// A person must mend or change the file first.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Configuration
    }
}

impl From<RecordingError> for StageError {
    fn from(error: RecordingError) -> Self {
        Self::new(error.class(), "recording", error.to_string()).with_source(error)
    }
}

/// How much of a recording has been read, in bytes as they lie on disk. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct ReadProgress {
    consumed: Arc<AtomicU64>,
    total: Option<u64>,
}

impl ReadProgress {
    /// Bytes read so far, compressed ones if the recording is.
    #[must_use]
    pub fn consumed(&self) -> u64 {
        self.consumed.load(Ordering::Relaxed)
    }

    pub(crate) fn new(total: Option<u64>) -> Self {
        Self { consumed: Arc::default(), total }
    }

    pub(crate) fn set_consumed(&self, bytes: u64) {
        self.consumed.store(bytes, Ordering::Relaxed);
    }

    /// Size of the file; unknown for standard input and pipes.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        self.total
    }
}

/// A reader of one recording. It holds one read buffer and the line at hand, whatever the size of the file.
pub struct Recording {
    name: String,
    reader: Box<dyn Read + Send>,
    progress: ReadProgress,
    buffer: BytesMut,
    /// Bytes at the front of `buffer` known to hold no line end.
    scanned: usize,
    line: u64,
    limit: usize,
    ended: bool,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording")
            .field("name", &self.name)
            .field("line", &self.line)
            .finish_non_exhaustive()
    }
}

impl Recording {
    /// Opens `path`; `-` is standard input. Whether it is gzip is told by its first two bytes (RFC 1952), not by its
    /// name; several gzip members one after another are one recording.
    ///
    /// # Errors
    /// When the file cannot be opened or its first bytes not be read.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        if path.as_os_str() == "-" {
            return Self::from_reader("standard input", io::stdin(), None);
        }
        let name = path.display().to_string();
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = match opened {
            Ok(opened) => opened,
            Err(source) => return Err(RecordingError::Open { name, source }),
        };
        let total = metadata.is_file().then_some(metadata.len());
        Self::from_reader(name, file, total)
    }

    /// Reads from `reader`. `name` is what errors call it, `total` its size in bytes if that is known.
    ///
    /// # Errors
    /// When the first bytes cannot be read.
    pub fn from_reader(
        name: impl Into<String>,
        reader: impl Read + Send + 'static,
        total: Option<u64>,
    ) -> Result<Self, RecordingError> {
        let name = name.into();
        let progress = ReadProgress::new(total);
        let counting = Counting { inner: reader, consumed: Arc::clone(&progress.consumed) };
        let reader = match decompress(counting) {
            Ok(reader) => reader,
            Err(source) => return Err(RecordingError::Open { name, source }),
        };
        let limit = DEFAULT_LINE_LIMIT;
        Ok(Self { name, reader, progress, buffer: BytesMut::new(), scanned: 0, line: 0, limit, ended: false })
    }

    /// The same with another limit on the length of a line, in bytes without the line end.
    #[must_use]
    pub fn with_line_limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// What errors call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How far it has been read.
    #[must_use]
    pub fn progress(&self) -> ReadProgress {
        self.progress.clone()
    }

    /// Lines read so far, blank ones included.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.line
    }

    /// The next line that is not blank, or none at the end. May wait for input.
    ///
    /// # Errors
    /// When the file cannot be read on or a line is too long; the recording cannot be used after that.
    pub fn next_line(&mut self) -> Result<Option<Line>, RecordingError> {
        while let Some(payload) = self.take_line()? {
            if !payload.is_empty() {
                return Ok(Some(Line { number: self.line, payload }));
            }
        }
        Ok(None)
    }

    /// Whether [`Recording::next_line`] has a whole line at hand and need not wait for input.
    #[must_use]
    pub fn is_ready(&mut self) -> bool {
        self.ended || self.find_end().is_some()
    }

    fn take_line(&mut self) -> Result<Option<Bytes>, RecordingError> {
        loop {
            if let Some(end) = self.find_end() {
                let line = self.buffer.split_to(end + 1).freeze();
                self.scanned = 0;
                self.line += 1;
                let content = line[..end].strip_suffix(b"\r").unwrap_or(&line[..end]).len();
                self.check_length(content, self.line)?;
                return Ok(Some(line.slice(..content)));
            }
            // One more for a `\r` whose `\n` is still to come.
            self.check_length(self.buffer.len().saturating_sub(1), self.line + 1)?;
            if self.ended {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                self.buffer.extend_from_slice(b"\n");
            } else {
                self.fill()?;
            }
        }
    }

    fn find_end(&mut self) -> Option<usize> {
        let found = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n');
        let end = found.map(|offset| self.scanned + offset);
        self.scanned = end.unwrap_or(self.buffer.len());
        end
    }

    fn fill(&mut self) -> Result<(), RecordingError> {
        let start = self.buffer.len();
        // A buffer that lines still share is left to them, and the beginning of the next line moves to a new one.
        self.buffer.reserve(READ_SIZE);
        self.buffer.resize(start + READ_SIZE, 0);
        let read = loop {
            match self.reader.read(&mut self.buffer[start..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(source) => return Err(self.read_error(source)),
        }
        Ok(())
    }

    fn read_error(&self, source: io::Error) -> RecordingError {
        let (name, line) = (self.name.clone(), self.line + 1);
        if source.kind() == io::ErrorKind::UnexpectedEof {
            return RecordingError::CutShort { name, line };
        }
        RecordingError::Read { name, line, source }
    }

    fn check_length(&self, length: usize, line: u64) -> Result<(), RecordingError> {
        if length > self.limit {
            return Err(RecordingError::LineTooLong { name: self.name.clone(), line, limit: self.limit });
        }
        Ok(())
    }
}

fn decompress(reader: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(READ_SIZE, reader);
    let start = reader.fill_buf()?;
    if start.len() == 1 {
        // A pipe may hand over one byte; the second decides.
        let mut first = [start[0], 0];
        reader.consume(1);
        let read = reader.read(&mut first[1..])?;
        let whole = io::Cursor::new(first).take(1 + read as u64).chain(reader);
        return Ok(choose(first == GZIP_MAGIC, BufReader::with_capacity(READ_SIZE, whole)));
    }
    Ok(choose(start.starts_with(&GZIP_MAGIC), reader))
}

fn choose(gzip: bool, reader: impl BufRead + Send + 'static) -> Box<dyn Read + Send> {
    if gzip { Box::new(MultiGzDecoder::new(reader)) } else { Box::new(reader) }
}

struct Counting<R> {
    inner: R,
    consumed: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.consumed.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use std::io::Write;

    /// Hands over at most `step` bytes per read.
    struct Dripping(io::Cursor<Vec<u8>>, usize);

    impl Read for Dripping {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let step = self.1.min(buffer.len());
            self.0.read(&mut buffer[..step])
        }
    }

    fn lines(bytes: Vec<u8>, step: usize) -> Result<Vec<(u64, Vec<u8>)>, RecordingError> {
        let mut recording = Recording::from_reader("r", Dripping(io::Cursor::new(bytes), step), None)?;
        let mut out = Vec::new();
        while let Some(line) = recording.next_line()? {
            out.push((line.number, line.payload.to_vec()));
        }
        Ok(out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn line_ends_of_both_kinds_are_left_out_and_blank_lines_are_counted() {
        let read = lines(b"a\r\n\n\r\n b \r\rc\nlast".to_vec(), 3).unwrap();
        assert_eq!(read, [(1, b"a".to_vec()), (4, b" b \r\rc".to_vec()), (5, b"last".to_vec())]);
    }

    #[test]
    fn a_line_over_the_limit_is_an_error_that_names_file_and_line() {
        for bytes in [&b"ok\n12345678"[..], b"ok\n12345678\n", b"ok\n123456789012345678"] {
            let recording = Recording::from_reader("day.ndjson", io::Cursor::new(bytes.to_vec()), None);
            let mut recording = recording.unwrap().with_line_limit(7);
            assert!(recording.next_line().unwrap().is_some());
            let error = recording.next_line().unwrap_err().to_string();
            assert!(error.starts_with("day.ndjson:2: the line is longer than 7 bytes"), "{error}");
        }
        let exact = Recording::from_reader("r", io::Cursor::new(b"1234567\r\n".to_vec()), None).unwrap();
        assert_eq!(exact.with_line_limit(7).next_line().unwrap().unwrap().payload, "1234567");
    }

    #[test]
    fn gzip_that_is_cut_short_is_an_error_that_names_file_and_line() {
        let whole = gzip(b"{\"a\":1}\n".repeat(1000).as_slice());
        let error = lines(whole[..whole.len() - 9].to_vec(), 64).unwrap_err();
        assert!(matches!(&error, RecordingError::CutShort { name, line: 1.. } if name == "r"), "{error}");
    }

    #[test]
    fn progress_counts_the_bytes_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.gz");
        std::fs::write(&path, gzip(&b"{\"a\":1}\n".repeat(1000))).unwrap();
        let mut recording = Recording::open(&path).unwrap();
        while recording.next_line().unwrap().is_some() {}
        let progress = recording.progress();
        assert_eq!(recording.lines(), 1000);
        assert_eq!(Some(progress.consumed()), progress.total());
    }

    proptest! {
        #[test]
        fn every_line_comes_back_byte_for_byte_plain_and_in_any_gzip_members(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..20),
            cut in 0usize..400, step in 1usize..50, crlf: bool,
        ) {
            let payloads: Vec<Vec<u8>> = payloads.into_iter()
                .map(|payload| payload.into_iter().map(|b| if matches!(b, b'\n' | b'\r') { b'x' } else { b }).collect())
                .collect();
            let end: &[u8] = if crlf { b"\r\n" } else { b"\n" };
            let text: Vec<u8> = payloads.iter().flat_map(|payload| [payload.as_slice(), end].concat()).collect();
            let expected: Vec<_> = payloads.iter().enumerate().map(|(n, p)| (n as u64 + 1, p.clone())).collect();
            if !text.starts_with(&GZIP_MAGIC) {
                prop_assert_eq!(lines(text.clone(), step).unwrap(), expected.clone());
            }
            let cut = cut.min(text.len());
            let members = [gzip(&text[..cut]), gzip(&text[cut..])].concat();
            prop_assert_eq!(lines(members, step).unwrap(), expected);
        }
    }
}

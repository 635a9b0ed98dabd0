//! What must hold for any file that `millstream feed` reads.

use millstream::recording::{Line, Recording, RecordingError};
use std::io::{Cursor, Read};

const LINE_LIMIT: usize = 4 * 1_024;

/// Lines looked at of one input: a gzip file of a few bytes can hold millions.
const LINES: usize = 10_000;

/// The first byte of `data` says how many bytes one read of the file brings; the rest is the file.
pub(crate) fn holds(data: &[u8]) {
    let Some((&step, file)) = data.split_first() else { return };
    let at_once = read(file, usize::MAX);
    let dripping = read(file, usize::from(step).max(1));
    assert_same(&at_once, &dripping);
    if !file.starts_with(&[0x1f, 0x8b]) {
        assert_eq!(at_once, expected(file));
    }
}

const UNREADABLE: &str = "unreadable";

/// Lines until the end, or the message of the error that ended it.
type Outcome = (Vec<(u64, Vec<u8>)>, Option<String>);

/// How much of a damaged gzip file can be read before the damage depends on how it arrives; nothing else does. So a line
/// before the damage may be seen to be too long, or not.
fn assert_same(one: &Outcome, other: &Outcome) {
    let is_damaged = [one, other].iter().any(|outcome| outcome.1.as_deref() == Some(UNREADABLE));
    if is_damaged {
        let is_cut = |outcome: &Outcome| outcome.1.is_some() || outcome.0.len() == LINES;
        assert!(is_cut(one) && is_cut(other), "a damaged file is read to its end");
    } else {
        assert_eq!(one.1, other.1, "the end depends on how the file arrives");
    }
    let common = if is_damaged { one.0.len().min(other.0.len()) } else { usize::MAX };
    let start = |lines: &Outcome| lines.0.iter().take(common).cloned().collect::<Vec<_>>();
    assert_eq!(start(one), start(other), "lines depend on how the file arrives");
}

fn read(file: &[u8], step: usize) -> Outcome {
    let reader = Dripping { file: Cursor::new(file.to_vec()), step };
    let mut recording = match Recording::from_reader("r", reader, Some(file.len() as u64)) {
        Ok(recording) => recording.with_line_limit(LINE_LIMIT),
        Err(error) => return (Vec::new(), Some(error.to_string())),
    };
    let mut lines = Vec::new();
    while lines.len() < LINES {
        match recording.next_line() {
            Ok(Some(line)) => lines.push(checked(line, lines.last())),
            Ok(None) => break,
            Err(error) => return (lines, Some(described(&error))),
        }
    }
    assert!(recording.progress().consumed() <= file.len() as u64);
    (lines, None)
}

fn checked(line: Line, before: Option<&(u64, Vec<u8>)>) -> (u64, Vec<u8>) {
    assert!(line.number > before.map_or(0, |(number, _)| *number));
    assert!(!line.payload.is_empty() && line.payload.len() <= LINE_LIMIT);
    assert!(!line.payload.contains(&b'\n'));
    (line.number, line.payload.to_vec())
}

/// Damaged gzip may be noticed earlier or later within a line, and in other words.
fn described(error: &RecordingError) -> String {
    let text = error.to_string();
    assert!(text.starts_with("r:"), "no place in {text:?}");
    match error {
        RecordingError::Read { .. } | RecordingError::CutShort { .. } => UNREADABLE.to_owned(),
        _ => text,
    }
}

/// The definition, without buffers.
fn expected(file: &[u8]) -> Outcome {
    let mut lines = Vec::new();
    let mut rest = file;
    let mut number = 0;
    while !rest.is_empty() && lines.len() < LINES {
        number += 1;
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 1..).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > LINE_LIMIT {
            let message = format!(
                "r:{number}: the line is longer than {LINE_LIMIT} bytes; a recording has one payload per line"
            );
            return (lines, Some(message));
        }
        if !line.is_empty() {
            lines.push((number, line.to_vec()));
        }
    }
    (lines, None)
}

struct Dripping {
    file: Cursor<Vec<u8>>,
    step: usize,
}

impl Read for Dripping {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = self.step.min(buffer.len());
        self.file.read(&mut buffer[..length])
    }
}

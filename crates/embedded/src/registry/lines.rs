//! Reading devices from CSV or NDJSON, one line at a time.
//!
//! One line is one device in both forms, whatever it holds: a quote that is left open costs its own line and not
//! the rest of the file, memory is bounded by the longest line, and line numbers are the editor's.

use super::{Device, InvalidDevice};
use serde_json::{Map, Value};
use std::io::{self, BufRead, Read};

/// Longest line in bytes, without its end.
const LONGEST_LINE: usize = 64 * 1024;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Why a line gives no device.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadLine {
    #[error("the line is longer than {LONGEST_LINE} bytes")]
    TooLong,
    #[error("the line is not UTF-8")]
    NotUtf8,
    #[error("not a JSON object: {0}")]
    NotJson(String),
    #[error("a quote is left open; a quote inside quotes is written twice")]
    OpenQuote,
    #[error("text follows a closing quote; a quote inside quotes is written twice")]
    AfterQuote,
    #[error("{found} fields where the header names {expected}; a field with a comma stands in quotes")]
    FieldCount { found: usize, expected: usize },
    #[error(transparent)]
    Device(#[from] InvalidDevice),
}

/// Why a whole file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadFile {
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    #[error(
        "the first line must name the columns, separated by commas and `device_id` among them \
         (`device_id,client_id,location_id,category`), or every line must be a JSON object; {0}"
    )]
    Header(String),
}

/// How the lines are written.
enum Form {
    Json,
    /// The column names.
    Csv(Vec<String>),
}

/// Devices of a file with their line numbers.
pub(super) struct Lines<R> {
    source: R,
    form: Form,
    line: u64,
    buffer: Vec<u8>,
    /// Whether the buffer holds the first line of an NDJSON file, which was read to tell the form.
    has_first: bool,
}

impl<R: BufRead> Lines<R> {
    /// Reads up to the first line that is not blank and tells the form by it.
    pub(super) fn new(source: R) -> Result<Self, BadFile> {
        let mut lines = Self { source, form: Form::Json, line: 0, buffer: Vec::new(), has_first: false };
        if lines.advance()? != Some(true) {
            let found =
                if lines.buffer.is_empty() { "the file is empty" } else { "its first line is too long" };
            return Err(BadFile::Header(found.to_owned()));
        }
        if lines.buffer.trim_ascii_start().starts_with(b"{") {
            lines.has_first = true;
        } else {
            lines.form = Form::Csv(header(&lines.buffer)?);
        }
        Ok(lines)
    }

    /// The next line that is not blank: its number, and its device or what is wrong with it.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, Result<Device, BadLine>)>> {
        let whole = if std::mem::take(&mut self.has_first) { Some(true) } else { self.advance()? };
        let Some(whole) = whole else { return Ok(None) };
        let device = if whole { self.device() } else { Err(BadLine::TooLong) };
        Ok(Some((self.line, device)))
    }

    /// How long the line last read is.
    pub(super) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    fn device(&self) -> Result<Device, BadLine> {
        let text = std::str::from_utf8(&self.buffer).map_err(|_| BadLine::NotUtf8)?;
        let columns = match &self.form {
            Form::Json => object(text)?,
            Form::Csv(names) => {
                let fields = csv_fields(text)?;
                if fields.len() != names.len() {
                    return Err(BadLine::FieldCount { found: fields.len(), expected: names.len() });
                }
                names.iter().cloned().zip(fields.into_iter().map(Value::from)).collect()
            }
        };
        Ok(Device::from_columns(columns)?)
    }

    /// Reads the next line that is not blank into the buffer. True if the buffer holds all of it; `None` at the end.
    fn advance(&mut self) -> io::Result<Option<bool>> {
        loop {
            self.buffer.clear();
            let limit = LONGEST_LINE as u64 + 2;
            if self.source.by_ref().take(limit).read_until(b'\n', &mut self.buffer)? == 0 {
                return Ok(None);
            }
            self.line += 1;
            let ended = self.buffer.last() == Some(&b'\n');
            if !ended && self.buffer.len() as u64 == limit {
                self.source.skip_until(b'\n')?;
            }
            let end = self.buffer.trim_ascii_end().len();
            self.buffer.truncate(end);
            if self.line == 1 && self.buffer.starts_with(BYTE_ORDER_MARK) {
                self.buffer.drain(..BYTE_ORDER_MARK.len());
            }
            if !self.buffer.is_empty() {
                return Ok(Some(self.buffer.len() <= LONGEST_LINE));
            }
        }
    }
}

fn object(text: &str) -> Result<Map<String, Value>, BadLine> {
    serde_json::from_str(text).map_err(|error| {
        // The line number is ours; the column is worth keeping.
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or(&text);
        BadLine::NotJson(format!("{what}, at column {}", error.column()))
    })
}

/// The fields of one CSV line, as RFC 4180 has them; blanks belong to their field. A quote inside a field that does
/// not begin with one stands for itself.
fn csv_fields(line: &str) -> Result<Vec<String>, BadLine> {
    let mut fields = Vec::new();
    let mut rest = Some(line);
    while let Some(text) = rest {
        let (field, tail) = match text.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => match text.split_once(',') {
                Some((field, tail)) => (field.to_owned(), Some(tail)),
                None => (text.to_owned(), None),
            },
        };
        fields.push(field);
        rest = tail;
    }
    Ok(fields)
}

/// A field after its opening quote, and what follows the comma behind it.
fn quoted_field(text: &str) -> Result<(String, Option<&str>), BadLine> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let (part, tail) = rest.split_once('"').ok_or(BadLine::OpenQuote)?;
        field.push_str(part);
        if tail.is_empty() {
            return Ok((field, None));
        }
        if let Some(tail) = tail.strip_prefix(',') {
            return Ok((field, Some(tail)));
        }
        rest = tail.strip_prefix('"').ok_or(BadLine::AfterQuote)?;
        field.push('"');
    }
}

fn header(line: &[u8]) -> Result<Vec<String>, BadFile> {
    let text = std::str::from_utf8(line).map_err(|_| BadFile::Header("it is not UTF-8".to_owned()))?;
    let fields = csv_fields(text).map_err(|error| BadFile::Header(error.to_string()))?;
    let names: Vec<String> = fields.iter().map(|name| name.trim().to_owned()).collect();
    for (position, name) in names.iter().enumerate() {
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(BadFile::Header(format!("its column {} has no usable name", position + 1)));
        }
        if names[..position].contains(name) {
            return Err(BadFile::Header(format!("it names `{name}` twice")));
        }
    }
    if !names.iter().any(|name| name == "device_id") {
        return Err(BadFile::Header(format!("it names {}", quoted(&names))));
    }
    Ok(names)
}

/// The names for an error, cut where they stop being of use.
fn quoted(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(8).map(|name| format!("`{}`", cut(name))).collect();
    let more = if names.len() > shown.len() { ", …" } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(40)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_as_csv_is_read_back(
            fields in proptest::collection::vec(("[a\", \u{e9}]{0,6}", any::<bool>()), 1..6),
        ) {
            let write = |(field, quote): &(String, bool)| {
                if *quote || field.contains(['"', ',']) {
                    format!("\"{}\"", field.replace('"', "\"\""))
                } else {
                    field.clone()
                }
            };
            let line = fields.iter().map(write).collect::<Vec<_>>().join(",");
            let expected: Vec<String> = fields.into_iter().map(|(field, _)| field).collect();
            prop_assert_eq!(csv_fields(&line).unwrap(), expected);
        }
    }

    #[test]
    fn broken_quotes_are_told_apart() {
        assert!(matches!(csv_fields("a,\"b"), Err(BadLine::OpenQuote)));
        assert!(matches!(csv_fields("\"a\"b,c"), Err(BadLine::AfterQuote)));
        assert_eq!(csv_fields("5\" pipe,").unwrap(), ["5\" pipe", ""]);
    }
}

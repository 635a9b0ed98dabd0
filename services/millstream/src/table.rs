//! Prints query results: a table for people, JSON or CSV for programs.
//!
//! JSON and CSV are written row by row. A table measures its first rows and then writes row by row too, so a result of
//! any size takes little memory.

use embedded::warehouse::Cell;
use std::borrow::Cow;
use std::io::{self, Write};
use unicode_width::UnicodeWidthChar;

/// Rows that decide how wide the columns of a table are.
const MEASURED_ROWS: usize = 1_000;

/// No column is made narrower than this to fit the terminal, in characters.
const NARROWEST: usize = 6;

/// No cell of a table is longer, whatever the terminal, in characters.
const WIDEST: usize = 1_000;

const GAP: &str = "  ";

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Aligned columns: numbers to the right, control characters escaped, NULL shown as such, cells that do not fit in
    /// `width` characters cut with `…`. Without a width nothing but very long cells is cut.
    Table {
        /// Width of the terminal, if it is one.
        width: Option<usize>,
    },
    /// One array of objects, one object a line. Bytes that are not text are hexadecimal digits; an infinite number is
    /// null.
    Json,
    /// Comma-separated values with a header (RFC 4180). NULL is an empty field, bytes that are not text are
    /// hexadecimal digits.
    Csv,
}

/// The width of the terminal that standard output is, in characters.
#[must_use]
pub fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}

/// Prints rows as they come.
#[derive(Debug)]
pub struct Printer<W: Write> {
    writer: Writer<W>,
    rows: u64,
}

#[derive(Debug)]
enum Writer<W: Write> {
    Table(Table<W>),
    Json(W),
    Csv(Box<csv::Writer<W>>),
}

impl<W: Write> Printer<W> {
    /// Prints to `out`, best a buffered one.
    pub fn new(out: W, format: Format) -> Self {
        let writer = match format {
            Format::Table { width } => Writer::Table(Table::new(out, width)),
            Format::Json => Writer::Json(out),
            Format::Csv => Writer::Csv(Box::new(csv::Writer::from_writer(out))),
        };
        Self { writer, rows: 0 }
    }

    /// Prints one row. `names` are the columns' names, the same for every row.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn row(&mut self, names: &[String], cells: &[Cell<'_>]) -> io::Result<()> {
        if self.rows == 0 {
            self.begin(names)?;
        }
        match &mut self.writer {
            Writer::Table(table) => table.row(cells)?,
            Writer::Json(out) => {
                out.write_all(if self.rows == 0 { b"\n" } else { b",\n" })?;
                write_object(out, names, cells)?;
            }
            Writer::Csv(writer) => writer.write_record(cells.iter().map(csv_field))?,
        }
        self.rows += 1;
        Ok(())
    }

    /// Ends the output. `names` are needed for the header of a result without rows. Answers with the number of rows.
    ///
    /// # Errors
    /// When the output cannot be written.
    pub fn finish(mut self, names: &[String]) -> io::Result<u64> {
        if self.rows == 0 {
            self.begin(names)?;
        }
        match self.writer {
            Writer::Table(mut table) => {
                table.write_measured()?;
                table.out.flush()?;
            }
            Writer::Json(mut out) => {
                out.write_all(if self.rows == 0 { b"]\n" } else { b"\n]\n" })?;
                out.flush()?;
            }
            Writer::Csv(mut writer) => writer.flush()?,
        }
        Ok(self.rows)
    }

    fn begin(&mut self, names: &[String]) -> io::Result<()> {
        match &mut self.writer {
            Writer::Table(table) => {
                table.names = names.iter().map(|name| cut(&escape(name), WIDEST).into_owned()).collect();
                Ok(())
            }
            Writer::Json(out) => out.write_all(b"["),
            Writer::Csv(writer) => writer.write_record(names).map_err(io::Error::from),
        }
    }
}

#[derive(Debug)]
struct Table<W> {
    out: W,
    terminal: Option<usize>,
    names: Vec<String>,
    /// Rows not printed yet, while the columns are measured.
    measured: Vec<Vec<TableCell>>,
    /// Set once they are.
    widths: Vec<usize>,
}

#[derive(Debug)]
struct TableCell {
    text: String,
    number: bool,
}

impl<W: Write> Table<W> {
    fn new(out: W, terminal: Option<usize>) -> Self {
        Self { out, terminal, names: Vec::new(), measured: Vec::new(), widths: Vec::new() }
    }

    fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        let cells = cells.iter().map(table_cell).collect();
        if self.widths.is_empty() {
            self.measured.push(cells);
            if self.measured.len() < MEASURED_ROWS {
                return Ok(());
            }
            return self.write_measured();
        }
        self.write_row(&cells)
    }

    fn write_measured(&mut self) -> io::Result<()> {
        if self.widths.is_empty() {
            self.widths = self.measure();
            let names = self.names.iter().map(|name| TableCell { text: name.clone(), number: false });
            let header: Vec<_> = names.collect();
            self.write_row(&header)?;
            let rule: Vec<_> = self.widths.iter().map(|width| "─".repeat(*width)).collect();
            writeln!(self.out, "{}", rule.join(GAP))?;
        }
        for row in std::mem::take(&mut self.measured) {
            self.write_row(&row)?;
        }
        Ok(())
    }

    fn measure(&self) -> Vec<usize> {
        let mut widths: Vec<_> = self.names.iter().map(|name| length(name)).collect();
        for row in &self.measured {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(length(&cell.text));
            }
        }
        if let Some(terminal) = self.terminal {
            narrow(&mut widths, terminal);
        }
        widths
    }

    fn write_row(&mut self, cells: &[TableCell]) -> io::Result<()> {
        let mut line = String::new();
        for (index, (cell, width)) in cells.iter().zip(&self.widths).enumerate() {
            if index > 0 {
                line.push_str(GAP);
            }
            let text = cut(&cell.text, *width);
            let padding = " ".repeat(width - length(&text).min(*width));
            if cell.number {
                line.push_str(&padding);
            }
            line.push_str(&text);
            if !cell.number {
                line.push_str(&padding);
            }
        }
        writeln!(self.out, "{}", line.trim_end())
    }
}

/// Takes characters from the widest columns until the table fits, or no column can give any more.
fn narrow(widths: &mut [usize], terminal: usize) {
    let gaps = GAP.len() * widths.len().saturating_sub(1);
    loop {
        let total = widths.iter().sum::<usize>() + gaps;
        let Some(excess) = total.checked_sub(terminal).filter(|excess| *excess > 0) else { return };
        let Some(widest) = widths.iter().copied().max().filter(|widest| *widest > NARROWEST) else { return };
        let next = widths.iter().copied().filter(|width| *width < widest).max().unwrap_or(0);
        let sharing = widths.iter().filter(|width| **width == widest).count();
        let target = next.max(NARROWEST).max(widest.saturating_sub(excess.div_ceil(sharing)));
        widths.iter_mut().filter(|width| **width == widest).for_each(|width| *width = target);
    }
}

fn table_cell(cell: &Cell<'_>) -> TableCell {
    let (text, number) = match cell {
        Cell::Null => ("NULL".to_owned(), false),
        Cell::Integer(value) => (value.to_string(), true),
        Cell::Real(value) => (value.to_string(), true),
        // Cut before escaping: a payload may have megabytes.
        Cell::Text(text) => (cut(&escape(&cut(text, WIDEST + 1)), WIDEST).into_owned(), false),
        Cell::Blob(bytes) => {
            let shown = &bytes[..bytes.len().min(WIDEST)];
            (cut(&format!("x'{}'", hex(shown)), WIDEST).into_owned(), false)
        }
    };
    TableCell { text, number }
}

fn csv_field<'a>(cell: &Cell<'a>) -> Cow<'a, [u8]> {
    match cell {
        Cell::Null => Cow::Borrowed(b""),
        Cell::Integer(value) => Cow::Owned(value.to_string().into_bytes()),
        Cell::Real(value) => Cow::Owned(value.to_string().into_bytes()),
        Cell::Text(text) => Cow::Borrowed(text.as_bytes()),
        Cell::Blob(bytes) => Cow::Owned(hex(bytes).into_bytes()),
    }
}

fn write_object(out: &mut impl Write, names: &[String], cells: &[Cell<'_>]) -> io::Result<()> {
    out.write_all(b"{")?;
    for (index, (name, cell)) in names.iter().zip(cells).enumerate() {
        if index > 0 {
            out.write_all(b",")?;
        }
        serde_json::to_writer(&mut *out, name)?;
        out.write_all(b":")?;
        match cell {
            Cell::Null => out.write_all(b"null")?,
            Cell::Integer(value) => write!(out, "{value}")?,
            Cell::Real(value) => serde_json::to_writer(&mut *out, value)?,
            Cell::Text(text) => serde_json::to_writer(&mut *out, text)?,
            Cell::Blob(bytes) => serde_json::to_writer(&mut *out, &hex(bytes))?,
        }
    }
    out.write_all(b"}")
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 15)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}

/// Whether a character steers the terminal, hides, or changes the order in which others are read: controls, and
/// formats and separators of the Unicode Character Database (categories Cf, Zl and Zp).
pub(crate) fn is_harmful(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{8e2}' | '\u{180e}' | '\u{feff}'
        )
        || matches!(character, '\u{600}'..='\u{605}' | '\u{890}'..='\u{891}' | '\u{200b}'..='\u{200f}')
        || matches!(character, '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fff9}'..='\u{fffb}')
        || matches!(character, '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}')
        || matches!(character, '\u{1d173}'..='\u{1d17a}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

/// What a device sends must not steer the terminal it is shown on, nor change the order in which it is read.
fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        if is_harmful(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    Cow::Owned(out)
}

/// Columns that `text` takes on a terminal: two for a Chinese, Japanese or Korean character, none for a mark on top of
/// another (Unicode Standard Annex 11).
fn length(text: &str) -> usize {
    text.chars().map(columns).sum()
}

fn columns(character: char) -> usize {
    character.width().unwrap_or(0)
}

/// At most `width` columns of `text`; the last one is `…` where something is missing.
fn cut(text: &str, width: usize) -> Cow<'_, str> {
    // No character takes more columns than bytes.
    if text.len() <= width {
        return Cow::Borrowed(text);
    }
    let (mut taken, mut end) = (0, 0);
    for (start, character) in text.char_indices() {
        taken += columns(character);
        if taken > width {
            return Cow::Owned(format!("{}…", &text[..end]));
        }
        // What stands here still leaves a column for the mark.
        if taken < width {
            end = start + character.len_utf8();
        }
    }
    Cow::Borrowed(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn print(format: Format, names: &[&str], rows: &[Vec<Cell<'_>>]) -> String {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, format);
        for row in rows {
            printer.row(&names, row).unwrap();
        }
        assert_eq!(printer.finish(&names).unwrap(), rows.len() as u64);
        String::from_utf8(out).unwrap()
    }

    fn rows() -> Vec<Vec<Cell<'static>>> {
        vec![
            vec![Cell::Text("a\u{1b}[2J\n"), Cell::Integer(i64::MAX), Cell::Null],
            vec![Cell::Blob(&[0, 255]), Cell::Real(-0.5), Cell::Text("q\"é,")],
        ]
    }

    #[test]
    fn a_table_is_aligned_and_shows_no_control_character() {
        let expected = "\
name          n                    note
────────────  ───────────────────  ────
a\\u{1b}[2J\\n  9223372036854775807  NULL
x'00ff'                      -0.5  q\"é,
";
        assert_eq!(print(Format::Table { width: None }, &["name", "n", "note"], &rows()), expected);
    }

    #[test]
    fn wide_characters_and_marks_take_the_columns_that_they_have_on_a_terminal() {
        let rows = [
            vec![Cell::Text("温度計"), Cell::Integer(1)],
            vec![Cell::Text("gro\u{308}\u{df}e"), Cell::Integer(2)],
            vec![Cell::Text("東京都千代田区"), Cell::Integer(3)],
        ];
        let expected = "\
name     n
───────  ─
温度計   1
gro\u{308}\u{df}e    2
東京都…  3
";
        assert_eq!(print(Format::Table { width: Some(10) }, &["name", "n"], &rows), expected);
    }

    #[test]
    fn json_is_one_array_that_keeps_every_digit() {
        let text = print(Format::Json, &["name", "n", "note"], &rows());
        assert!(text.contains(r#""n":9223372036854775807,"note":null}"#), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value[0]["name"], "a\u{1b}[2J\n");
        assert_eq!(value[1], serde_json::json!({"name": "00ff", "n": -0.5, "note": "q\"é,"}));
        assert_eq!(print(Format::Json, &["a"], &[]), "[]\n");
        assert_eq!(print(Format::Json, &["a"], &[vec![Cell::Real(f64::INFINITY)]]), "[\n{\"a\":null}\n]\n");
    }

    #[test]
    fn csv_has_a_header_and_quotes_what_needs_it() {
        let text = print(Format::Csv, &["name", "n", "note"], &rows());
        assert_eq!(text, "name,n,note\n\"a\u{1b}[2J\n\",9223372036854775807,\n00ff,-0.5,\"q\"\"é,\"\n");
        assert_eq!(print(Format::Csv, &["a", "b"], &[]), "a,b\n");
    }

    #[test]
    fn a_long_result_is_printed_whole_with_the_widths_of_its_first_rows() {
        let mut rows: Vec<_> = (0..MEASURED_ROWS as i64 + 5).map(|n| vec![Cell::Integer(n)]).collect();
        rows.push(vec![Cell::Text("longer than any number before")]);
        let text = print(Format::Table { width: None }, &["n"], &rows);
        assert_eq!(text.lines().count(), 2 + rows.len());
        assert_eq!(text.lines().last(), Some("lo…"));
    }

    proptest! {
        #[test]
        fn a_table_keeps_to_the_terminal(
            texts in proptest::collection::vec(proptest::collection::vec(".{0,60}", 3), 1..5), width in 22usize..120,
        ) {
            let rows: Vec<Vec<_>> =
                texts.iter().map(|row| row.iter().map(|text| Cell::Text(text)).collect()).collect();
            let table = print(Format::Table { width: Some(width) }, &["a", "b", "c"], &rows);
            prop_assert_eq!(table.lines().count(), rows.len() + 2);
            for line in table.lines() {
                prop_assert!(length(line) <= width, "{}", line);
            }
        }
    }
}

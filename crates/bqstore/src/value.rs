//! Values of a row, and what becomes of JSON and text in a column of each type.

use crate::ColumnType;
use bytes::Bytes;
use messagepipeline::Timestamp;
use std::borrow::Cow;
use std::fmt;

/// UTF-8 text that may share the buffer of the message it came from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Text(Bytes);

impl Text {
    /// A copy of `text`.
    #[must_use]
    pub fn copy(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// `part` without a copy when it lies inside `owner`; else a copy.
    #[must_use]
    pub fn shared(owner: &Bytes, part: &str) -> Self {
        let (outer, inner) = (owner.as_ptr_range(), part.as_bytes().as_ptr_range());
        if outer.start <= inner.start && inner.end <= outer.end && !part.is_empty() {
            return Self(owner.slice_ref(part.as_bytes()));
        }
        Self::copy(part)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Every constructor takes a `&str`.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing found, or nothing that fits.
    Null,
    /// A number without a fraction.
    Integer(i64),
    /// A finite number.
    Float(f64),
    /// True or false.
    Boolean(bool),
    /// A moment.
    Timestamp(Timestamp),
    /// Text.
    String(Text),
    /// The text of one JSON value.
    Json(Text),
    /// Bytes of the payload.
    Bytes(Bytes),
}

/// A value as it was found, before it takes the column's type.
#[derive(Debug)]
pub(crate) enum Found<'a> {
    /// Text of a place that knows only text (an attribute): reading a number from it is no mistake of type.
    Untyped(&'a str),
    /// A JSON string, unescaped.
    String(Cow<'a, str>),
    /// A JSON number, as written.
    Number(Cow<'a, str>),
    /// A JSON boolean.
    Boolean(bool),
    /// An array, an object, or a string that stands for no text; with its name.
    Other(&'static str),
}

impl<'a> Found<'a> {
    /// Classifies the text of one JSON value; `None` for null.
    pub(crate) fn from_json(raw: &'a str) -> Option<Self> {
        match raw.as_bytes().first()? {
            b'n' => None,
            b't' => Some(Self::Boolean(true)),
            b'f' => Some(Self::Boolean(false)),
            b'[' => Some(Self::Other("an array")),
            b'{' => Some(Self::Other("an object")),
            b'"' => Some(unescape(raw)),
            _ => Some(Self::Number(Cow::Borrowed(raw))),
        }
    }

    /// The same for a value that is already parsed; `None` for null.
    pub(crate) fn from_value(value: &'a serde_json::Value) -> Option<Self> {
        match value {
            serde_json::Value::Null => None,
            serde_json::Value::Bool(truth) => Some(Self::Boolean(*truth)),
            serde_json::Value::Number(number) => Some(Self::Number(Cow::Owned(number.to_string()))),
            serde_json::Value::String(text) => Some(Self::String(Cow::Borrowed(text))),
            serde_json::Value::Array(_) => Some(Self::Other("an array")),
            serde_json::Value::Object(_) => Some(Self::Other("an object")),
        }
    }

    fn type_name(&self) -> &'static str {
        match self {
            Self::Untyped(_) => "text that does not convert",
            Self::String(_) => "a string",
            Self::Number(_) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::Other(name) => name,
        }
    }

    /// The value in a column of type `kind`, or the name of the type that stands in the way. Texts share `owner`
    /// where they can.
    ///
    /// A strict column takes its own JSON type only (an integer may be written `5.0`). Otherwise numbers and
    /// booleans may stand in strings, and become text in a text column.
    pub(crate) fn convert(
        &self,
        kind: ColumnType,
        strict: bool,
        owner: &Bytes,
    ) -> Result<Value, &'static str> {
        let value = match (kind, self) {
            (ColumnType::String, Self::Untyped(text)) => Some(Value::String(Text::shared(owner, text))),
            (ColumnType::String, Self::String(text)) => Some(Value::String(Text::shared(owner, text))),
            (ColumnType::Timestamp, Self::Number(text)) => timestamp_of_number(text).map(Value::Timestamp),
            (ColumnType::Timestamp, Self::String(text)) if strict => {
                timestamp_of_text(text).map(Value::Timestamp)
            }
            (ColumnType::Integer, Self::Number(text)) => integer(text).map(Value::Integer),
            (ColumnType::Float, Self::Number(text)) => float(text).map(Value::Float),
            (ColumnType::Boolean, Self::Boolean(truth)) => Some(Value::Boolean(*truth)),
            (_, Self::Untyped(text)) => from_text(text, kind),
            (_, Self::String(text)) if !strict => from_text(text, kind),
            (ColumnType::String, Self::Number(text)) if !strict => {
                Some(Value::String(Text::shared(owner, text)))
            }
            (ColumnType::String, Self::Boolean(truth)) if !strict => {
                Some(Value::String(Text::copy(if *truth { "true" } else { "false" })))
            }
            _ => None,
        };
        value.ok_or_else(|| self.type_name())
    }
}

fn unescape(raw: &str) -> Found<'_> {
    let inner = raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default();
    if !inner.contains('\\') {
        return Found::String(Cow::Borrowed(inner));
    }
    match serde_json::from_str::<String>(raw) {
        Ok(text) => Found::String(Cow::Owned(text)),
        // Half of a surrogate pair.
        Err(_) => Found::Other("a string that is not Unicode"),
    }
}

fn from_text(text: &str, kind: ColumnType) -> Option<Value> {
    match kind {
        ColumnType::Integer => integer(text).map(Value::Integer),
        ColumnType::Float => float(text).map(Value::Float),
        ColumnType::Boolean => text.parse().ok().map(Value::Boolean),
        ColumnType::Timestamp => {
            timestamp_of_text(text).or_else(|| timestamp_of_number(text)).map(Value::Timestamp)
        }
        ColumnType::String | ColumnType::Json | ColumnType::Bytes => None,
    }
}

/// Whole numbers up to here have no gaps in a double.
const EXACT_DOUBLE: f64 = 9_007_199_254_740_992.0;

fn integer(text: &str) -> Option<i64> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let number = float(text)?;
    #[expect(clippy::cast_possible_truncation, reason = "whole and within the exact range")]
    (number.fract() == 0.0 && number.abs() <= EXACT_DOUBLE).then_some(number as i64)
}

fn float(text: &str) -> Option<f64> {
    // `parse` also knows "inf" and "nan", which are no numbers in JSON.
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

fn timestamp_of_text(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Below this a number counts seconds: the year 5138. Today in milliseconds is 17 times as much.
const SECONDS_BELOW: f64 = 1e11;
/// Below this a number counts milliseconds, above it microseconds.
const MILLISECONDS_BELOW: f64 = 1e14;
/// From here on a number is no moment: microseconds of the year 5138. (Nanoseconds of today are 17 times as much.)
const NO_TIME_FROM: f64 = 1e17;

fn timestamp_of_number(text: &str) -> Option<Timestamp> {
    let number = float(text)?;
    let per_unit = match number.abs() {
        size if size < SECONDS_BELOW => 1e6,
        size if size < MILLISECONDS_BELOW => 1e3,
        size if size < NO_TIME_FROM => 1.0,
        _ => return None,
    };
    #[expect(clippy::cast_possible_truncation, reason = "below 1e17")]
    let micros = match text.parse::<i64>() {
        // Exact where it can be.
        Ok(whole) => whole * per_unit as i64,
        Err(_) => (number * per_unit).round() as i64,
    };
    Some(Timestamp::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(raw: &str, kind: ColumnType, strict: bool) -> Result<Value, &'static str> {
        Found::from_json(raw).unwrap().convert(kind, strict, &Bytes::new())
    }

    fn stamp(text: &str) -> Result<Value, &'static str> {
        Ok(Value::Timestamp(text.parse().unwrap()))
    }

    #[test]
    fn a_time_is_rfc_3339_or_a_number_read_by_its_size() {
        let moment = "2023-01-04T21:31:22.661Z";
        for raw in
            ["1672867882.661", "1672867882661", "1672867882661000", "\"2023-01-04T22:31:22.661+01:00\""]
        {
            assert_eq!(convert(raw, ColumnType::Timestamp, true), stamp(moment), "{raw}");
        }
        assert_eq!(
            convert("1672867882.661042", ColumnType::Timestamp, true),
            stamp("2023-01-04T21:31:22.661042Z")
        );
        assert_eq!(convert("-1", ColumnType::Timestamp, true), stamp("1969-12-31T23:59:59Z"));
        assert_eq!(convert("1672867882661000000", ColumnType::Timestamp, false), Err("a number"));
        assert_eq!(convert("\"yesterday\"", ColumnType::Timestamp, false), Err("a string"));
        assert_eq!(convert("\"1672867882661\"", ColumnType::Timestamp, false), stamp(moment));
        assert_eq!(convert("\"1672867882661\"", ColumnType::Timestamp, true), Err("a string"));
    }

    #[test]
    fn numbers_in_strings_count_unless_the_column_is_strict() {
        assert_eq!(convert("\"7.5\"", ColumnType::Float, false), Ok(Value::Float(7.5)));
        assert_eq!(convert("\"7.5\"", ColumnType::Float, true), Err("a string"));
        assert_eq!(convert("\"nan\"", ColumnType::Float, false), Err("a string"));
        assert_eq!(convert("7.0", ColumnType::Integer, true), Ok(Value::Integer(7)));
        assert_eq!(convert("7.5", ColumnType::Integer, false), Err("a number"));
        assert_eq!(convert("9223372036854775807", ColumnType::Integer, true), Ok(Value::Integer(i64::MAX)));
        assert_eq!(convert("9223372036854775808", ColumnType::Integer, false), Err("a number"));
        assert_eq!(convert("1e999", ColumnType::Float, false), Err("a number"));
        assert_eq!(convert("\"true\"", ColumnType::Boolean, false), Ok(Value::Boolean(true)));
        assert_eq!(convert("[1]", ColumnType::String, false), Err("an array"));
    }

    #[test]
    fn text_of_numbers_keeps_its_digits() {
        let raw = "12345678901234567890.10";
        assert_eq!(convert(raw, ColumnType::String, false), Ok(Value::String(Text::copy(raw))));
        assert_eq!(convert(raw, ColumnType::String, true), Err("a number"));
    }

    #[test]
    fn text_shares_the_buffer_it_lies_in() {
        let owner = Bytes::from_static(b"\"abc\"");
        let part = std::str::from_utf8(&owner[1..4]).unwrap();
        let text = Text::shared(&owner, part);
        assert_eq!(text.as_bytes().as_ptr(), part.as_ptr());
        assert_eq!(Text::shared(&Bytes::from_static(b"x"), "elsewhere").as_str(), "elsewhere");
    }
}

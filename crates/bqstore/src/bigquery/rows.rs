//! A row on its way into a request: straight from its values into protobuf or JSON, without a tree in between.

use super::schema::{TablePlan, TableType};
use super::{EXTRA_COLUMN, exact_json};
use crate::{Row, Value};
use messagepipeline::Timestamp;
use serde::ser::{SerializeMap, Serializer};
use serde::{Serialize, ser};
use std::sync::Arc;

/// Whole numbers up to here have no gaps in a double.
const EXACT_DOUBLE: u64 = 1 << 53;
/// 0001-01-01 and the end of 9999-12-31 in microseconds: BigQuery's first and last TIMESTAMP.
const TIMES: std::ops::RangeInclusive<i64> = -62_135_596_800_000_000..=253_402_300_799_999_999;

/// In which form values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// For the encoder of the Storage Write API, which knows the columns' types.
    Typed,
    /// For JSON documents: integers as text, because JSON's numbers are doubles to many; bytes in base64.
    Json,
}

/// A row for the Storage Write API.
#[derive(Clone, Debug)]
pub(super) struct TypedRow {
    pub(super) plan: Arc<TablePlan>,
    pub(super) row: Row,
}

impl Serialize for TypedRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write_row(&self.plan, &self.row, Form::Typed, serializer)
    }
}

/// A row as the `json` member of a `tabledata.insertAll` row.
#[derive(Debug)]
pub(super) struct JsonRow<'a> {
    pub(super) plan: &'a TablePlan,
    pub(super) row: &'a Row,
}

impl Serialize for JsonRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        write_row(self.plan, self.row, Form::Json, serializer)
    }
}

fn write_row<S: Serializer>(
    plan: &TablePlan,
    row: &Row,
    form: Form,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    let mut displaced = Vec::new();
    for (place, value) in plan.places.iter().zip(row.values.iter()) {
        if *value == Value::Null {
            continue;
        }
        match place.kind.and_then(|kind| Cell::of(value, kind)) {
            Some(cell) => map.serialize_entry(&place.name, &Written(cell, form))?,
            None => displaced.push((&*place.name, value)),
        }
    }
    if plan.has_extra && !displaced.is_empty() {
        let text = serde_json::to_string(&Displaced(&displaced)).map_err(ser::Error::custom)?;
        map.serialize_entry(EXTRA_COLUMN, &text)?;
    }
    map.end()
}

/// A value as its column takes it.
#[derive(Debug, PartialEq)]
enum Cell<'a> {
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Timestamp(Timestamp),
    Text(&'a str),
    OwnText(String),
    Bytes(&'a [u8]),
}

impl<'a> Cell<'a> {
    /// `None` when a column of type `kind` cannot hold exactly this value.
    fn of(value: &'a Value, kind: TableType) -> Option<Self> {
        match (value, kind) {
            (Value::Integer(number), TableType::Integer | TableType::Numeric) => Some(Self::Integer(*number)),
            #[expect(clippy::cast_precision_loss, reason = "within the exact range")]
            (Value::Integer(number), TableType::Float) => {
                (number.unsigned_abs() <= EXACT_DOUBLE).then_some(Self::Float(*number as f64))
            }
            (Value::Float(number), TableType::Float) => Some(Self::Float(*number)),
            (Value::Boolean(truth), TableType::Boolean) => Some(Self::Boolean(*truth)),
            (Value::Timestamp(stamp), TableType::Timestamp) => {
                TIMES.contains(&stamp.as_micros()).then_some(Self::Timestamp(*stamp))
            }
            (Value::Json(text), TableType::Json) => {
                exact_json::is_exact(text.as_str()).then_some(Self::Text(text.as_str()))
            }
            (Value::Bytes(bytes), TableType::Bytes) => Some(Self::Bytes(bytes)),
            (value, TableType::String) => Self::text(value),
            _ => None,
        }
    }

    fn text(value: &'a Value) -> Option<Self> {
        Some(match value {
            Value::Null => return None,
            Value::Integer(number) => Self::OwnText(number.to_string()),
            Value::Float(number) => Self::OwnText(number.to_string()),
            Value::Boolean(truth) => Self::Text(if *truth { "true" } else { "false" }),
            Value::Timestamp(stamp) => Self::OwnText(stamp.to_string()),
            Value::String(text) | Value::Json(text) => Self::Text(text.as_str()),
            Value::Bytes(bytes) => Self::Text(std::str::from_utf8(bytes).ok()?),
        })
    }
}

struct Written<'a>(Cell<'a>, Form);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (&self.0, self.1) {
            (Cell::Integer(number), Form::Typed) => serializer.serialize_i64(*number),
            (Cell::Integer(number), Form::Json) => serializer.collect_str(number),
            (Cell::Float(number), _) => serializer.serialize_f64(*number),
            (Cell::Boolean(truth), _) => serializer.serialize_bool(*truth),
            (Cell::Timestamp(stamp), Form::Typed) => serializer.serialize_i64(stamp.as_micros()),
            (Cell::Timestamp(stamp), Form::Json) => serializer.collect_str(stamp),
            (Cell::Text(text), _) => serializer.serialize_str(text),
            (Cell::OwnText(text), _) => serializer.serialize_str(text),
            (Cell::Bytes(bytes), Form::Typed) => serializer.serialize_bytes(bytes),
            (Cell::Bytes(bytes), Form::Json) => serializer.serialize_str(&base64(bytes)),
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

/// Values without a place, as one JSON object.
struct Displaced<'a>(&'a [(&'a str, &'a Value)]);

impl Serialize for Displaced<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            match value {
                Value::Null => map.serialize_entry(name, &())?,
                Value::Integer(number) => map.serialize_entry(name, number)?,
                Value::Float(number) => map.serialize_entry(name, number)?,
                Value::Boolean(truth) => map.serialize_entry(name, truth)?,
                Value::Timestamp(stamp) => map.serialize_entry(name, &stamp.as_micros())?,
                Value::String(text) => map.serialize_entry(name, text.as_str())?,
                Value::Json(text) if !exact_json::is_exact(text.as_str()) => {
                    map.serialize_entry(name, text.as_str())?;
                }
                Value::Json(text) => {
                    let raw: &serde_json::value::RawValue =
                        serde_json::from_str(text.as_str()).map_err(ser::Error::custom)?;
                    map.serialize_entry(name, raw)?;
                }
                Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
                    Ok(text) => map.serialize_entry(name, text)?,
                    Err(_) => map.serialize_entry(name, &base64(bytes))?,
                },
            }
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bigquery::schema::Place;
    use crate::{MESSAGE_ID, Text};
    use bytes::Bytes;
    use messagepipeline::IdGenerator;
    use proptest::prelude::*;

    const KINDS: [TableType; 8] = [
        TableType::String,
        TableType::Bytes,
        TableType::Integer,
        TableType::Float,
        TableType::Boolean,
        TableType::Timestamp,
        TableType::Json,
        TableType::Numeric,
    ];

    fn plan(kinds: &[Option<TableType>]) -> TablePlan {
        let mut places = vec![Place { name: MESSAGE_ID.to_owned(), kind: Some(TableType::String) }];
        let others = kinds.iter().enumerate();
        places.extend(others.map(|(at, kind)| Place { name: format!("c{at}"), kind: *kind }));
        TablePlan { places, has_extra: true }
    }

    fn json(kinds: &[Option<TableType>], values: Vec<Value>) -> serde_json::Value {
        let id = IdGenerator::default().next_id();
        let row = Row { id, values: [Value::Null].into_iter().chain(values).collect() };
        serde_json::to_value(JsonRow { plan: &plan(kinds), row: &row }).unwrap()
    }

    #[test]
    fn zero_values_are_written_and_null_is_not() {
        let values = vec![
            Value::Integer(0),
            Value::Float(0.0),
            Value::Boolean(false),
            Value::String(Text::copy("")),
            Value::Bytes(Bytes::new()),
            Value::Timestamp(Timestamp::from_micros(0)),
            Value::Null,
        ];
        use TableType as T;
        let kinds =
            [T::Integer, T::Float, T::Boolean, T::String, T::Bytes, T::Timestamp, T::Integer].map(Some);
        let expected = serde_json::json!({
            "c0": "0", "c1": 0.0, "c2": false, "c3": "", "c4": "", "c5": "1970-01-01T00:00:00.000000Z"
        });
        assert_eq!(json(&kinds, values), expected);
    }

    #[test]
    fn a_value_without_a_place_goes_to_the_extra_column_as_it_was() {
        let values = vec![
            Value::String(Text::copy("warm")),
            Value::Json(Text::copy("[1, 2.50]")),
            Value::Timestamp(Timestamp::from_micros(i64::MAX)),
            Value::Integer((1 << 53) + 1),
            Value::Bytes(Bytes::from_static(&[0xff])),
        ];
        use TableType as T;
        let kinds = [Some(T::Integer), None, Some(T::Timestamp), Some(T::Float), Some(T::String)];
        let found = json(&kinds, values);
        let extra =
            r#"{"c0":"warm","c1":[1, 2.50],"c2":9223372036854775807,"c3":9007199254740993,"c4":"/w=="}"#;
        assert_eq!(found, serde_json::json!({ EXTRA_COLUMN: extra }));
    }

    #[test]
    fn json_with_a_number_that_bigquery_would_change_is_kept_as_text() {
        let values = vec![Value::Json(Text::copy("[0.10, 12345678901234567890.5]"))];
        let found = json(&[Some(TableType::Json)], values);
        assert_eq!(found, serde_json::json!({ EXTRA_COLUMN: r#"{"c0":"[0.10, 12345678901234567890.5]"}"# }));
    }

    proptest! {
        #[test]
        fn no_value_is_lost_in_any_column(number: i64, real in proptest::num::f64::NORMAL, text: String, which in 0..8) {
            let kind = KINDS[usize::try_from(which).unwrap()];
            for value in [Value::Integer(number), Value::Float(real), Value::String(Text::copy(&text))] {
                let found = json(&[Some(kind)], vec![value]);
                let members: Vec<_> = found.as_object().unwrap().keys().cloned().collect();
                prop_assert!(members == ["c0"] || members == [EXTRA_COLUMN], "{:?}", members);
            }
        }
    }
}

//! Message in, row out.

use crate::fields::PointerTree;
use crate::value::Found;
use crate::{Column, ColumnType, Columns, Error, Source, Text, Value};
use bytes::Bytes;
use messagepipeline::{Delivery, Message, MessageId, Outcome, Transformer, names};
use serde_json::value::RawValue;
use std::sync::Arc;

/// One row: a value per column, in the order of the columns. Cloning shares the values.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The message's id, which is also the value of the first column.
    pub id: MessageId,
    /// The values.
    pub values: Arc<[Value]>,
}

/// Makes rows by a column list. The payload is parsed once per message, and not at all when no column looks into it.
#[derive(Clone, Debug)]
pub struct RowMapper(Arc<Plan>);

#[derive(Debug)]
struct Plan {
    columns: Columns,
    tree: PointerTree,
    /// For each column and source the slot in the tree; 0, unused, where the source is no pointer.
    slots: Vec<Vec<usize>>,
}

impl RowMapper {
    /// A mapper for `columns`.
    #[must_use]
    pub fn new(columns: Columns) -> Self {
        let mut tree = PointerTree::default();
        let mut slot = |source: &Source| match source {
            Source::Pointer(pointer) => tree.add(pointer),
            _ => 0,
        };
        let slots = columns.iter().map(|column| column.sources.iter().map(&mut slot).collect()).collect();
        Self(Arc::new(Plan { columns, tree, slots }))
    }

    /// The columns.
    #[must_use]
    pub fn columns(&self) -> &Columns {
        &self.0.columns
    }

    /// The row of one message.
    ///
    /// # Errors
    /// When a required column has no value, or a strict one a value of another type.
    pub fn map(&self, message: &Message) -> Result<Row, Error> {
        let plan = &*self.0;
        let fields = if plan.tree.is_empty() { None } else { plan.tree.read(&message.payload) };
        let document = Document { message, fields };
        let mut values = Vec::with_capacity(plan.columns.len());
        for (column, slots) in plan.columns.iter().zip(&plan.slots) {
            values.push(document.value(column, slots)?);
        }
        Ok(Row { id: message.id, values: values.into() })
    }
}

impl Transformer for RowMapper {
    type Output = Row;

    async fn transform<'a>(&'a self, deliveries: &'a [Delivery], outcomes: &'a mut Vec<Outcome<Row>>) {
        for delivery in deliveries {
            outcomes.push(match self.map(&delivery.message) {
                Ok(row) => Outcome::Emit(row),
                Err(error) => Outcome::Fail(error.into()),
            });
        }
    }
}

/// A message with what the pointers found in its payload; `None` when the payload is not JSON.
struct Document<'m> {
    message: &'m Message,
    fields: Option<crate::fields::Found<'m>>,
}

impl Document<'_> {
    fn value(&self, column: &Column, slots: &[usize]) -> Result<Value, Error> {
        let mut mismatch = None;
        for (source, slot) in column.sources.iter().zip(slots) {
            match self.read(column, source, *slot) {
                None => {}
                Some(Ok(value)) => return Ok(value),
                Some(Err(found)) => {
                    mismatch.get_or_insert((source, found));
                    if column.strict {
                        break;
                    }
                }
            }
        }
        match mismatch {
            Some((source, found)) if column.strict || column.required => Err(Error::WrongType {
                column: column.name.clone(),
                origin: source.to_string(),
                expected: column.kind,
                found,
            }),
            None if column.required => Err(self.missing(column)),
            _ => Ok(Value::Null),
        }
    }

    fn missing(&self, column: &Column) -> Error {
        let sources: Vec<_> = column.sources.iter().map(ToString::to_string).collect();
        let in_payload = column.sources.iter().all(|source| matches!(source, Source::Pointer(_)));
        let what = if in_payload && self.fields.is_none() {
            "the payload is not JSON, so nothing is"
        } else {
            "nothing is"
        };
        Error::Missing { column: column.name.clone(), sources: sources.join(", "), what }
    }

    /// The value at one source: `None` when there is none, an error with the name of the type found.
    fn read(&self, column: &Column, source: &Source, slot: usize) -> Option<Result<Value, &'static str>> {
        let message = self.message;
        match source {
            Source::Id => {
                let mut buffer = [0; 36];
                Some(Ok(Value::String(Text::copy(message.id.encode(&mut buffer)))))
            }
            Source::ReceivedAt if column.kind == ColumnType::String => {
                Some(Ok(Value::String(Text::copy(&message.publish_time.to_string()))))
            }
            Source::ReceivedAt => Some(Ok(Value::Timestamp(message.publish_time))),
            Source::DeviceId => self.attribute(column, names::DEVICE_ID),
            Source::Topic => self.attribute(column, names::TOPIC),
            Source::Route => self.attribute(column, names::ROUTE),
            Source::Attribute(name) => self.attribute(column, name),
            Source::Enrichment(name) => enriched(message, column, name),
            Source::Payload => Some(payload(&message.payload, column.kind)),
            Source::Pointer(_) => self.field(column, slot),
        }
    }

    fn attribute(&self, column: &Column, name: &str) -> Option<Result<Value, &'static str>> {
        let attributes = &self.message.attributes;
        let found = Found::Untyped(attributes.get(name)?);
        Some(found.convert(column.kind, column.strict, attributes.as_bytes()))
    }

    fn field(&self, column: &Column, slot: usize) -> Option<Result<Value, &'static str>> {
        let raw = (*self.fields.as_ref()?.get(slot)?)?;
        let found = Found::from_json(raw)?;
        let payload = &self.message.payload;
        if column.kind == ColumnType::Json {
            return Some(Ok(Value::Json(Text::shared(payload, raw))));
        }
        Some(found.convert(column.kind, column.strict, payload))
    }
}

fn enriched(message: &Message, column: &Column, name: &str) -> Option<Result<Value, &'static str>> {
    let value = message.enrichment.get(name)?;
    let found = Found::from_value(value)?;
    if column.kind == ColumnType::Json {
        return Some(Ok(Value::Json(Text::copy(&value.to_string()))));
    }
    Some(found.convert(column.kind, column.strict, &Bytes::new()))
}

fn payload(payload: &Bytes, kind: ColumnType) -> Result<Value, &'static str> {
    match kind {
        ColumnType::String => {
            let text = std::str::from_utf8(payload).map_err(|_| "bytes that are not UTF-8")?;
            Ok(Value::String(Text::shared(payload, text)))
        }
        ColumnType::Json => {
            let checked =
                serde_json::from_slice::<&RawValue>(payload).map_err(|_| "bytes that are not JSON")?;
            Ok(Value::Json(Text::shared(payload, checked.get())))
        }
        _ => Ok(Value::Bytes(payload.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ColumnConfig, SourceConfig, default_columns};
    use messagepipeline::{Attributes, Enrichment, IdGenerator, Timestamp};

    fn message(payload: &'static [u8]) -> Message {
        let mut message = Message::new(
            IdGenerator::default().next_id(),
            Bytes::from_static(payload),
            Timestamp::from_micros(1_672_867_882_661_042),
        );
        message.attributes =
            [(names::DEVICE_ID, "dev-1"), (names::TOPIC, "devices/dev-1/up"), (names::ROUTE, "all")]
                .into_iter()
                .collect();
        message.enrichment = Enrichment::from_text(r#"{"client_id":"c","location_id":7}"#).unwrap();
        message
    }

    fn with(kind: ColumnType, sources: &[&str], required: bool, strict: bool) -> RowMapper {
        let mut columns = default_columns();
        columns.truncate(1);
        let source = SourceConfig::Many(sources.iter().map(|text| (*text).to_owned()).collect());
        columns.push(ColumnConfig { name: "x".to_owned(), kind: Some(kind), source, required, strict });
        RowMapper::new(Columns::new(&columns).unwrap())
    }

    fn text(text: &str) -> Value {
        Value::String(Text::copy(text))
    }

    #[test]
    fn the_default_columns_are_filled_from_message_payload_and_enrichment() {
        let message = message(br#"{"_timestamp":1672867882661,"value":"21.5"}"#);
        let row = RowMapper::new(Columns::default()).map(&message).unwrap();
        let expected = [
            text(&message.id.to_string()),
            Value::Timestamp(message.publish_time),
            text("dev-1"),
            Value::Timestamp(Timestamp::from_millis(1_672_867_882_661)),
            Value::Float(21.5),
            text("c"),
            text("7"),
            Value::Null,
            text("devices/dev-1/up"),
            text("all"),
            Value::Bytes(message.payload.clone()),
        ];
        assert_eq!(*row.values, expected);
    }

    #[test]
    fn a_payload_that_is_not_json_is_a_row_with_its_bytes_and_nulls() {
        for bytes in [&b"\x00\xff"[..], b"", b"{\"value\":1", b"{\"value\":1} trailing"] {
            let message = message(bytes);
            let row = RowMapper::new(Columns::default()).map(&message).unwrap();
            assert_eq!(row.values[4], Value::Null);
            assert_eq!(row.values[10], Value::Bytes(Bytes::from_static(bytes)));
        }
    }

    #[test]
    fn the_first_alternative_with_a_fitting_value_wins() {
        let mapper = with(ColumnType::Float, &["/none", "/null", "/text", "/number"], false, false);
        let row = mapper.map(&message(br#"{"number":2,"text":"x","null":null}"#)).unwrap();
        assert_eq!(row.values[1], Value::Float(2.0));
    }

    #[test]
    fn a_missing_required_value_names_the_column_and_where_it_looked() {
        let mapper = with(ColumnType::Float, &["/a", "/b"], true, false);
        let error = mapper.map(&message(b"{}")).unwrap_err();
        assert_eq!(error.to_string(), "column `x` is required, and nothing is at /a, /b");
        let error = mapper.map(&message(b"secret")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "column `x` is required, and the payload is not JSON, so nothing is at /a, /b"
        );
        assert_eq!(error.reason(), "missing-value");
    }

    #[test]
    fn a_strict_value_of_another_type_is_named_by_type_and_never_by_value() {
        let mapper = with(ColumnType::Integer, &["/a"], false, true);
        let error = mapper.map(&message(br#"{"a":"secret"}"#)).unwrap_err();
        assert_eq!(error.to_string(), "column `x` takes integer, and /a holds a string");
        assert_eq!(messagepipeline::StageError::from(error).class(), messagepipeline::ErrorClass::Permanent);
        assert_eq!(mapper.map(&message(b"{}")).unwrap().values[1], Value::Null);
    }

    #[test]
    fn attributes_and_whole_documents_can_be_columns() {
        let mut message = message(br#"{"a":[1, 2]}"#);
        message.attributes = Attributes::from_iter([("user.n", "42")]);
        let read = |kind, source| with(kind, &[source], false, true).map(&message).unwrap().values[1].clone();
        assert_eq!(read(ColumnType::Integer, "attribute:user.n"), Value::Integer(42));
        assert_eq!(read(ColumnType::Json, "/a"), Value::Json(Text::copy("[1, 2]")));
        assert_eq!(read(ColumnType::Json, "payload"), Value::Json(Text::copy(r#"{"a":[1, 2]}"#)));
    }
}

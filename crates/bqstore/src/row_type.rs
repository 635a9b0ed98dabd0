//! Columns from a Rust type that describes the payload.

use crate::{ColumnConfig, ColumnType, MESSAGE_ID, SourceConfig};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

/// The columns for payloads of type `T`: the message id, the time of receipt, the device and the payload itself, and
/// one column per field of `T`, filled from the payload's member of that name.
///
/// A field that is neither optional nor has a default is required: a message without it goes to the dead letters.
/// Text, whole numbers, numbers and truth values have columns of their types, times (`date-time` in JSON Schema) are
/// timestamps; lists, structures and whatever has several shapes are JSON. A field with a name of the columns before
/// it gives way to them.
///
/// ```
/// #[derive(schemars::JsonSchema)]
/// #[expect(dead_code, reason = "it only describes")]
/// struct Reading {
///     temperature: f64,
///     battery: Option<u8>,
/// }
/// let columns = bqstore::columns_of::<Reading>();
/// let names: Vec<_> = columns.iter().map(|column| &*column.name).collect();
/// assert_eq!(names, ["message_id", "received_at", "device_id", "temperature", "battery", "payload"]);
/// bqstore::Columns::new(&columns).expect("columns that work");
/// ```
#[must_use]
pub fn columns_of<T: JsonSchema>() -> Vec<ColumnConfig> {
    let schema = SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value();
    let own = |name: &str, source: &str| column(name, None, source, false);
    let mut columns =
        vec![own(MESSAGE_ID, "id"), own("received_at", "received_at"), own("device_id", "device_id")];
    let is_required = |name: &str| {
        let listed = schema["required"].as_array().is_some_and(|names| names.iter().any(|n| n == name));
        listed && schema["properties"][name].get("default").is_none()
    };
    let fields = schema["properties"].as_object();
    for (name, field) in fields.into_iter().flatten() {
        if columns.iter().any(|column| column.name.eq_ignore_ascii_case(name)) || name == "payload" {
            continue;
        }
        let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        columns.push(column(name, Some(kind(field)), &pointer, is_required(name)));
    }
    columns.push(own("payload", "payload"));
    columns
}

fn column(name: &str, kind: Option<ColumnType>, source: &str, required: bool) -> ColumnConfig {
    let source = SourceConfig::One(source.to_owned());
    ColumnConfig { name: name.to_owned(), kind, source, required, strict: false }
}

fn kind(field: &Value) -> ColumnType {
    let field = one_shape(field).unwrap_or(field);
    let types: Vec<&str> = match &field["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => {
            names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect()
        }
        _ => Vec::new(),
    };
    match types[..] {
        ["string"] if field["format"] == "date-time" => ColumnType::Timestamp,
        ["string"] => ColumnType::String,
        ["integer"] => ColumnType::Integer,
        ["number"] => ColumnType::Float,
        ["boolean"] => ColumnType::Boolean,
        _ => ColumnType::Json,
    }
}

/// The only shape beside null of an optional field.
fn one_shape(field: &Value) -> Option<&Value> {
    let shapes = field["anyOf"].as_array()?;
    let mut others = shapes.iter().filter(|shape| shape["type"] != "null");
    others.next().filter(|_| others.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Columns, RowMapper, Value};
    use messagepipeline::{IdGenerator, Message, Timestamp};

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "it only describes")]
    enum Mode {
        Eco,
        Full,
    }

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "it only describes")]
    struct Place {
        lat: f64,
    }

    #[derive(JsonSchema)]
    #[expect(dead_code, reason = "it only describes")]
    #[serde(rename_all = "camelCase")]
    struct Reading {
        counter: u64,
        temperature: Option<f32>,
        is_open: bool,
        mode: Mode,
        maybe_mode: Option<Mode>,
        #[schemars(extend("format" = "date-time"))]
        at: String,
        tags: Vec<String>,
        place: Option<Place>,
        device_id: String,
    }

    #[test]
    fn a_row_type_becomes_columns_of_its_fields_types() {
        let found = columns_of::<Reading>();
        let described: Vec<_> = found.iter().map(|c| (&*c.name, c.kind, c.required)).collect();
        use ColumnType::*;
        let expected = [
            ("message_id", None, false),
            ("received_at", None, false),
            ("device_id", None, false),
            ("counter", Some(Integer), true),
            ("temperature", Some(Float), false),
            ("isOpen", Some(Boolean), true),
            ("mode", Some(String), true),
            ("maybeMode", Some(String), false),
            ("at", Some(Timestamp), true),
            ("tags", Some(Json), true),
            ("place", Some(Json), false),
            ("deviceId", Some(String), true),
            ("payload", None, false),
        ];
        assert_eq!(described, expected);
    }

    #[test]
    fn rows_are_filled_from_payloads_of_the_type() {
        let mapper = RowMapper::new(Columns::new(&columns_of::<Reading>()).unwrap());
        let payload = r#"{"counter":7,"isOpen":true,"mode":"Eco","at":"2023-01-04T21:31:22Z","tags":[],"deviceId":"d"}"#;
        let message = |payload: &'static str| {
            Message::new(IdGenerator::default().next_id(), payload, Timestamp::default())
        };
        assert_eq!(mapper.map(&message(payload)).unwrap().values[3], Value::Integer(7));
        let error = mapper.map(&message("{}")).unwrap_err();
        assert!(error.to_string().contains("`counter` is required"), "{error}");
    }
}

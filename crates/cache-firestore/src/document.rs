//! A document's fields as a JSON object.
//!
//! | Firestore | JSON |
//! | --- | --- |
//! | null, boolean, text, map, array | the same |
//! | integer | a number without a fraction, all 64 bits |
//! | double | a number; `"NaN"`, `"Infinity"`, `"-Infinity"` |
//! | timestamp | RFC 3339 in UTC with six digits of a second |
//! | bytes | base64 with padding |
//! | reference | the document's name |
//! | geographical point | `{"latitude": …, "longitude": …}` |

use gcloud_sdk::google::firestore::v1::value::ValueType;
use gcloud_sdk::google::firestore::v1::{Value, value};
use gcloud_sdk::prost_types;
use messagepipeline::{Enrichment, Timestamp};
use serde_json::{Map, Value as Json, json};
use std::collections::HashMap;

/// The fields of a document; one without fields is a device without data, and not an unknown one.
pub(crate) fn enrichment(fields: HashMap<String, Value>) -> Enrichment {
    Enrichment::from_fields(object(fields))
}

/// Sorted by name: the map that came has another order each time, and equal documents are to give equal bytes.
fn object(fields: HashMap<String, Value>) -> Map<String, Json> {
    let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields.into_iter().map(|(name, value)| (name, json(value))).collect()
}

/// Maps and arrays are at most 20 deep (the service's limit), and a hundred is where the decoder stops.
fn json(value: Value) -> Json {
    match value.value_type {
        Some(ValueType::BooleanValue(value)) => value.into(),
        Some(ValueType::IntegerValue(value)) => value.into(),
        Some(ValueType::DoubleValue(value)) => double(value),
        Some(ValueType::TimestampValue(value)) => timestamp(&value).to_string().into(),
        Some(ValueType::StringValue(text)) => text.into(),
        Some(ValueType::BytesValue(bytes)) => base64_simd::STANDARD.encode_to_string(bytes).into(),
        Some(ValueType::ReferenceValue(name)) => name.into(),
        Some(ValueType::GeoPointValue(point)) => {
            json!({"latitude": double(point.latitude), "longitude": double(point.longitude)})
        }
        Some(ValueType::ArrayValue(array)) => array.values.into_iter().map(json).collect(),
        Some(ValueType::MapValue(map)) => Json::Object(object(map.fields)),
        // The others stand in queries only.
        Some(value::ValueType::NullValue(_)) | None | Some(_) => Json::Null,
    }
}

fn double(value: f64) -> Json {
    let special = match value {
        _ if value.is_nan() => "NaN",
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        _ => return value.into(),
    };
    special.into()
}

/// The stamp, to the microsecond, which is all that Firestore stores.
pub(crate) fn timestamp(value: &prost_types::Timestamp) -> Timestamp {
    let micros = value.seconds.saturating_mul(1_000_000).saturating_add(i64::from(value.nanos) / 1_000);
    Timestamp::from_micros(micros)
}

/// The stamp as Firestore takes it.
pub(crate) fn proto_timestamp(value: Timestamp) -> prost_types::Timestamp {
    let micros = value.as_micros();
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1_000).unwrap_or(0);
    prost_types::Timestamp { seconds: micros.div_euclid(1_000_000), nanos }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gcloud_sdk::google::firestore::v1::{ArrayValue, MapValue};
    use gcloud_sdk::google::r#type::LatLng;
    use proptest::prelude::*;

    fn of(value_type: ValueType) -> Value {
        Value { value_type: Some(value_type) }
    }

    #[test]
    fn every_type_of_field_has_its_form_in_json() {
        let stamp = prost_types::Timestamp { seconds: 1_772_366_400, nanos: 250_000_999 };
        let inner = HashMap::from([
            ("b".to_owned(), of(ValueType::IntegerValue(2))),
            ("a".to_owned(), Value { value_type: None }),
        ]);
        for (value, expected) in [
            (ValueType::NullValue(0), json!(null)),
            (ValueType::BooleanValue(true), json!(true)),
            (ValueType::IntegerValue(i64::MIN), json!(-9_223_372_036_854_775_808_i64)),
            (ValueType::DoubleValue(3.0), json!(3.0)),
            (ValueType::DoubleValue(f64::NAN), json!("NaN")),
            (ValueType::DoubleValue(f64::NEG_INFINITY), json!("-Infinity")),
            (ValueType::TimestampValue(stamp), json!("2026-03-01T12:00:00.250000Z")),
            (ValueType::StringValue("ä\0".to_owned()), json!("ä\0")),
            (ValueType::BytesValue(vec![0, 255, 16]), json!("AP8Q")),
            (ValueType::ReferenceValue("projects/p/x".to_owned()), json!("projects/p/x")),
            (
                ValueType::GeoPointValue(LatLng { latitude: 52.5, longitude: -13.4 }),
                json!({"latitude": 52.5, "longitude": -13.4}),
            ),
            (
                ValueType::ArrayValue(ArrayValue {
                    values: vec![of(ValueType::IntegerValue(1)), of(ValueType::NullValue(0))],
                }),
                json!([1, null]),
            ),
            (ValueType::MapValue(MapValue { fields: inner }), json!({"a": null, "b": 2})),
        ] {
            assert_eq!(json(of(value)).to_string(), expected.to_string());
        }
    }

    #[test]
    fn equal_documents_give_equal_bytes_whatever_order_their_fields_came_in() {
        let fields = || (0..50).map(|n| (format!("field-{n}"), of(ValueType::IntegerValue(n)))).collect();
        assert_eq!(enrichment(fields()).text(), enrichment(fields()).text());
    }

    proptest! {
        #[test]
        fn stamps_come_back(micros in -62_135_596_800_000_000_i64..253_402_300_800_000_000) {
            let stamp = Timestamp::from_micros(micros);
            prop_assert_eq!(timestamp(&proto_timestamp(stamp)), stamp);
        }
    }
}

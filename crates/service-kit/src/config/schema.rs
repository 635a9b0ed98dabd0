//! The JSON Schema of a configuration, for editors and for the check.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::Value as Json;

/// The schema of `T` (draft 2020-12) with titles, descriptions and defaults. Structures take no unknown keys.
#[must_use]
pub fn schema<T: JsonSchema>() -> Json {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    Closed.transform(&mut schema);
    schema.into()
}

/// Closes structures that say nothing about unknown keys. What is part of another structure (`allOf`, alternatives
/// beside keys) is left open: the outer one closes over all of it.
#[derive(Clone, Copy)]
struct Closed;

impl Transform for Closed {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut() else { return };
        let says_so = object.contains_key("additionalProperties") || object.contains_key("unevaluatedProperties");
        if says_so || !object.contains_key("properties") {
            return;
        }
        let parts = ["allOf", "anyOf", "oneOf"];
        let composed = object.contains_key("$ref") || parts.iter().any(|part| object.contains_key(*part));
        for part in parts {
            for alternative in object.get_mut(part).and_then(Json::as_array_mut).into_iter().flatten() {
                if let Some(alternative) = alternative.as_object_mut() {
                    alternative.remove("additionalProperties");
                }
            }
        }
        let keyword = if composed { "unevaluatedProperties" } else { "additionalProperties" };
        object.insert(keyword.to_owned(), Json::Bool(false));
    }
}

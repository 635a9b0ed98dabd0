//! The JSON Schema of a configuration, for editors and for the check.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::Value as Json;

/// The schema of `T` (draft 2020-12) with titles, descriptions and defaults. Structures take no unknown keys.
#[must_use]
pub fn schema<T: JsonSchema>() -> Json {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    let definitions = schema.get("$defs").cloned().unwrap_or_default();
    Inlined(&definitions).transform(&mut schema);
    Closed.transform(&mut schema);
    schema.into()
}

/// Puts the definition in the place of a reference that has keys beside it (the tag of an alternative): closed, the
/// definition would refuse those.
struct Inlined<'a>(&'a Json);

impl Transform for Inlined<'_> {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut().filter(|object| object.contains_key("properties")) else {
            return;
        };
        let Some(name) = object.get("$ref").and_then(Json::as_str).and_then(|r| r.strip_prefix("#/$defs/"))
        else {
            return;
        };
        let Some(definition) = self.0.get(name).and_then(Json::as_object) else { return };
        object.remove("$ref");
        for (keyword, value) in definition {
            match (object.get_mut(keyword), value) {
                (None, value) => drop(object.insert(keyword.clone(), value.clone())),
                (Some(Json::Object(mine)), Json::Object(theirs)) if keyword == "properties" => {
                    mine.extend(theirs.iter().map(|(key, value)| (key.clone(), value.clone())));
                }
                (Some(Json::Array(mine)), Json::Array(theirs)) if keyword == "required" => {
                    mine.extend(theirs.clone())
                }
                // Descriptions and the like: the alternative's own is the nearer one.
                (Some(_), _) => {}
            }
        }
    }
}

/// Closes structures that say nothing about unknown keys. What is part of another structure (`allOf`, alternatives
/// beside keys) is left open: the outer one closes over all of it.
#[derive(Clone, Copy)]
struct Closed;

impl Transform for Closed {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut() else { return };
        let says_so =
            object.contains_key("additionalProperties") || object.contains_key("unevaluatedProperties");
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

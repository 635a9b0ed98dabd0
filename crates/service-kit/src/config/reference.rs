//! The reference of all keys, from the types.
use serde_json::Value as Json;
/// The reference in Markdown.
#[must_use]
pub fn render_reference(_schema: &Json) -> String { String::new() }

//! A tree against a JSON Schema.
use super::check::Places;
use super::problem::Problem;
use serde_json::Value as Json;
pub(super) fn validate(_schema: &Json, places: &Places, _problems: &mut Vec<Problem>) -> Json { places.root.to_json() }

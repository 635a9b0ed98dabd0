//! Values given outside the file: flags and environment variables.

use super::path::{Path, Step};
use super::problem::{Place, Problem};
use super::scalar::{Kind, Scalar};
use super::tree::{Entry, Node, Spot, Value};
use std::sync::Arc;

/// A value that replaces the file's: a flag or an environment variable.
///
/// The value is a text; it is read as the type that stands at the key (number, boolean, string, list of strings).
/// Where several name one key, the last in the list counts.
#[derive(Clone, Debug)]
pub struct Override {
    /// The key as a JSON Pointer, `/mqtt/listen`. Sections on the way are created.
    pub pointer: String,
    /// The value.
    pub value: String,
    /// What the user wrote it with, for messages: `--mqtt-listen`, `MILLSTREAM_MQTT_LISTEN`.
    pub origin: String,
}

impl Override {
    /// An override.
    pub fn new(pointer: impl Into<String>, value: impl Into<String>, origin: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), value: value.into(), origin: origin.into() }
    }
}

/// Puts `overrides` into the tree.
pub(super) fn apply(root: &mut Node, overrides: &[Override], problems: &mut Vec<Problem>) {
    for item in overrides {
        let origin: Arc<str> = item.origin.as_str().into();
        let path = Path::from_pointer(&item.pointer);
        if set(root, &path.0, item, &origin).is_none() {
            let message = format!(
                "cannot be set by {}: the file has a list or a single value on the way there",
                item.origin
            );
            problems.push(Problem::new(Place::Override(origin), &path, message));
        }
    }
}

fn set(node: &mut Node, steps: &[Step], item: &Override, origin: &Arc<str>) -> Option<()> {
    let spot = || Spot::Override(origin.clone());
    let Some((step, rest)) = steps.split_first() else {
        node.spot = spot();
        node.value =
            Value::Scalar(Scalar { text: item.value.clone(), kind: Kind::Dynamic, shown: shown(item) });
        return Some(());
    };
    if matches!(&node.value, Value::Scalar(scalar) if scalar.is_null()) {
        node.value = Value::Map(Vec::new());
    }
    match (&mut node.value, step) {
        (Value::List(items), Step::Index(index)) => set(items.get_mut(*index)?, rest, item, origin),
        (Value::Map(entries), step) => {
            let key = match step {
                Step::Key(key) => key.clone(),
                Step::Index(index) => index.to_string(),
            };
            let position = entries.iter().position(|entry| entry.key == key).unwrap_or_else(|| {
                let node = Node { spot: spot(), value: Value::Map(Vec::new()) };
                entries.push(Entry { key, spot: spot(), node });
                entries.len() - 1
            });
            set(&mut entries[position].node, rest, item, origin)
        }
        _ => None,
    }
}

/// A flag's value stands on the screen anyway; a variable's may be a secret.
fn shown(item: &Override) -> String {
    if item.origin.starts_with('-') { item.value.clone() } else { format!("the value of {}", item.origin) }
}

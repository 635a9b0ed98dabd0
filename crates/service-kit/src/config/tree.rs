//! A configuration as a tree in which every key and value knows where it was written.

use super::path::{Path, Step};
use super::problem::Place;
use super::scalar::Scalar;
use std::sync::Arc;

/// Where a node was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Spot {
    File { line: usize, column: usize },
    Override(Arc<str>),
}

impl Spot {
    pub(super) fn place(&self, file: &Arc<str>) -> Place {
        match self {
            Self::File { line, column } => Place::File { name: file.clone(), line: *line, column: *column },
            Self::Override(origin) => Place::Override(origin.clone()),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) spot: Spot,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) spot: Spot,
    pub(super) node: Node,
}

impl Node {
    /// The JSON value of the tree, scalars by YAML's own rules.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Scalar(scalar) => scalar.natural(),
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => {
                entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json())).collect()
            }
        }
    }

    /// The node at `path` or, where the file has none, its nearest ancestor other than the root.
    pub(super) fn nearest(&self, path: &Path) -> Option<&Self> {
        let mut node = self;
        for step in &path.0 {
            let child = match (&node.value, step) {
                (Value::Map(entries), Step::Key(key)) => entry(entries, key).map(|entry| &entry.node),
                (Value::Map(entries), Step::Index(index)) => {
                    entry(entries, &index.to_string()).map(|entry| &entry.node)
                }
                (Value::List(items), Step::Index(index)) => items.get(*index),
                _ => None,
            };
            match child {
                Some(child) => node = child,
                None => break,
            }
        }
        (!std::ptr::eq(node, self)).then_some(node)
    }

    /// What stands here, for "expected …, found …". Shows text only as far as it was written in the file or on the
    /// command line: what came from the environment may be a secret.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Scalar(scalar) => scalar.describe(),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a section (key: value)".to_owned(),
        }
    }
}

pub(super) fn entry<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.key == key)
}

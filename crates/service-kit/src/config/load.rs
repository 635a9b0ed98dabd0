//! The way from text to a checked value.

use super::check::{Check, Places};
use super::overrides::{self, Override};
use super::path::{Path, Step};
use super::problem::{ConfigErrors, Place, Problem};
use super::source::Source;
use super::tree::{Node, Value as Tree};
use super::{expand, schema, validate, yaml};
use crate::sections::OTHER_SECTION;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;
use std::collections::HashMap;

/// A configuration that fits its type, with the places of its keys.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub value: T,
    places: Places,
}

impl<T> Loaded<T> {
    /// Where the value at `pointer` (JSON Pointer) was given; for a default, its nearest section in the file.
    #[must_use]
    pub fn locate(&self, pointer: &str) -> Place {
        self.places.locate(&Path::from_pointer(pointer))
    }

    /// A collector for mistakes and warnings that only the program can see.
    #[must_use]
    pub fn check(&self) -> Check {
        Check::new(self.places.clone())
    }
}

/// What there is of a configuration with mistakes.
#[derive(Clone, Debug)]
pub struct Partial<T> {
    /// The mistakes.
    pub errors: ConfigErrors,
    /// The sections without mistakes, with defaults in place of the others; for finding what else is wrong. `None`
    /// where the mistake is in the file as a whole.
    pub rest: Option<Loaded<T>>,
}

/// Reads a configuration: YAML, then the environment's values, then `overrides` (the last one for a key counts),
/// then the check against the type.
///
/// `environment` is what `${VAR}` sees. Nothing is opened but the files of [`Secret`](super::Secret)s.
///
/// # Errors
/// Every mistake with its place.
pub fn load<T: DeserializeOwned + JsonSchema>(
    source: &Source,
    environment: &HashMap<String, String>,
    overrides: &[Override],
) -> Result<Loaded<T>, ConfigErrors> {
    load_or_partial(source, environment, overrides).map_err(|partial| partial.errors)
}

/// [`load`] that hands out the sections without mistakes too, so that they can be checked further in the same run.
///
/// # Errors
/// Every mistake with its place, and the rest.
pub fn load_or_partial<T: DeserializeOwned + JsonSchema>(
    source: &Source,
    environment: &HashMap<String, String>,
    overrides: &[Override],
) -> Result<Loaded<T>, Box<Partial<T>>> {
    let schema = schema::schema::<T>();
    let mut problems = Vec::new();
    let Some(mut root) = yaml::parse(source, &mut problems) else {
        return Err(Box::new(Partial { errors: ConfigErrors::new(problems, Vec::new()), rest: None }));
    };
    if let Node { value: Tree::Map(sections), .. } = &mut root {
        sections.retain(|section| schema["properties"][&section.key][OTHER_SECTION] != true);
    }
    overrides::apply(&mut root, overrides, &mut problems);
    expand::expand(&mut root, &Path::default(), &source.name, environment, &mut problems);
    let places = Places { file: source.name.clone(), root };
    let value = validate::validate(&schema, &places, &mut problems);
    if !problems.is_empty() {
        return Err(Box::new(partial(value, places, ConfigErrors::new(problems, Vec::new()))));
    }
    match serde_path_to_error::deserialize(value.clone()) {
        Ok(value) => Ok(Loaded { value, places }),
        Err(error) => {
            let path = key_path(error.path());
            let message = places.without_hidden(&path, in_words(error.into_inner().to_string()));
            let problem = Problem::new(places.locate(&path), &path, message);
            Err(Box::new(partial(value, places, ConfigErrors::new(vec![problem], Vec::new()))))
        }
    }
}

/// The sections of `value` in which there is no mistake.
fn partial<T: DeserializeOwned>(mut value: Value, places: Places, errors: ConfigErrors) -> Partial<T> {
    let broken = errors.sections();
    if let Some(sections) = value.as_object_mut()
        && !broken.contains("")
    {
        sections.retain(|name, _| !broken.contains(name.as_str()));
        let rest = serde_json::from_value(value).ok().map(|value| Loaded { value, places });
        return Partial { errors, rest };
    }
    Partial { errors, rest: None }
}

/// The standard library's address types have no format in their schema, and their error says too little.
fn in_words(message: String) -> String {
    match message.as_str() {
        "invalid socket address syntax" => {
            "not an address with a port; write one such as 127.0.0.1:8080 or [::1]:8080".to_owned()
        }
        _ => message,
    }
}

fn key_path(path: &serde_path_to_error::Path) -> Path {
    let steps = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        // A variant is written as a key only where it holds the value; its content's path is the nearest place.
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    Path(steps.collect())
}

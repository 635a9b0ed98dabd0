//! A tree against a JSON Schema: every mistake with its place and what would be right.
//!
//! Understands what `schemars` generates for configuration types: `type`, `enum`, `const`, `properties`, `required`,
//! `additionalProperties`, `items`, `$ref`, `allOf`, alternatives (`anyOf`, `oneOf`) and bounds. What it does not
//! know it lets pass; deserialising has the last word.

use super::check::Places;
use super::path::Path;
use super::problem::Problem;
use super::shape::{self, Shape};
use super::tree::{Entry, Node, Value, entry};
use super::{secret, secret::Secret};
use serde_json::{Map, Value as Json};

/// Checks the tree and answers with its value, in which scalars from outside the file have the types that their
/// keys want. The value is of use only if no problem was added.
pub(super) fn validate(schema: &Json, places: &Places, problems: &mut Vec<Problem>) -> Json {
    let mut validator = Validator { root: schema, places, problems: Vec::new() };
    let value = validator.check(schema, &places.root, &Path::default());
    problems.append(&mut validator.problems);
    value
}

pub(super) struct Validator<'a> {
    pub(super) root: &'a Json,
    places: &'a Places,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Validator<'a> {
    pub(super) fn check(&mut self, schema: &'a Json, node: &'a Node, path: &Path) -> Json {
        let schema = shape::resolve(self.root, schema);
        if schema.get("format").and_then(Json::as_str) == Some(secret::FORMAT) {
            return self.secret(node, path);
        }
        if !shape::is_structure(schema)
            && let Some(branches) = shape::alternatives(schema)
        {
            return match self.pick(branches, schema, node, path) {
                Some(branch) => self.check(branch, node, path),
                None => Json::Null,
            };
        }
        if let Some(choices) = shape::choices(self.root, schema) {
            return self.choice(&choices, schema, node, path);
        }
        let types = shape::types(self.root, schema);
        match &node.value {
            Value::Map(entries) if shape::allows(&types, "object") => {
                let shape = self.shape_for(schema, node, path);
                self.structure(&shape, entries, node, path)
            }
            Value::List(items) if shape::allows(&types, "array") => self.list(schema, items, node, path),
            Value::Scalar(_) => self.scalar(schema, &types, node, path),
            _ => self.wrong_type(schema, node, path),
        }
    }

    /// All keys that apply: the schema's own, those of its parts and those of the alternatives that fit.
    fn shape_for(&mut self, schema: &'a Json, node: &'a Node, path: &Path) -> Shape<'a> {
        let mut shape = Shape::default();
        let mut pending = vec![schema];
        while let Some(part) = pending.pop() {
            shape.add(part);
            pending.extend(shape::parts(self.root, part));
            if let Some(branches) = shape::alternatives(part)
                && let Some(branch) = self.pick(branches, part, node, path)
            {
                pending.push(shape::resolve(self.root, branch));
            }
        }
        shape
    }

    fn structure(&mut self, shape: &Shape<'a>, entries: &'a [Entry], node: &'a Node, path: &Path) -> Json {
        let mut object = Map::new();
        let mut absent: Vec<&str> = Vec::new();
        for Entry { key, spot, node } in entries {
            let at = path.key(key);
            match (shape.property(key), shape.additional) {
                (Some(schema), _) if self.counts_as_absent(schema, node) => absent.push(key),
                (Some(schema), _) => drop(object.insert(key.clone(), self.check(schema, node, &at))),
                (None, Some(schema)) => drop(object.insert(key.clone(), self.check(schema, node, &at))),
                (None, None) if shape.is_closed() => {
                    let place = spot.place(&self.places.file);
                    self.problems.push(Problem::new(place, &at, shape.unknown_key(key)));
                }
                (None, None) => drop(object.insert(key.clone(), node.to_json())),
            }
        }
        for key in &shape.required {
            if entry(entries, key).is_none() || absent.contains(key) {
                let example = shape.property(key).map(|schema| shape::expected(self.root, schema));
                let hint = example.map_or_else(String::new, |what| format!("; give {what}"));
                self.refuse(node, &path.key(key), format!("is missing{hint}"));
            }
        }
        Json::Object(object)
    }

    /// `section:` with nothing below it (all commented out) is a section left out.
    fn counts_as_absent(&self, schema: &'a Json, node: &Node) -> bool {
        let Value::Scalar(scalar) = &node.value else { return false };
        let types = shape::types(self.root, schema);
        let container = types.contains(&"object") || types.contains(&"array");
        scalar.is_null() && container && !shape::allows(&types, "null")
    }

    fn list(&mut self, schema: &'a Json, items: &'a [Node], node: &'a Node, path: &Path) -> Json {
        if let Some(least) = schema.get("minItems").and_then(Json::as_u64)
            && (items.len() as u64) < least
        {
            self.refuse(node, path, format!("has {} entries; at least {least} are needed", items.len()));
        }
        if let Some(most) = schema.get("maxItems").and_then(Json::as_u64)
            && items.len() as u64 > most
        {
            self.refuse(node, path, format!("has {} entries; at most {most} are allowed", items.len()));
        }
        let fixed = schema.get("prefixItems").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let rest = schema.get("items");
        let mut values = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            values.push(match fixed.get(index).or(rest) {
                Some(schema) => self.check(schema, item, &path.index(index)),
                None => item.to_json(),
            });
        }
        if schema.get("uniqueItems") == Some(&Json::Bool(true)) {
            for (index, value) in values.iter().enumerate() {
                if values[..index].contains(value) {
                    self.refuse(&items[index], &path.index(index), "stands in the list twice; keep one");
                }
            }
        }
        Json::Array(values)
    }

    fn scalar(&mut self, schema: &'a Json, types: &[&str], node: &'a Node, path: &Path) -> Json {
        let Value::Scalar(scalar) = &node.value else { return Json::Null };
        if types.is_empty() {
            return scalar.natural();
        }
        if let Some(value) = scalar.as_other() {
            let fits = match &value {
                Json::Null => types.contains(&"null"),
                Json::Bool(_) => types.contains(&"boolean"),
                Json::Number(number) if number.is_f64() => types.contains(&"number"),
                _ => types.contains(&"integer") || types.contains(&"number"),
            };
            if fits {
                self.bounds(schema, &value, node, path);
                return value;
            }
        }
        match scalar.as_text() {
            Some(text) if types.contains(&"string") => {
                self.text(schema, text, node, path);
                Json::String(text.to_owned())
            }
            _ => self.wrong_type(schema, node, path),
        }
    }

    fn text(&mut self, schema: &'a Json, text: &str, node: &'a Node, path: &Path) {
        let length = text.chars().count() as u64;
        if let Err(message) = super::format::check(schema.get("format").and_then(Json::as_str), text) {
            let hidden = matches!(&node.value, Value::Scalar(scalar) if scalar.is_hidden());
            let expected =
                || format!("expected {}, found {}", shape::expected(self.root, schema), node.describe());
            self.refuse(node, path, if hidden { expected() } else { message });
        } else if schema.get("minLength").and_then(Json::as_u64).is_some_and(|least| length < least) {
            self.refuse(node, path, if text.is_empty() { "must not be empty" } else { "is too short" });
        } else if let Some(most) = schema.get("maxLength").and_then(Json::as_u64)
            && length > most
        {
            self.refuse(node, path, format!("is longer than {most} characters"));
        }
    }

    fn bounds(&mut self, schema: &'a Json, value: &Json, node: &'a Node, path: &Path) {
        let Some(bounds) = shape::bounds(schema) else { return };
        if let Json::Number(number) = value
            && !bounds.hold(number)
        {
            self.refuse(node, path, format!("{} is out of range; give {bounds}", node.describe()));
        }
    }

    pub(super) fn choice(
        &mut self,
        choices: &[&'a Json],
        schema: &'a Json,
        node: &'a Node,
        path: &Path,
    ) -> Json {
        let Value::Scalar(scalar) = &node.value else { return self.wrong_type(schema, node, path) };
        let wanted = |choice: &&&Json| match choice {
            Json::String(choice) => scalar.as_text() == Some(choice.as_str()),
            choice => scalar.as_other().as_ref() == Some(*choice),
        };
        if let Some(choice) = choices.iter().find(wanted) {
            return (*choice).clone();
        }
        let message = format!("{} is not one of {}", node.describe(), shape::list_choices(choices));
        let near = shape::nearest(&scalar.text, choices.iter().filter_map(|choice| choice.as_str()));
        let near = near.map_or_else(String::new, |near| format!("; did you mean {near}?"));
        self.refuse(node, path, format!("{message}{near}"));
        Json::Null
    }

    /// A secret, read from its file if it names one, so that a missing file is found with the other mistakes.
    fn secret(&mut self, node: &Node, path: &Path) -> Json {
        match &node.value {
            Value::Scalar(scalar) if !scalar.is_null() => match scalar.as_text() {
                Some(text) => return Json::String(text.to_owned()),
                None => self.refuse(node, path, "a secret is a text; put it in quotes"),
            },
            Value::Map(entries) if entries.len() == 1 && entries[0].key == "file" => {
                if let Value::Scalar(file) = &entries[0].node.value
                    && let Some(file) = file.as_text()
                {
                    match Secret::from_file(std::path::Path::new(file)) {
                        Ok(secret) => return Json::String(secret.expose().to_owned()),
                        Err(error) => self.refuse(&entries[0].node, path, error.to_string()),
                    }
                } else {
                    self.refuse(node, path, "the file of a secret is a path; write {file: PATH}");
                }
            }
            _ => self.refuse(node, path, "give the secret as a text, ${VARIABLE} or {file: PATH}"),
        }
        Json::Null
    }

    pub(super) fn wrong_type(&mut self, schema: &'a Json, node: &'a Node, path: &Path) -> Json {
        let expected = shape::expected(self.root, schema);
        let mut message = format!("expected {expected}, found {}", node.describe());
        if let Value::Scalar(scalar) = &node.value {
            let types = shape::types(self.root, schema);
            if scalar.is_hidden() {
                // The hints below would show what it is.
            } else if types.contains(&"string") && scalar.as_other().is_some_and(|value| !value.is_null()) {
                // A duration or size names its own mistake; other texts lack only the quotes.
                match super::format::check(schema.get("format").and_then(Json::as_str), &scalar.text) {
                    Err(why) => message = why,
                    Ok(()) if self.could_be_quoted(schema, &scalar.text) => {
                        message.push_str("; put it in quotes")
                    }
                    Ok(()) => {}
                }
            } else if types.contains(&"boolean") && ["yes", "no", "on", "off"].contains(&scalar.text.as_str())
            {
                message.push_str("; write true or false");
            }
        }
        self.refuse(node, path, message);
        Json::Null
    }

    fn could_be_quoted(&self, schema: &'a Json, text: &str) -> bool {
        let choices = shape::choices(self.root, shape::resolve(self.root, schema));
        choices.is_none_or(|choices| choices.iter().any(|choice| choice.as_str() == Some(text)))
    }

    pub(super) fn refuse(&mut self, node: &Node, path: &Path, message: impl Into<String>) {
        // The root's place is the file's first line, which says nothing.
        let place = if path.0.is_empty() || std::ptr::eq(node, &raw const self.places.root) {
            super::problem::Place::Default(self.places.file.clone())
        } else {
            node.spot.place(&self.places.file)
        };
        self.problems.push(Problem::new(place, path, message));
    }

    /// Runs `check` without keeping its problems.
    pub(super) fn attempt(&mut self, branch: &'a Json, node: &'a Node, path: &Path) -> usize {
        let mut trial = Validator { root: self.root, places: self.places, problems: Vec::new() };
        trial.check(branch, node, path);
        trial.problems.len()
    }
}

//! Which of several alternatives a value was meant to be, so that its mistakes are told against that one.

use super::path::Path;
use super::shape::{self, Shape};
use super::tree::{Entry, Node, Value, entry};
use super::validate::Validator;
use serde_json::Value as Json;

impl<'a> Validator<'a> {
    /// The alternative to check `node` against; `None` after a problem was added because none is near.
    pub(super) fn pick(
        &mut self,
        branches: &'a [Json],
        whole: &'a Json,
        node: &'a Node,
        path: &Path,
    ) -> Option<&'a Json> {
        let fitting: Vec<&'a Json> = branches.iter().filter(|branch| self.type_fits(branch, node)).collect();
        match fitting.as_slice() {
            [] => {
                self.wrong_type(whole, node, path);
                return None;
            }
            [one] => return Some(one),
            _ => {}
        }
        match &node.value {
            Value::Map(entries) => match self.by_tag(&fitting, entries, node, path) {
                Tagged::No => {}
                Tagged::Chosen(branch) => return Some(branch),
                Tagged::Refused => return None,
            },
            // Words with a description each: one choice, told as one.
            Value::Scalar(_) => {
                let choices: Option<Vec<_>> = fitting
                    .iter()
                    .map(|branch| shape::choices(self.root, shape::resolve(self.root, branch)))
                    .collect();
                if let Some(choices) = choices {
                    let choices: Vec<&Json> = choices.into_iter().flatten().collect();
                    let before = self.problems.len();
                    self.choice(&choices, whole, node, path);
                    let chosen = fitting.into_iter().find(|branch| self.attempt(branch, node, path) == 0);
                    return chosen.filter(|_| self.problems.len() == before);
                }
            }
            Value::List(_) => {}
        }
        fitting.into_iter().min_by_key(|branch| self.attempt(branch, node, path))
    }

    fn type_fits(&self, branch: &'a Json, node: &Node) -> bool {
        let types = shape::types(self.root, branch);
        match &node.value {
            Value::Map(_) => shape::allows(&types, "object"),
            Value::List(_) => shape::allows(&types, "array"),
            Value::Scalar(scalar) => {
                let other = scalar.as_other().map(|value| match value {
                    Json::Null => "null",
                    Json::Bool(_) => "boolean",
                    Json::Number(number) if number.is_f64() => "number",
                    _ => "integer",
                });
                let as_other = other.is_some_and(|kind| {
                    shape::allows(&types, kind) || (kind == "integer" && shape::allows(&types, "number"))
                });
                as_other || (scalar.as_text().is_some() && shape::allows(&types, "string"))
            }
        }
    }

    /// Chooses by a key that names the alternative: `kind: mqtt` inside it, or `mqtt: …` around it.
    fn by_tag(
        &mut self,
        fitting: &[&'a Json],
        entries: &'a [Entry],
        node: &'a Node,
        path: &Path,
    ) -> Tagged<'a> {
        let shapes: Vec<Shape<'a>> = fitting.iter().map(|branch| Shape::of(self.root, branch)).collect();
        if let Some(tag) = shapes[0].tags().find(|tag| shapes.iter().all(|shape| shape.tag(tag).is_some())) {
            let choices: Vec<&Json> = shapes.iter().filter_map(|shape| shape.tag(tag)).collect();
            let Some(given) = entry(entries, tag) else {
                let message = format!("is missing; give one of {}", shape::list_choices(&choices));
                self.refuse(node, &path.key(tag), message);
                return Tagged::Refused;
            };
            if let Value::Scalar(scalar) = &given.node.value
                && let Some(index) = choices.iter().position(|choice| choice.as_str() == Some(&scalar.text))
            {
                return Tagged::Chosen(fitting[index]);
            }
            self.choice(&choices, fitting[0], &given.node, &path.key(tag));
            return Tagged::Refused;
        }
        let names: Option<Vec<&str>> = shapes.iter().map(Shape::only_key).collect();
        let Some(names) = names else { return Tagged::No };
        if let Some(index) = names.iter().position(|name| entry(entries, name).is_some()) {
            return Tagged::Chosen(fitting[index]);
        }
        let given = entries.first().map_or_else(|| "nothing".to_owned(), |entry| format!("{:?}", entry.key));
        self.refuse(node, path, format!("expected one of the keys {}, found {given}", names.join(", ")));
        Tagged::Refused
    }
}

enum Tagged<'a> {
    /// No key tells them apart.
    No,
    Chosen(&'a Json),
    /// The key is missing or wrong, which has been told.
    Refused,
}

//! The reference of all keys, from the types.

use super::shape::{self, Shape};
use serde_json::Value as Json;
use std::fmt::Write;

/// Deepest nesting that is shown; a type that contains itself ends here.
const MAX_DEPTH: usize = 12;

/// A Markdown reference from a schema made by [`schema`](super::schema()): one chapter per section, in the order
/// of the types; every key with its type, default and description.
#[must_use]
pub fn render_reference(schema: &Json) -> String {
    let mut out = String::new();
    let shape = Shape::of(schema, schema);
    let (sections, single): (Vec<_>, Vec<_>) =
        shape.properties().partition(|(_, property)| nested(schema, property).is_some());
    let mut rows = Vec::new();
    for (key, property) in single {
        row(schema, key, property, &shape, "", 0, &mut rows);
    }
    table(&rows, &mut out);
    for (key, property) in sections {
        let _ = write!(out, "## `{key}`\n\n");
        let description = description(schema, property);
        if !description.is_empty() {
            let _ = write!(out, "{description}\n\n");
        }
        let mut rows = Vec::new();
        if let Some((suffix, inner)) = nested(schema, property) {
            keys(schema, &format!("{key}{suffix}"), inner, "", 0, &mut rows);
        }
        table(&rows, &mut out);
    }
    out
}

/// Key, type, default, description.
type Row = [String; 4];

fn table(rows: &[Row], out: &mut String) {
    if rows.is_empty() {
        return;
    }
    out.push_str("| key | type | default | meaning |\n| --- | --- | --- | --- |\n");
    for cells in rows {
        let cells = cells.each_ref().map(|cell| cell.replace('|', "\\|").replace('\n', " "));
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    out.push('\n');
}

/// The rows of the keys below `path`; `when` says under which choice of an alternative they exist.
fn keys(root: &Json, path: &str, schema: &Json, when: &str, depth: usize, rows: &mut Vec<Row>) {
    if depth > MAX_DEPTH {
        return;
    }
    let schema = shape::resolve(root, schema);
    let shape = Shape::of(root, schema);
    for (key, property) in shape.properties().filter(|(_, property)| property.get("const").is_none()) {
        row(root, &format!("{path}.{key}"), property, &shape, when, depth, rows);
    }
    let branches: Vec<&Json> = shape::alternatives(schema).unwrap_or_default().iter().collect();
    let branches: Vec<_> = branches.into_iter().map(|branch| (branch, Shape::of(root, branch))).collect();
    if let Some(tag) = branches.first().and_then(|(_, shape)| shape.tags().next()) {
        let choices: Vec<&Json> = branches.iter().filter_map(|(_, shape)| shape.tag(tag)).collect();
        let meaning: Vec<String> =
            branches.iter().filter_map(|(branch, shape)| choice(branch, shape.tag(tag)?)).collect();
        let kind = format!("one of {}", shape::list_choices(&choices));
        rows.push([
            format!("`{path}.{tag}`"),
            kind,
            "required".to_owned(),
            format!("{when}{}", meaning.join(" ")),
        ]);
        for (branch, shape) in &branches {
            let word = shape.tag(tag).and_then(Json::as_str).unwrap_or_default();
            keys(root, path, branch, &format!("With `{tag}: {word}`: "), depth + 1, rows);
        }
    } else {
        for (branch, shape) in &branches {
            if let Some((key, property)) = shape.only_key().and_then(|key| Some((key, shape.property(key)?)))
            {
                let meaning = format!("{when}{}", description(root, branch));
                rows.push([
                    format!("`{path}.{key}`"),
                    kind(root, property),
                    "one of these".to_owned(),
                    meaning,
                ]);
                if let Some((suffix, inner)) = nested(root, property) {
                    keys(root, &format!("{path}.{key}{suffix}"), inner, when, depth + 1, rows);
                }
            }
        }
    }
}

fn choice(branch: &Json, word: &Json) -> Option<String> {
    let description = branch.get("description")?.as_str()?;
    Some(format!("`{}`: {}", word.as_str()?, one_line(description)))
}

fn row(
    root: &Json,
    path: &str,
    property: &Json,
    parent: &Shape<'_>,
    when: &str,
    depth: usize,
    rows: &mut Vec<Row>,
) {
    let name = path.rsplit('.').next().unwrap_or(path);
    let inner = nested(root, property);
    let required = parent.required.contains(&name);
    let default = match property.get("default") {
        _ if required => "required".to_owned(),
        None | Some(Json::Null) => String::new(),
        Some(Json::Object(_)) if inner.is_some() => String::new(),
        Some(Json::String(text)) => format!("`{text}`"),
        Some(value) => format!("`{value}`"),
    };
    let meaning = format!("{when}{}", description(root, property));
    rows.push([format!("`{path}`"), kind(root, property), default, meaning]);
    if let Some((suffix, inner)) = inner {
        keys(root, &format!("{path}{suffix}"), inner, when, depth + 1, rows);
    }
}

/// The structure within a value and how its keys are addressed: directly, in a list (`[]`), in a map (`.NAME`).
fn nested<'a>(root: &'a Json, schema: &'a Json) -> Option<(String, &'a Json)> {
    let schema = shape::resolve(root, schema);
    if schema.get("format").and_then(Json::as_str) == Some(super::secret::FORMAT) {
        return None;
    }
    if let Some(items) = schema.get("items") {
        return nested(root, items).map(|(suffix, inner)| (format!("[]{suffix}"), inner));
    }
    if schema.get("properties").is_some() {
        return Some((String::new(), schema));
    }
    if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
        return nested(root, values).map(|(suffix, inner)| (format!(".NAME{suffix}"), inner));
    }
    let branches: Vec<&Json> =
        shape::alternatives(schema)?.iter().filter(|branch| shape::types(root, branch) != ["null"]).collect();
    match branches.as_slice() {
        [one] => nested(root, one),
        several if several.iter().all(|branch| is_named(&Shape::of(root, branch))) => {
            Some((String::new(), schema))
        }
        _ => None,
    }
}

/// Whether a key tells this alternative from the others: a fixed word in it, or the key around it.
fn is_named(shape: &Shape<'_>) -> bool {
    shape.tags().next().is_some() || shape.only_key().is_some()
}

fn kind(root: &Json, schema: &Json) -> String {
    let schema = shape::resolve(root, schema);
    match nested(root, schema) {
        Some((suffix, _)) if suffix.starts_with("[]") => "a list of sections".to_owned(),
        Some((suffix, _)) if suffix.starts_with('.') => "sections by name".to_owned(),
        Some(_) => "a section".to_owned(),
        None => match schema.get("items") {
            Some(items) => format!("a list; each {}", shape::kind(root, items)),
            None => shape::kind(root, schema),
        },
    }
}

fn description(root: &Json, schema: &Json) -> String {
    let own = schema.get("description").or_else(|| shape::resolve(root, schema).get("description"));
    let mut text = one_line(own.and_then(Json::as_str).unwrap_or_default());
    let branches = shape::alternatives(shape::resolve(root, schema)).unwrap_or_default();
    for branch in branches.iter().filter(|branch| branch.get("properties").is_none()) {
        if let Some(meaning) = branch.get("const").and_then(|word| choice(branch, word)) {
            let separator = if text.is_empty() { "" } else { " " };
            let _ = write!(text, "{separator}{meaning}");
        }
    }
    text
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

//! `${VAR}` and `${VAR:-default}` in values.

use super::path::Path;
use super::problem::Problem;
use super::scalar::{Kind, Scalar};
use super::tree::{Node, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// Expands the values below `node`; keys stay as they are. The text put in is never read as YAML again.
///
/// `${VAR:-default}` takes the default where VAR is unset or empty, as a shell does; `$${` stands for `${`.
pub(super) fn expand(
    node: &mut Node,
    path: &Path,
    file: &Arc<str>,
    environment: &HashMap<String, String>,
    problems: &mut Vec<Problem>,
) {
    match &mut node.value {
        Value::Scalar(scalar) => match expand_text(&scalar.text, environment) {
            Ok(None) => {}
            Ok(Some(Expanded { text, from_environment })) => {
                let kind = if from_environment { Kind::Dynamic } else { scalar.kind };
                *scalar = Scalar { shown: std::mem::take(&mut scalar.text), text, kind };
            }
            Err(message) => problems.push(Problem::new(node.spot.place(file), path, message)),
        },
        Value::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand(item, &path.index(index), file, environment, problems);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                expand(&mut entry.node, &path.key(&entry.key), file, environment, problems);
            }
        }
    }
}

struct Expanded {
    text: String,
    from_environment: bool,
}

/// `None` where there is nothing to expand.
fn expand_text(text: &str, environment: &HashMap<String, String>) -> Result<Option<Expanded>, String> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut expanded = Expanded { text: String::with_capacity(text.len()), from_environment: false };
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if let Some(before) = rest[..start].strip_suffix('$') {
            expanded.text.push_str(before);
            expanded.text.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        expanded.text.push_str(&rest[..start]);
        let inside = &rest[start + 2..];
        let end =
            inside.find('}').ok_or("\"${\" without \"}\"; write $${ for the characters ${ themselves")?;
        expanded.text.push_str(&variable(&inside[..end], environment)?);
        expanded.from_environment = true;
        rest = &inside[end + 1..];
    }
    expanded.text.push_str(rest);
    Ok(Some(expanded))
}

fn variable(reference: &str, environment: &HashMap<String, String>) -> Result<String, String> {
    let (name, default) = match reference.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (reference, None),
    };
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !valid {
        return Err(format!(
            "{name:?} is not the name of an environment variable; write ${{NAME}} or ${{NAME:-default}}"
        ));
    }
    match (environment.get(name), default) {
        (Some(value), None) => Ok(value.clone()),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value.clone()),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            Err(format!("the environment variable {name} is not set; set it or write ${{{name}:-default}}"))
        }
    }
}

//! A configuration as YAML text.

use serde::Serialize;
use serde_json::Value as Json;

/// The configuration in force as YAML, secrets masked. Reads back as the same value.
///
/// # Errors
/// When `config` cannot be represented (a map whose keys are not texts).
pub fn print_config<T: Serialize>(config: &T) -> Result<String, serde_json::Error> {
    Ok(emit(&serde_json::to_value(config)?))
}

/// YAML for a JSON value.
pub(super) fn emit(value: &Json) -> String {
    let mut out = String::new();
    match value {
        Json::Object(map) if !map.is_empty() => object(map, 0, false, &mut out),
        Json::Array(items) if !items.is_empty() => array(items, 0, false, &mut out),
        value => {
            out.push_str(&inline(value));
            out.push('\n');
        }
    }
    out
}

/// `in_item`: the first key stands behind the dash of a list.
fn object(map: &serde_json::Map<String, Json>, indent: usize, in_item: bool, out: &mut String) {
    for (index, (key, value)) in map.iter().enumerate() {
        start_line(indent, in_item && index == 0, out);
        out.push_str(&text(key));
        out.push(':');
        below(value, indent, out);
    }
}

fn array(items: &[Json], indent: usize, in_item: bool, out: &mut String) {
    for (index, item) in items.iter().enumerate() {
        start_line(indent, in_item && index == 0, out);
        out.push('-');
        match item {
            Json::Object(map) if !map.is_empty() => {
                out.push(' ');
                object(map, indent + 2, true, out);
            }
            Json::Array(items) if !items.is_empty() => {
                out.push(' ');
                array(items, indent + 2, true, out);
            }
            item => {
                out.push(' ');
                out.push_str(&inline(item));
                out.push('\n');
            }
        }
    }
}

fn below(value: &Json, indent: usize, out: &mut String) {
    match value {
        Json::Object(map) if !map.is_empty() => {
            out.push('\n');
            object(map, indent + 2, false, out);
        }
        Json::Array(items) if !items.is_empty() => {
            out.push('\n');
            array(items, indent + 2, false, out);
        }
        value => {
            out.push(' ');
            out.push_str(&inline(value));
            out.push('\n');
        }
    }
}

fn start_line(indent: usize, after_dash: bool, out: &mut String) {
    if !after_dash {
        out.extend(std::iter::repeat_n(' ', indent));
    }
}

fn inline(value: &Json) -> String {
    match value {
        Json::String(value) => text(value),
        Json::Array(_) => "[]".to_owned(),
        Json::Object(_) => "{}".to_owned(),
        value => value.to_string(),
    }
}

/// Plain where nothing in it means anything to YAML, else in double quotes, as JSON writes it. What would be
/// expanded when it is read back is escaped.
fn text(value: &str) -> String {
    let value = value.replace("${", "$${");
    let first_plain = value.starts_with(|c: char| c.is_alphabetic() || c == '/' || c == '$');
    let number = value.starts_with(|c: char| c.is_ascii_digit());
    let plain_inside = |c: char| c.is_ascii_alphanumeric() || "/_-.+$".contains(c);
    let plain = (first_plain || number)
        && value.chars().all(plain_inside)
        && super::scalar::resolve(&value).is_string();
    if plain { value } else { quoted(&value) }
}

fn quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() || "\u{2028}\u{2029}\u{feff}\u{85}".contains(c) => {
                out.push_str(&format!("\\U{:08x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

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
        out.push_str(&text(key.clone()));
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
        // What stands for itself now would be expanded when it is read back; keys never are.
        Json::String(value) => text(value.replace("${", "$${")),
        Json::Array(_) => "[]".to_owned(),
        Json::Object(_) => "{}".to_owned(),
        value => value.to_string(),
    }
}

/// Plain where nothing in it means anything to YAML, else in double quotes.
fn text(value: String) -> String {
    let plain_start = value.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/' || c == '$');
    let plain_inside = |c: char| c.is_ascii_alphanumeric() || "/_-.+$".contains(c);
    let plain = plain_start && value.chars().all(plain_inside) && super::scalar::resolve(&value).is_string();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check::Places;
    use crate::config::path::Path;
    use crate::config::source::Source;
    use crate::config::{expand, yaml};
    use proptest::prelude::*;

    fn read(text: &str) -> Json {
        let source = Source::text("printed.yaml", text);
        let mut problems = Vec::new();
        let mut root =
            yaml::parse(&source, &mut problems).unwrap_or_else(|| panic!("{problems:?} in\n{text}"));
        expand::expand(&mut root, &Path::default(), &source.name, &Default::default(), &mut problems);
        assert!(problems.is_empty(), "{problems:?} in\n{text}");
        Places { file: source.name, root }.root.to_json()
    }

    fn json() -> impl Strategy<Value = Json> {
        let text =
            prop_oneof![any::<String>(), "[ -~]{0,8}", "(true|null|~|1e3|0x1|- a|a: b|# c|\\$\\{A\\}|---)"];
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            (-1e6_f64..1e6).prop_map(Json::from),
            text.clone().prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 32, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
                proptest::collection::vec((text.clone(), inner), 0..5)
                    .prop_map(|m| Json::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back_as_the_same_value(map in proptest::collection::vec(("[a-z]{1,4}", json()), 0..4)) {
            let value = Json::Object(map.into_iter().collect());
            prop_assert_eq!(read(&emit(&value)), value);
        }

        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "([ -~\n\t\r\u{85}\u{feff}é]|[:#&*!|>\\[\\]{}?,'\"%@`<-]|\n  |\n- |a: |\\$\\{|---\n){0,40}") {
            let source = Source::text("any.yaml", text);
            let mut problems = Vec::new();
            match yaml::parse(&source, &mut problems) {
                Some(mut root) => {
                    expand::expand(&mut root, &Path::default(), &source.name, &Default::default(), &mut problems);
                    let _ = root.to_json();
                }
                None => prop_assert!(!problems.is_empty()),
            }
        }
    }
}

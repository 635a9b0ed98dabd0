//! Scalar values: their text, and the type that YAML 1.2 gives it (core schema, section 10.3.2).

use serde_json::{Number, Value as Json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Written without quotes; the text decides its type.
    Plain,
    /// Written in quotes or as a block: a text.
    Quoted,
    /// Expanded from the environment or given as an override: it takes the type that the key wants.
    Dynamic,
}

#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) kind: Kind,
    /// What messages show of it.
    pub(super) shown: String,
}

impl Scalar {
    pub(super) fn new(text: String, kind: Kind) -> Self {
        Self { shown: text.clone(), text, kind }
    }

    /// The value by YAML's own rules.
    pub(super) fn natural(&self) -> Json {
        match self.kind {
            Kind::Quoted => Json::String(self.text.clone()),
            Kind::Plain | Kind::Dynamic => resolve(&self.text),
        }
    }

    /// The value as a text, if that is what stands here.
    pub(super) fn as_text(&self) -> Option<&str> {
        let is_text = self.kind != Kind::Plain || resolve(&self.text).is_string();
        is_text.then_some(self.text.as_str())
    }

    /// The value as something other than a text, if that is what stands here.
    pub(super) fn as_other(&self) -> Option<Json> {
        let value = (self.kind != Kind::Quoted).then(|| resolve(&self.text))?;
        (!value.is_string()).then_some(value)
    }

    pub(super) fn is_null(&self) -> bool {
        self.as_other().is_some_and(|value| value.is_null()) && self.kind == Kind::Plain
    }

    /// Whether messages must not show the text: it came from the environment, where secrets are.
    pub(super) fn is_hidden(&self) -> bool {
        self.kind == Kind::Dynamic && self.shown != self.text
    }

    pub(super) fn describe(&self) -> String {
        let shown: String = self.shown.chars().take(60).collect();
        let dots = if shown.len() < self.shown.len() { "…" } else { "" };
        if self.is_hidden() {
            return format!("{shown}{dots}");
        }
        match self.natural() {
            Json::Null => "no value".to_owned(),
            Json::Bool(value) => format!("the truth value {value}"),
            Json::Number(_) => format!("the number {shown}{dots}"),
            _ => format!("the text {:?}", format!("{shown}{dots}")),
        }
    }
}

/// The type of a plain scalar. Infinity and NaN, which JSON does not have, stay texts.
pub(super) fn resolve(text: &str) -> Json {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Json::Null,
        "true" | "True" | "TRUE" => return Json::Bool(true),
        "false" | "False" | "FALSE" => return Json::Bool(false),
        _ => {}
    }
    integer(text).or_else(|| float(text)).map_or_else(|| Json::String(text.to_owned()), Json::Number)
}

fn integer(text: &str) -> Option<Number> {
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix) {
            let plain = !digits.starts_with('+');
            return plain.then(|| u64::from_str_radix(digits, radix).ok()).flatten().map(Number::from);
        }
    }
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let signed = text.parse::<i64>().ok().map(Number::from);
    signed.or_else(|| text.parse::<u64>().ok().map(Number::from))
}

fn float(text: &str) -> Option<Number> {
    let body = text.strip_prefix(['+', '-']).unwrap_or(text);
    let allowed = |byte: u8| byte.is_ascii_digit() || b".eE+-".contains(&byte);
    let starts_well = body.starts_with(|c: char| c.is_ascii_digit())
        || body.strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    if !starts_well || !body.bytes().all(allowed) {
        return None;
    }
    text.parse::<f64>().ok().and_then(Number::from_f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn plain_scalars_have_the_types_of_yaml_1_2() {
        for (text, value) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("true", json!(true)),
            ("yes", json!("yes")),
            ("on", json!("on")),
            ("12", json!(12)),
            ("+12", json!(12)),
            ("-0", json!(0)),
            ("010", json!(10)),
            ("0o10", json!(8)),
            ("0x1F", json!(31)),
            ("18446744073709551615", json!(18_446_744_073_709_551_615_u64)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1e3", json!(1000.0)),
            (".inf", json!(".inf")),
            ("1.2.3", json!("1.2.3")),
            ("127.0.0.1:1883", json!("127.0.0.1:1883")),
            ("2026-01-01", json!("2026-01-01")),
            ("1_000", json!("1_000")),
        ] {
            assert_eq!(resolve(text), value, "{text:?}");
        }
    }
}

//! JSON Pointers (RFC 6901) into a line, several as alternatives.

use mqttconverter::routing::is_too_deep;
use sonic_rs::{JsonType, JsonValueTrait, LazyValue};
use std::borrow::Cow;
use std::fmt;

/// JSON Pointers of which the first that leads to a usable value counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointers {
    text: String,
    alternatives: Vec<Vec<String>>,
}

/// A text that is no list of JSON Pointers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pointer}` is no JSON Pointer: {reason}")]
pub struct PointerError {
    /// The part that is wrong.
    pub pointer: String,
    /// Where it starts in the text, in bytes.
    pub offset: usize,
    /// What would be right.
    pub reason: &'static str,
}

/// What a pointer may lead to.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar<'a> {
    /// A string that is not empty.
    Text(Cow<'a, str>),
    /// A number as it is written.
    Number(Cow<'a, str>),
}

impl Pointers {
    /// Reads pointers with commas between them, as in `/device_id,/deviceId`. Blanks around them are ignored.
    ///
    /// # Errors
    /// When one of them is no JSON Pointer.
    pub fn parse(text: &str) -> Result<Self, PointerError> {
        let mut alternatives = Vec::new();
        let mut offset = 0;
        for pointer in text.split(',') {
            match parse_pointer(pointer.trim()) {
                Ok(steps) => alternatives.push(steps),
                Err(reason) => {
                    return Err(PointerError { pointer: pointer.trim().to_owned(), offset, reason });
                }
            }
            offset += pointer.len() + 1;
        }
        Ok(Self { text: text.to_owned(), alternatives })
    }

    /// The first alternative that leads to a number or a string that is not empty. The document is looked into only
    /// as far as needed: one that turns malformed behind the value is not noticed. One that is nested too deeply to be
    /// parsed ([`is_too_deep`]) has no values.
    #[must_use]
    pub fn find<'a>(&self, document: &'a str) -> Option<Scalar<'a>> {
        if is_too_deep(document.as_bytes()) {
            return None;
        }
        self.alternatives.iter().find_map(|steps| scalar(&follow(document, steps)?))
    }
}

impl fmt::Display for Pointers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse_pointer(text: &str) -> Result<Vec<String>, &'static str> {
    let Some(rest) = text.strip_prefix('/') else {
        return Err("it starts with a slash, as in /device_id");
    };
    let mut steps = Vec::new();
    for step in rest.split('/') {
        if step.replace("~0", "").replace("~1", "").contains('~') {
            return Err("`~` is written ~0, and a slash in a name ~1");
        }
        steps.push(step.replace("~1", "/").replace("~0", "~"));
    }
    Ok(steps)
}

fn follow<'a>(document: &'a str, steps: &[String]) -> Option<LazyValue<'a>> {
    let (last, parents) = steps.split_last()?;
    let mut json = Cow::Borrowed(document);
    for step in parents {
        json = match json {
            Cow::Borrowed(json) => child(json, step)?.as_raw_cow(),
            // Values of a borrowed document are borrowed too.
            Cow::Owned(_) => return None,
        };
    }
    match json {
        Cow::Borrowed(json) => child(json, last),
        Cow::Owned(_) => None,
    }
}

fn child<'a>(json: &'a str, step: &str) -> Option<LazyValue<'a>> {
    if json.trim_ascii_start().starts_with('[') {
        return sonic_rs::get_from_str(json, [array_index(step)?]).ok();
    }
    sonic_rs::get_from_str(json, [step]).ok()
}

/// RFC 6901, section 4: digits without a leading zero.
fn array_index(step: &str) -> Option<usize> {
    let plain = step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
    if plain { step.parse().ok() } else { None }
}

fn scalar<'a>(value: &LazyValue<'a>) -> Option<Scalar<'a>> {
    match value.get_type() {
        JsonType::Number => Some(Scalar::Number(value.as_raw_cow())),
        JsonType::String => {
            let text = match value.as_raw_cow() {
                Cow::Borrowed(raw) if !raw.contains('\\') => Cow::Borrowed(raw.trim_matches('"')),
                _ => Cow::Owned(value.as_str()?.to_owned()),
            };
            (!text.is_empty()).then_some(Scalar::Text(text))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(pointers: &str, document: &str) -> Option<String> {
        Pointers::parse(pointers).unwrap().find(document).map(|scalar| match scalar {
            Scalar::Text(text) => format!("text {text}"),
            Scalar::Number(text) => format!("number {text}"),
        })
    }

    #[test]
    fn the_first_alternative_with_a_usable_value_counts() {
        let document = r#"{"a":null,"b":"","c":{"d":["x",-1.5e3]},"0":"zero","e/f":"q\"\u00e9"}"#;
        assert_eq!(find("/a,/b,/c,/none,/c/d/1", document).as_deref(), Some("number -1.5e3"));
        assert_eq!(find("/c/d/0", document).as_deref(), Some("text x"));
        assert_eq!(find(" /a , /0", document).as_deref(), Some("text zero"));
        assert_eq!(find("/e~1f", document).as_deref(), Some("text q\"é"));
        for none in ["/a", "/b", "/c", "/c/d/00", "/c/d/9", "/0/1"] {
            assert_eq!(find(none, document), None, "{none}");
        }
    }

    /// Found by fuzzing: the parser recurses once per level and ended the process.
    #[test]
    fn a_document_nested_deeper_than_the_stack_has_no_values() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let document = format!("{{\"a\":{}1{}}}", open.repeat(100_000), close.repeat(100_000));
            assert_eq!(find("/a/0,/a/a,/b", &document), None);
        }
    }

    #[test]
    fn a_wrong_pointer_is_named_with_its_place() {
        let error = Pointers::parse("/a,b").unwrap_err();
        assert_eq!((error.pointer.as_str(), error.offset), ("b", 3));
        assert!(Pointers::parse("").is_err());
        assert!(Pointers::parse("/a~2").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_looked_into_without_a_panic(document in r#"[{]?"a":[\[{"a-c:,0-9\]}\\ ]{0,20}"#) {
            let _ = find("/a,/a/0,/a/b,/c", &document);
        }
    }
}

//! JSON Pointers (RFC 6901) into a payload, without building a tree.

use sonic_rs::{JsonType, JsonValueTrait, LazyValue};

/// A parsed JSON Pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointer(Vec<String>);

impl Pointer {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!("`{text}` is no JSON Pointer: it starts with a slash, as in /device_id"));
        };
        let mut steps = Vec::new();
        for step in rest.split('/') {
            let rest = step.replace("~0", "").replace("~1", "");
            if rest.contains('~') {
                return Err(format!(
                    "`{text}` is no JSON Pointer: `~` is written ~0, and a slash in a name ~1"
                ));
            }
            steps.push(step.replace("~1", "/").replace("~0", "~"));
        }
        Ok(Self(steps))
    }
}

/// A payload that is looked into at most once, and only if somebody asks.
pub(super) struct Payload<'a> {
    bytes: &'a [u8],
    document: Option<Option<LazyValue<'a>>>,
}

impl<'a> Payload<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, document: None }
    }

    /// The text at `pointer`: a string, or an integer as it is written. A payload that is not one valid JSON document
    /// has none; half a document is never believed.
    pub(super) fn text(&mut self, pointer: &Pointer) -> Option<String> {
        let bytes = self.bytes;
        let document = self.document.get_or_insert_with(|| parse(bytes)).as_ref()?;
        walk(document, &pointer.0)
    }
}

/// As deep as the pointer, which stands in the configuration, has steps.
fn walk(value: &LazyValue<'_>, steps: &[String]) -> Option<String> {
    match (value.get_type(), steps) {
        (JsonType::Object, [step, rest @ ..]) => walk(&value.get(step.as_str())?, rest),
        (JsonType::Array, [step, rest @ ..]) => walk(&value.get(array_index(step)?)?, rest),
        (JsonType::String, []) => value.as_str().map(str::to_owned),
        (JsonType::Number, []) => integer(value.as_raw_str()).map(str::to_owned),
        _ => None,
    }
}

/// Deepest nesting that is looked into. sonic-rs recurses once per level without a bound of its own, at some 20 KB of
/// stack each in an unoptimised build: 110 levels, which any device can send, exhaust the 2 MiB of a thread and end the
/// process.
const MAX_DEPTH: usize = 32;

/// Validates the whole document. Only an object or an array can hold what a pointer names.
fn parse(bytes: &[u8]) -> Option<LazyValue<'_>> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace())?;
    if !matches!(first, b'{' | b'[') {
        return None;
    }
    if is_too_deep(bytes) {
        return None;
    }
    // sonic-rs takes bytes that it has found to be JSON for UTF-8 without looking.
    sonic_rs::from_str(std::str::from_utf8(bytes).ok()?).ok()
}

/// Whether a payload is nested deeper than anything is looked for in it, and deeper than a JSON parser that recurses can
/// bear. Most payloads have fewer brackets than the bound, which is quick to see; only the others are read closely.
#[must_use]
pub fn is_too_deep(bytes: &[u8]) -> bool {
    if bytes.iter().filter(|byte| matches!(byte, b'{' | b'[')).count() <= MAX_DEPTH {
        return false;
    }
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest > MAX_DEPTH
}

/// RFC 6901, section 4: digits without a leading zero.
fn array_index(step: &str) -> Option<usize> {
    let plain = step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
    if plain { step.parse().ok() } else { None }
}

fn integer(raw: &str) -> Option<&str> {
    let digits = raw.strip_prefix('-').unwrap_or(raw);
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(pointer: &str, payload: &str) -> Option<String> {
        let pointer = Pointer::parse(pointer).unwrap();
        Payload::new(payload.as_bytes()).text(&pointer)
    }

    #[test]
    fn a_pointer_finds_strings_and_integers_and_nothing_else() {
        let payload = r#"{"id":"a","n":-42,"f":1.5,"t":true,"z":null,"in":{"a/b":["x",{"~":"y"}]},"\u0065sc":"q\"\u00e9"}"#;
        assert_eq!(text("/id", payload).as_deref(), Some("a"));
        assert_eq!(text("/n", payload).as_deref(), Some("-42"));
        assert_eq!(text("/in/a~1b/0", payload).as_deref(), Some("x"));
        assert_eq!(text("/in/a~1b/1/~0", payload).as_deref(), Some("y"));
        assert_eq!(text("/esc", payload).as_deref(), Some("q\"é"));
        for absent in ["/f", "/t", "/z", "/in", "/in/a~1b/01", "/in/a~1b/9", "/none", "/id/0"] {
            assert_eq!(text(absent, payload), None, "{absent}");
        }
    }

    #[test]
    fn what_is_not_one_whole_json_document_yields_nothing() {
        for payload in [
            "",
            "x",
            r#""a""#,
            r#"{"id":"a""#,
            r#"{"id":"a"} {"id":"b"}"#,
            r#"{"id":"a","x":tru}"#,
            r#"{"id":"a","x":"\u12"}"#,
            r#"{"id":"a",}"#,
            r#"{"id":"a","x":01}"#,
        ] {
            assert_eq!(text("/id", payload), None, "{payload}");
        }
        let pointer = Pointer::parse("/id").unwrap();
        assert_eq!(Payload::new(b"{\"id\":\"a\",\"x\":\"\xff\"}").text(&pointer), None);
    }

    #[test]
    fn nesting_without_end_does_not_exhaust_the_stack() {
        assert_eq!(text("/id", &"[".repeat(1 << 20)), None);
        let nested = |depth| format!(r#"{{"x":{}1{},"id":"a"}}"#, "[".repeat(depth), "]".repeat(depth));
        assert_eq!(text("/id", &nested(1 << 18)), None);
        assert_eq!(text("/id", &nested(MAX_DEPTH)), None);
        assert_eq!(text("/id", &nested(MAX_DEPTH - 1)).as_deref(), Some("a"));
        let flat = format!(r#"{{"x":[{}0],"s":"\"{}","id":"a"}}"#, "[],".repeat(1_000), "[".repeat(1_000));
        assert_eq!(text("/id", &flat).as_deref(), Some("a"));
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        for wrong in ["", "id", "/a~", "/a~2b"] {
            assert!(Pointer::parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn bytes_that_serde_json_refuses_yield_nothing(
            payload in r#"[{]"id":"[a-c]{1,3}"[,:{}\[\]"0-9a-z. \\-]{0,12}[}]?"#,
        ) {
            if serde_json::from_str::<serde_json::Value>(&payload).is_err() {
                prop_assert_eq!(text("/id", &payload), None);
            }
        }

        #[test]
        fn any_bytes_are_looked_into_without_a_panic(payload in proptest::collection::vec(any::<u8>(), 0..64)) {
            let pointer = Pointer::parse("/id/0").unwrap();
            let _ = Payload::new(&payload).text(&pointer);
        }
    }
}

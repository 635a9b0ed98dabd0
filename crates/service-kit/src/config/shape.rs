//! Questions to a JSON Schema.

use serde_json::{Number, Value as Json};
use std::fmt;

/// Longest chain of references that is followed.
const MAX_REFERENCES: usize = 16;

/// The schema that `schema` refers to, if it is a reference and nothing else that counts.
pub(super) fn resolve<'a>(root: &'a Json, mut schema: &'a Json) -> &'a Json {
    for _ in 0..MAX_REFERENCES {
        if schema.get("properties").is_some() {
            break;
        }
        match target(root, schema) {
            Some(next) => schema = next,
            None => break,
        }
    }
    schema
}

fn target<'a>(root: &'a Json, schema: &Json) -> Option<&'a Json> {
    let reference = schema.get("$ref")?.as_str()?;
    root.pointer(reference.strip_prefix('#')?)
}

/// Other schemas that hold for the same value.
pub(super) fn parts<'a>(root: &'a Json, schema: &'a Json) -> Vec<&'a Json> {
    let all = schema.get("allOf").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    all.iter().map(|part| resolve(root, part)).chain(target(root, schema)).collect()
}

pub(super) fn alternatives(schema: &Json) -> Option<&[Json]> {
    let list = schema.get("oneOf").or_else(|| schema.get("anyOf"))?;
    list.as_array().map(Vec::as_slice)
}

/// Whether keys are described beside the alternatives, which then only add to them.
pub(super) fn is_structure(schema: &Json) -> bool {
    ["properties", "allOf", "additionalProperties", "unevaluatedProperties"]
        .iter()
        .any(|k| schema.get(k).is_some())
}

/// The JSON types that fit, `null` among them; empty where any does.
pub(super) fn types<'a>(root: &'a Json, schema: &'a Json) -> Vec<&'a str> {
    let schema = resolve(root, schema);
    match schema.get("type") {
        Some(Json::String(one)) => return vec![one],
        Some(Json::Array(several)) => return several.iter().filter_map(Json::as_str).collect(),
        _ => {}
    }
    if is_structure(schema) {
        return vec!["object"];
    }
    let branches = alternatives(schema).unwrap_or_default();
    let lists: Vec<Vec<&str>> = branches.iter().map(|branch| types(root, branch)).collect();
    if lists.iter().any(Vec::is_empty) { Vec::new() } else { lists.concat() }
}

pub(super) fn allows(types: &[&str], kind: &str) -> bool {
    types.is_empty() || types.contains(&kind)
}

/// The values of an enumeration.
pub(super) fn choices<'a>(root: &'a Json, schema: &'a Json) -> Option<Vec<&'a Json>> {
    if let Some(one) = schema.get("const") {
        return Some(vec![one]);
    }
    if let Some(several) = schema.get("enum").and_then(Json::as_array) {
        return Some(several.iter().collect());
    }
    let branches = alternatives(schema)?.iter();
    branches.map(|b| choices(root, resolve(root, b))).collect::<Option<Vec<_>>>().map(|lists| lists.concat())
}

pub(super) fn list_choices(choices: &[&Json]) -> String {
    let words: Vec<String> = choices
        .iter()
        .filter(|choice| !choice.is_null())
        .map(|choice| choice.as_str().map_or_else(|| choice.to_string(), str::to_owned))
        .collect();
    words.join(", ")
}

/// The word most like `given`, if one is near enough to be meant.
pub(super) fn nearest<'a>(given: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace(['-', '_'], "");
    let given: String = plain(given).chars().take(64).collect();
    let ranked = words.map(|word| (strsim::normalized_damerau_levenshtein(&given, &plain(word)), word));
    ranked.filter(|(likeness, _)| *likeness >= 0.6).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, word)| word)
}

/// What fits, in words: `a duration such as 5s`.
pub(super) fn expected(root: &Json, schema: &Json) -> String {
    match resolve(root, schema).get("examples").and_then(|examples| examples.get(0)?.as_str()) {
        Some(example) => format!("{} such as {example}", kind(root, schema)),
        None => kind(root, schema),
    }
}

/// The type in words: `a duration`.
pub(super) fn kind(root: &Json, schema: &Json) -> String {
    let schema = resolve(root, schema);
    if let Some(choices) = choices(root, schema) {
        return format!("one of {}", list_choices(&choices));
    }
    if schema.get("format").and_then(Json::as_str) == Some(super::secret::FORMAT) {
        return "a secret (a text or {file: PATH})".to_owned();
    }
    if let Some(branches) = alternatives(schema).filter(|_| !is_structure(schema)) {
        let mut words: Vec<String> = Vec::new();
        for branch in branches.iter().filter(|branch| types(root, branch) != ["null"]) {
            let word = kind(root, branch);
            if !words.contains(&word) {
                words.push(word);
            }
        }
        return words.join(" or ");
    }
    let words: Vec<&str> =
        types(root, schema).into_iter().filter_map(|kind| type_word(kind, schema)).collect();
    let what = if words.is_empty() { "a value".to_owned() } else { words.join(" or ") };
    let range =
        bounds(schema).filter(Bounds::is_chosen).map_or_else(String::new, |bounds| format!(" ({bounds})"));
    format!("{what}{range}")
}

fn type_word(kind: &str, schema: &Json) -> Option<&'static str> {
    match kind {
        "object" => Some("a section (key: value)"),
        "array" => Some("a list"),
        "string" => Some(match schema.get("format").and_then(Json::as_str) {
            Some(super::duration::FORMAT) => "a duration",
            Some(super::byte_size::FORMAT) => "a size",
            Some("socket-address") => "an address with a port",
            _ => "a text",
        }),
        "integer" => Some("a whole number"),
        "number" => Some("a number"),
        "boolean" => Some("true or false"),
        _ => None,
    }
}

/// What numbers may be.
#[derive(Debug)]
pub(super) struct Bounds {
    least: Option<Number>,
    most: Option<Number>,
    above: Option<Number>,
    below: Option<Number>,
}

/// The bounds of a number, those of its Rust type included.
pub(super) fn bounds(schema: &Json) -> Option<Bounds> {
    let (type_least, type_most) = match schema.get("format").and_then(Json::as_str) {
        Some("uint8") => (Some(0_i64), Some(u64::from(u8::MAX))),
        Some("uint16") => (Some(0), Some(u64::from(u16::MAX))),
        Some("uint32") => (Some(0), Some(u64::from(u32::MAX))),
        Some("uint64" | "uint") => (Some(0), None),
        Some("int8") => (Some(i64::from(i8::MIN)), Some(i8::MAX as u64)),
        Some("int16") => (Some(i64::from(i16::MIN)), Some(i16::MAX as u64)),
        Some("int32") => (Some(i64::from(i32::MIN)), Some(i32::MAX as u64)),
        Some("int64" | "int") => (None, Some(i64::MAX as u64)),
        _ => (None, None),
    };
    let number = |key: &str| schema.get(key).and_then(Json::as_number).cloned();
    let bounds = Bounds {
        least: number("minimum").or_else(|| type_least.map(Number::from)),
        most: number("maximum").or_else(|| type_most.map(Number::from)),
        above: number("exclusiveMinimum"),
        below: number("exclusiveMaximum"),
    };
    let any = [&bounds.least, &bounds.most, &bounds.above, &bounds.below].iter().any(|bound| bound.is_some());
    any.then_some(bounds)
}

impl Bounds {
    /// Whether somebody chose them, or a 16-bit type so small that people meet its end.
    fn is_chosen(&self) -> bool {
        const WIDE: [i64; 3] = [i32::MAX as i64, u32::MAX as i64, i64::MAX];
        let least = self.least.as_ref().and_then(Number::as_i64);
        let most = self.most.as_ref().and_then(Number::as_i64);
        let chosen_least = least.is_some_and(|least| least != 0 && least != i64::from(i32::MIN));
        let chosen_most = self.most.is_some() && most.is_none_or(|most| !WIDE.contains(&most));
        chosen_least || chosen_most || self.above.is_some() || self.below.is_some()
    }

    pub(super) fn hold(&self, number: &Number) -> bool {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let fits = |bound: &Option<Number>, allowed: &[std::cmp::Ordering]| {
            bound.as_ref().is_none_or(|bound| allowed.contains(&compare(number, bound)))
        };
        fits(&self.least, &[Equal, Greater])
            && fits(&self.most, &[Equal, Less])
            && fits(&self.above, &[Greater])
            && fits(&self.below, &[Less])
    }
}

fn compare(a: &Number, b: &Number) -> std::cmp::Ordering {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)),
    }
}

/// `1 to 65535`, `at least 1`.
impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        match (&self.least, &self.most) {
            (Some(least), Some(most)) => words.push(format!("{} to {}", short(least), short(most))),
            (Some(least), None) => words.push(format!("at least {}", short(least))),
            (None, Some(most)) => words.push(format!("at most {}", short(most))),
            (None, None) => {}
        }
        words.extend(self.above.as_ref().map(|above| format!("more than {}", short(above))));
        words.extend(self.below.as_ref().map(|below| format!("less than {}", short(below))));
        f.write_str(&words.join(", "))
    }
}

/// `1`, not `1.0`: bounds given in code as floats are read by people as numbers.
fn short(number: &Number) -> String {
    number.as_f64().filter(|_| number.is_f64()).map_or_else(|| number.to_string(), |float| float.to_string())
}

/// The keys of a structure.
#[derive(Debug, Default)]
pub(super) struct Shape<'a> {
    properties: Vec<(&'a str, &'a Json)>,
    pub(super) required: Vec<&'a str>,
    /// The schema of keys that are not named.
    pub(super) additional: Option<&'a Json>,
    open: bool,
}

impl<'a> Shape<'a> {
    /// The keys of `schema` and its parts, alternatives apart.
    pub(super) fn of(root: &'a Json, schema: &'a Json) -> Self {
        let mut shape = Self::default();
        let mut pending = vec![resolve(root, schema)];
        while let Some(part) = pending.pop() {
            shape.add(part);
            pending.extend(parts(root, part));
        }
        shape
    }

    /// Takes in the keys that `schema` itself names.
    pub(super) fn add(&mut self, schema: &'a Json) {
        for (key, property) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
            if self.property(key).is_none() {
                self.properties.push((key, property));
            }
        }
        let required = schema.get("required").and_then(Json::as_array).into_iter().flatten();
        for key in required.filter_map(Json::as_str) {
            if !self.required.contains(&key) {
                self.required.push(key);
            }
        }
        for keyword in ["additionalProperties", "unevaluatedProperties"] {
            match schema.get(keyword) {
                Some(Json::Bool(open)) => self.open |= open,
                Some(schema) => self.additional = Some(schema),
                None => {}
            }
        }
    }

    /// The keys in the order of the type.
    pub(super) fn properties(&self) -> impl Iterator<Item = (&'a str, &'a Json)> {
        self.properties.iter().copied()
    }

    pub(super) fn property(&self, key: &str) -> Option<&'a Json> {
        self.properties.iter().find(|(name, _)| *name == key).map(|(_, schema)| *schema)
    }

    /// Whether keys that are not named are mistakes.
    pub(super) fn is_closed(&self) -> bool {
        !self.open && !self.properties.is_empty()
    }

    /// Keys whose value is one fixed word.
    pub(super) fn tags(&self) -> impl Iterator<Item = &'a str> {
        self.properties.iter().filter(|(_, schema)| schema.get("const").is_some()).map(|(key, _)| *key)
    }

    /// The fixed word of key `tag`.
    pub(super) fn tag(&self, tag: &str) -> Option<&'a Json> {
        self.property(tag)?.get("const")
    }

    /// The key, if there is exactly one and it must be given.
    pub(super) fn only_key(&self) -> Option<&'a str> {
        match (self.properties.as_slice(), self.required.as_slice()) {
            ([(key, _)], [required]) if key == required => Some(key),
            _ => None,
        }
    }

    pub(super) fn unknown_key(&self, key: &str) -> String {
        let known: Vec<&str> = self.properties.iter().map(|(name, _)| *name).collect();
        let near = nearest(key, known.iter().copied());
        let near = near.map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
        format!("unknown key{near}; the keys here are {}", known.join(", "))
    }
}

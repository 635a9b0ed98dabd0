//! Topic templates: text with JSON Pointers into the line, as in `devices/{/device_id,/deviceId}/up`.
//!
//! Between braces stand JSON Pointers with commas between them; the first that leads to a number or to a string that is
//! not empty counts. A brace itself cannot be written.

use crate::pointer::{PointerError, Pointers, Scalar};
use std::str::FromStr;

/// The template used unless another is given.
pub const DEFAULT_TOPIC: &str = "devices/{/device_id,/deviceId,/dev_eui,/devEUI}/up";

/// MQTT carries the length of a topic in two bytes (MQTT 5, section 1.5.4).
const MAX_TOPIC_BYTES: usize = 65_535;

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicTemplate {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Pointers),
}

/// A text that is no template. Positions count characters from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// Nothing in it.
    #[error("the topic template is empty; an example is `{DEFAULT_TOPIC}`")]
    Empty,
    /// A `{` without its `}`.
    #[error("topic template, character {position}: this `{{` has no `}}`")]
    Unclosed {
        /// Where the `{` stands.
        position: usize,
    },
    /// A `}` without its `{`, or a `{` within braces.
    #[error("topic template, character {position}: unexpected `{brace}`")]
    UnexpectedBrace {
        /// Where it stands.
        position: usize,
        /// The brace.
        brace: char,
    },
    /// A character that no topic may hold.
    #[error(
        "topic template, character {position}: {character:?} cannot stand in the topic of a message \
         (wildcards and control characters are not allowed)"
    )]
    Forbidden {
        /// Where it stands.
        position: usize,
        /// The character.
        character: char,
    },
    /// What stands between braces is no list of JSON Pointers.
    #[error("topic template, character {position}: {source}")]
    Pointer {
        /// Where the pointer starts.
        position: usize,
        /// What is wrong with it.
        source: PointerError,
    },
}

/// Why a line has no topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The line is not UTF-8, so not JSON either.
    #[error("the line is not UTF-8 text, so no device can be read from it")]
    NotText,
    /// None of the pointers leads to a value.
    #[error("no string or number at {pointers}, which the topic needs; name another pointer with --topic")]
    Missing {
        /// The pointers that were tried.
        pointers: String,
    },
    /// The value cannot stand in a topic.
    #[error("the value at {pointers} holds {character:?}, which cannot stand within one level of a topic")]
    Forbidden {
        /// The pointers that were tried.
        pointers: String,
        /// The first such character.
        character: char,
    },
    /// The topic is longer than MQTT allows.
    #[error("the topic would be {bytes} bytes long; MQTT allows {MAX_TOPIC_BYTES}")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

impl FromStr for TopicTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        if text.is_empty() {
            return Err(TemplateError::Empty);
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let at = text.len() - rest.len();
            if let Some(inner) = rest.strip_prefix('{') {
                let (pointers, length) = parse_braces(text, at, inner)?;
                parts.push(Part::Value(pointers));
                rest = &inner[length + 1..];
            } else {
                let (literal, tail) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
                check_literal(text, at, literal)?;
                parts.push(Part::Text(literal.to_owned()));
                rest = tail;
            }
        }
        Ok(Self { parts })
    }
}

fn parse_braces(text: &str, at: usize, inner: &str) -> Result<(Pointers, usize), TemplateError> {
    let Some(length) = inner.find('}') else {
        return Err(TemplateError::Unclosed { position: position(text, at) });
    };
    if let Some(offset) = inner[..length].find('{') {
        return Err(TemplateError::UnexpectedBrace { position: position(text, at + 1 + offset), brace: '{' });
    }
    let pointers = Pointers::parse(&inner[..length]).map_err(|source| TemplateError::Pointer {
        position: position(text, at + 1 + source.offset),
        source,
    })?;
    Ok((pointers, length))
}

fn check_literal(text: &str, at: usize, literal: &str) -> Result<(), TemplateError> {
    for (offset, character) in literal.char_indices() {
        let position = position(text, at + offset);
        if character == '}' {
            return Err(TemplateError::UnexpectedBrace { position, brace: '}' });
        }
        if matches!(character, '+' | '#') || character.is_control() {
            return Err(TemplateError::Forbidden { position, character });
        }
    }
    Ok(())
}

fn position(text: &str, byte: usize) -> usize {
    text[..byte].chars().count() + 1
}

impl TopicTemplate {
    /// Appends the topic of `line` to `topic`. Strings and numbers stand in it as they are; a value with a wildcard, a
    /// slash or a control character is refused, since it would change the topic's levels or reach other devices.
    ///
    /// # Errors
    /// When the line has no usable value; `topic` then holds a part of the topic.
    pub fn render(&self, line: &[u8], topic: &mut String) -> Result<(), TopicError> {
        let start = topic.len();
        let mut document = None;
        for part in &self.parts {
            match part {
                Part::Text(text) => topic.push_str(text),
                Part::Value(pointers) => {
                    if document.is_none() {
                        document = Some(std::str::from_utf8(line).map_err(|_| TopicError::NotText)?);
                    }
                    push_value(pointers, document.unwrap_or_default(), topic)?;
                }
            }
        }
        let bytes = topic.len() - start;
        if bytes > MAX_TOPIC_BYTES {
            return Err(TopicError::TooLong { bytes });
        }
        Ok(())
    }
}

fn push_value(pointers: &Pointers, document: &str, topic: &mut String) -> Result<(), TopicError> {
    let Some(Scalar::Text(value) | Scalar::Number(value)) = pointers.find(document) else {
        return Err(TopicError::Missing { pointers: pointers.to_string() });
    };
    let forbidden = |character: &char| matches!(character, '+' | '#' | '/') || character.is_control();
    if let Some(character) = value.chars().find(forbidden) {
        return Err(TopicError::Forbidden { pointers: pointers.to_string(), character });
    }
    topic.push_str(&value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn topic(template: &str, line: &str) -> Result<String, TopicError> {
        let mut out = String::new();
        template.parse::<TopicTemplate>().unwrap().render(line.as_bytes(), &mut out).map(|()| out)
    }

    #[test]
    fn the_default_finds_the_device_in_every_usual_spelling() {
        for (line, device) in [
            (r#"{"device_id":"a-1"}"#, "a-1"),
            (r#"{"deviceId":42}"#, "42"),
            (r#"{"x":{"dev_eui":"no"},"dev_eui":"0018B2"}"#, "0018B2"),
            (r#"{"device_id":null,"devEUI":"d1"}"#, "d1"),
        ] {
            assert_eq!(topic(DEFAULT_TOPIC, line).unwrap(), format!("devices/{device}/up"));
        }
        assert_eq!(topic("fixed/topic", "not json").unwrap(), "fixed/topic");
        assert_eq!(topic("{/a}{/b/0}-x", r#"{"a":1,"b":["z"]}"#).unwrap(), "1z-x");
    }

    #[test]
    fn a_line_without_a_usable_device_is_refused_with_the_pointers_tried() {
        let missing = topic(DEFAULT_TOPIC, r#"{"id":"a"}"#).unwrap_err().to_string();
        assert!(missing.contains("/device_id,/deviceId,/dev_eui,/devEUI"), "{missing}");
        for bad in ["a/b", "a+", "#", r"a\u0000", r"a\n"] {
            let error = topic("d/{/id}", &format!(r#"{{"id":"{bad}"}}"#)).unwrap_err();
            assert!(matches!(error, TopicError::Forbidden { .. }), "{bad}: {error}");
        }
        let mut out = String::new();
        let template: TopicTemplate = "{/a}".parse().unwrap();
        assert_eq!(template.render(b"\xff", &mut out), Err(TopicError::NotText));
    }

    #[test]
    fn a_wrong_template_is_refused_with_the_position_of_the_mistake() {
        for (template, at) in
            [("é{/a", 2), ("a}b", 2), ("{/a{/b}", 4), ("é/+", 3), ("a/{/b,c}", 7), ("{}", 2)]
        {
            let error = template.parse::<TopicTemplate>().unwrap_err().to_string();
            assert!(error.contains(&format!("character {at}:")), "{template}: {error}");
        }
        assert_eq!("".parse::<TopicTemplate>(), Err(TemplateError::Empty));
    }

    proptest! {
        #[test]
        fn a_rendered_value_never_adds_a_level_or_a_wildcard(value in ".*") {
            let line = serde_json::json!({ "id": value }).to_string();
            if let Ok(topic) = topic("d/{/id}/up", &line) {
                prop_assert_eq!(topic.split('/').count(), 3);
                prop_assert!(!topic.contains(['+', '#', '\0']));
                prop_assert_eq!(topic, format!("d/{}/up", value));
            }
        }

        #[test]
        fn any_template_is_taken_or_refused_without_a_panic(template in "[{}/a,+é]{0,12}") {
            let _ = template.parse::<TopicTemplate>();
        }
    }
}

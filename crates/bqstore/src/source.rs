//! Where a column's value comes from.

use std::fmt;

/// A JSON Pointer (RFC 6901) that is not empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl Pointer {
    /// Reads `/a/0/b`; `~1` stands for a slash and `~0` for a tilde inside a token.
    ///
    /// # Errors
    /// What is wrong with `text`, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!(
                "`{text}` is not a JSON Pointer: it must begin with `/`, as in `/data/value`"
            ));
        };
        let mut tokens = Vec::new();
        for token in rest.split('/') {
            if token.replace("~0", "").replace("~1", "").contains('~') {
                return Err(format!("`{text}` is not a JSON Pointer: after `~` only `0` or `1` may stand"));
            }
            tokens.push(token.replace("~1", "/").replace("~0", "~"));
        }
        Ok(Self { text: text.to_owned(), tokens })
    }

    /// The names and indices it walks through, unescaped.
    #[must_use]
    pub fn tokens(&self) -> &[String] {
        &self.tokens
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One place a column's value may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `id`: the message id.
    Id,
    /// `received_at`: when Millstream first received the message.
    ReceivedAt,
    /// `device_id`: the device id that ingestion found.
    DeviceId,
    /// `topic`: the MQTT topic.
    Topic,
    /// `route`: the name of the route that matched.
    Route,
    /// `payload`: the payload, byte for byte.
    Payload,
    /// `attribute:<name>`: a message attribute.
    Attribute(String),
    /// `enrichment:<name>`: a field that was looked up.
    Enrichment(String),
    /// `/a/b`: a JSON Pointer into the payload.
    Pointer(Pointer),
}

impl Source {
    /// Reads the form used in configuration.
    ///
    /// # Errors
    /// What is wrong with `text`, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Pointer::parse(text).map(Self::Pointer);
        }
        match text.split_once(':') {
            Some(("attribute", name)) if !name.is_empty() => return Ok(Self::Attribute(name.to_owned())),
            Some(("enrichment", name)) if !name.is_empty() => return Ok(Self::Enrichment(name.to_owned())),
            _ => {}
        }
        match text {
            "id" => Ok(Self::Id),
            "received_at" => Ok(Self::ReceivedAt),
            "device_id" => Ok(Self::DeviceId),
            "topic" => Ok(Self::Topic),
            "route" => Ok(Self::Route),
            "payload" => Ok(Self::Payload),
            _ => Err(format!(
                "`{text}` is no source: use a JSON Pointer (`/value`), `attribute:<name>`, `enrichment:<name>`, or one \
                 of id, received_at, device_id, topic, route, payload"
            )),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id => f.write_str("id"),
            Self::ReceivedAt => f.write_str("received_at"),
            Self::DeviceId => f.write_str("device_id"),
            Self::Topic => f.write_str("topic"),
            Self::Route => f.write_str("route"),
            Self::Payload => f.write_str("payload"),
            Self::Attribute(name) => write!(f, "attribute:{name}"),
            Self::Enrichment(name) => write!(f, "enrichment:{name}"),
            Self::Pointer(pointer) => pointer.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_unescapes_its_tokens_and_refuses_what_rfc_6901_refuses() {
        assert_eq!(Pointer::parse("/a~1b/~01/").unwrap().tokens(), ["a/b", "~1", ""]);
        assert!(Pointer::parse("a").is_err());
        assert!(Pointer::parse("/a~2").is_err());
        assert!(Pointer::parse("/a~").is_err());
    }

    #[test]
    fn a_source_reads_what_it_prints() {
        for text in [
            "id",
            "received_at",
            "device_id",
            "topic",
            "route",
            "payload",
            "attribute:x",
            "enrichment:y",
            "/z",
        ] {
            assert_eq!(Source::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "attribute:", "value", "enrichment"] {
            assert!(Source::parse(text).is_err(), "{text}");
        }
    }
}

//! What durations and sizes have in common: a whole number in front of a unit.

/// A text that is not a duration or a size: what is wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UnitError(String);

impl UnitError {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

/// The whole number at the start of `text` and what follows; `None` if `text` does not start with a digit.
pub(super) fn split_number(text: &str) -> Result<Option<(u64, &str)>, UnitError> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Ok(None);
    }
    if rest.starts_with(['.', ',', '_']) {
        return Err(UnitError::new(
            "a whole number is needed: take a smaller unit instead of a fraction, no separators",
        ));
    }
    let number = digits.parse().map_err(|_| UnitError::new(format!("the number {digits} is too large")))?;
    Ok(Some((number, rest)))
}

/// Makes a type that is `Display` and `FromStr` one that is written as text in a configuration, with these keywords in
/// its JSON Schema.
macro_rules! written_as_text {
    ($type:ident, $($keyword:literal: $value:expr),+ $(,)?) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", $($keyword: $value),+ })
            }
        }
    };
}
pub(super) use written_as_text;

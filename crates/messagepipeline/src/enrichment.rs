//! Data added to a message by look-ups: one JSON object, shared by all messages of a device.
//!
//! Both forms, the parsed object and its text, are made when first asked for and then kept, so a device's data
//! is written as JSON once per cache entry and not once per message.

use serde_json::{Map, Value};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// A JSON object of looked-up data; empty by default. Cloning shares it.
#[derive(Clone, Default)]
pub struct Enrichment(Option<Arc<Document>>);

#[derive(Default)]
struct Document {
    text: OnceLock<Box<str>>,
    fields: OnceLock<Map<String, Value>>,
}

impl Enrichment {
    /// Nothing added.
    #[must_use]
    pub const fn none() -> Self {
        Self(None)
    }

    /// The given fields; no fields is the same as [`Enrichment::none`].
    #[must_use]
    pub fn from_fields(fields: Map<String, Value>) -> Self {
        if fields.is_empty() {
            return Self(None);
        }
        Self(Some(Arc::new(Document { text: OnceLock::new(), fields: OnceLock::from(fields) })))
    }

    /// Reads the text of one JSON object.
    ///
    /// # Errors
    /// When `text` is not one JSON object.
    pub fn from_text(text: &str) -> Result<Self, serde_json::Error> {
        let fields: Map<String, Value> = serde_json::from_str(text)?;
        if fields.is_empty() {
            return Ok(Self(None));
        }
        Ok(Self(Some(Arc::new(Document {
            text: OnceLock::from(Box::from(text)),
            fields: OnceLock::from(fields),
        }))))
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The value of a field.
    #[must_use]
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.0.as_ref()?.fields.get()?.get(field)
    }

    /// The fields, when there are any.
    #[must_use]
    pub fn fields(&self) -> Option<&Map<String, Value>> {
        self.0.as_ref()?.fields.get()
    }

    /// The object as JSON text without spaces; `None` when nothing was added.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        let document = self.0.as_ref()?;
        Some(document.text.get_or_init(|| {
            let text = document.fields.get().map(serde_json::to_string);
            text.and_then(Result::ok).unwrap_or_else(|| "{}".to_owned()).into()
        }))
    }

    /// These fields with `more` added. A field that is already here stays as it is.
    ///
    /// When nothing was here, the result shares `more`.
    #[must_use]
    pub fn with(&self, more: &Enrichment) -> Enrichment {
        match (self.fields(), more.fields()) {
            (_, None) => self.clone(),
            (None, Some(_)) => more.clone(),
            (Some(mine), Some(theirs)) => {
                let mut fields = mine.clone();
                for (name, value) in theirs {
                    fields.entry(name.clone()).or_insert_with(|| value.clone());
                }
                Self::from_fields(fields)
            }
        }
    }
}

impl fmt::Debug for Enrichment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().unwrap_or("{}"))
    }
}

impl PartialEq for Enrichment {
    fn eq(&self, other: &Self) -> bool {
        self.fields() == other.fields()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_fields_win_over_added_ones() {
        let first = Enrichment::from_text(r#"{"a":1}"#).unwrap();
        let second = Enrichment::from_text(r#"{"a":2,"b":3}"#).unwrap();
        assert_eq!(first.with(&second), Enrichment::from_text(r#"{"a":1,"b":3}"#).unwrap());
        assert_eq!(Enrichment::none().with(&second), second);
        assert_eq!(first.with(&Enrichment::none()), first);
    }

    #[test]
    fn only_an_object_is_enrichment() {
        assert!(Enrichment::from_text("[1]").is_err());
        assert!(Enrichment::from_text("{}").unwrap().is_empty());
    }
}

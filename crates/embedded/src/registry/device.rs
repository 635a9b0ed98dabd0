//! One device, and what a valid one is.

use messagepipeline::Enrichment;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Longest device id in bytes; ids also stand in MQTT topics and in keys of caches.
const LONGEST_ID: usize = 512;
/// Longest text of the other named columns, in bytes.
const LONGEST_TEXT: usize = 1_024;
/// Longest JSON of all further columns together, in bytes: it travels with every message of the device.
const LONGEST_EXTRA: usize = 16 * 1024;

/// What the registry knows about a device.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Device {
    /// Its id, as messages carry it.
    pub device_id: String,
    /// Whose it is.
    pub client_id: Option<String>,
    /// Where it is.
    pub location_id: Option<String>,
    /// What kind it is.
    pub category: Option<String>,
    /// Further columns.
    #[serde(flatten)]
    pub extra: BTreeMap<String, Value>,
}

/// Why a device is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDevice {
    /// There is no id.
    #[error("`device_id` is missing")]
    NoId,
    /// A column that must hold a text holds something else.
    #[error("`{column}` must be a text")]
    NotText {
        /// The column.
        column: &'static str,
    },
    /// A text is longer than its column allows.
    #[error("`{column}` has {found} bytes, and at most {limit} are allowed")]
    TooLong {
        /// The column.
        column: &'static str,
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// A text holds control characters.
    #[error("`{column}` holds a control character")]
    ControlCharacter {
        /// The column.
        column: &'static str,
    },
    /// The id begins or ends with a blank, so that no message would be found under it.
    #[error("`device_id` begins or ends with a blank")]
    Blanks,
}

impl Device {
    /// Makes a device of named values and checks it. Values that are null or an empty text count as absent.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn from_columns(columns: Map<String, Value>) -> Result<Self, InvalidDevice> {
        let mut device = Self::default();
        for (name, value) in columns {
            if value.is_null() || value == "" {
                continue;
            }
            match name.as_str() {
                "device_id" => device.device_id = text("device_id", value, LONGEST_ID)?,
                "client_id" => device.client_id = Some(text("client_id", value, LONGEST_TEXT)?),
                "location_id" => device.location_id = Some(text("location_id", value, LONGEST_TEXT)?),
                "category" => device.category = Some(text("category", value, LONGEST_TEXT)?),
                _ => drop(device.extra.insert(name, value)),
            }
        }
        if device.device_id.is_empty() {
            return Err(InvalidDevice::NoId);
        }
        if device.device_id.trim() != device.device_id {
            return Err(InvalidDevice::Blanks);
        }
        let found = device.extra_json().len();
        if found > LONGEST_EXTRA {
            return Err(InvalidDevice::TooLong { column: "further columns", found, limit: LONGEST_EXTRA });
        }
        Ok(device)
    }

    /// The data that is added to its messages: every column but the id.
    #[must_use]
    pub fn into_enrichment(self) -> Enrichment {
        let named =
            [("client_id", self.client_id), ("location_id", self.location_id), ("category", self.category)];
        let named = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.into())));
        Enrichment::from_fields(named.chain(self.extra).collect())
    }

    /// The further columns as one JSON object, always the same for the same columns.
    pub(super) fn extra_json(&self) -> String {
        serde_json::to_string(&self.extra).unwrap_or_else(|_| "{}".to_owned())
    }
}

fn text(column: &'static str, value: Value, limit: usize) -> Result<String, InvalidDevice> {
    let Value::String(text) = value else { return Err(InvalidDevice::NotText { column }) };
    if text.len() > limit {
        return Err(InvalidDevice::TooLong { column, found: text.len(), limit });
    }
    if text.chars().any(char::is_control) {
        return Err(InvalidDevice::ControlCharacter { column });
    }
    Ok(text)
}

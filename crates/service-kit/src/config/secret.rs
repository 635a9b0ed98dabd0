//! Values that are never shown.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The format name in the JSON Schema.
pub(super) const FORMAT: &str = "millstream-secret";

/// What stands in the place of a secret wherever it is printed.
const MASK: &str = "***";

/// Longest secret file that is read, in bytes; a path to something else by mistake must not fill the memory.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A password, token or key: a string, or `{file: PATH}` to read it from a file (one line end at its end is cut
/// off; relative paths count from the current folder). Shown as `***` by `Debug` and when serialised.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `value` out of sight.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself. Whoever calls this keeps it out of logs and errors.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Reads the secret from a file and cuts off one line end at its end.
    ///
    /// # Errors
    /// When the file cannot be read, is longer than 64 KiB or is not UTF-8. The error never holds its content.
    pub fn from_file(path: &Path) -> Result<Self, SecretFileError> {
        let refuse = |why: String| SecretFileError { path: path.to_path_buf(), why };
        let file = std::fs::File::open(path).map_err(|error| refuse(error.to_string()))?;
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| refuse(error.to_string()))?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(refuse(format!("longer than {MAX_FILE_BYTES} bytes, which no secret is")));
        }
        let mut text = String::from_utf8(bytes).map_err(|_| refuse("not UTF-8 text".to_owned()))?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(Self(text))
    }
}

/// A secret's file that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the secret file {}: {why}", path.display())]
pub struct SecretFileError {
    path: PathBuf,
    why: String,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a secret is a string or {file: PATH}")]
        enum Form {
            Text(String),
            File { file: PathBuf },
        }
        match Form::deserialize(deserializer)? {
            Form::Text(text) => Ok(Self(text)),
            Form::File { file } => Self::from_file(&file).map_err(serde::de::Error::custom),
        }
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "format": FORMAT,
            "writeOnly": true,
            "examples": ["${MQTT_PASSWORD}", { "file": "/run/secrets/mqtt-password" }],
            "anyOf": [
                { "type": "string" },
                {
                    "type": "object",
                    "properties": { "file": { "type": "string", "description": "File that holds the secret." } },
                    "required": ["file"],
                    "additionalProperties": false,
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?}"), "***");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
        let error = serde_json::from_str::<Secret>("[\"hunter2\"]").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_secret_file_loses_exactly_one_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        for (content, secret) in [("a b\n\n", "a b\n"), ("x\r\n", "x"), ("x", "x")] {
            std::fs::write(&path, content).unwrap();
            let json = serde_json::json!({ "file": path });
            assert_eq!(serde_json::from_value::<Secret>(json).unwrap().expose(), secret);
        }
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        let error = Secret::from_file(&path).unwrap_err().to_string();
        assert!(error.contains("password: not UTF-8"), "{error}");
    }
}

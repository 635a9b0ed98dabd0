//! The configuration file.

use super::path::Path as KeyPath;
use super::problem::{ConfigErrors, Place, Problem};
use std::path::Path;
use std::sync::Arc;

/// Longest configuration that is read, in bytes; hundreds of times what people write, and bounded in memory.
pub(super) const MAX_BYTES: u64 = 1024 * 1024;

/// A configuration text and the name under which messages speak of it.
#[derive(Clone, Debug)]
pub struct Source {
    pub(super) name: Arc<str>,
    pub(super) text: String,
}

impl Source {
    /// A text with a name of its own.
    #[must_use]
    pub fn text(name: &str, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into() }
    }

    /// No file: everything is a default or an override.
    #[must_use]
    pub fn none() -> Self {
        Self::text("configuration", "")
    }

    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, is longer than 1 MiB or is not UTF-8 (with the line at fault).
    pub fn file(path: impl AsRef<Path>) -> Result<Self, ConfigErrors> {
        use std::io::Read;
        let path = path.as_ref();
        let name: Arc<str> = path.to_string_lossy().into();
        let cannot_read = |error: std::io::Error| {
            refuse(Place::Default(name.clone()), format!("cannot read the configuration file: {error}"))
        };
        let file = std::fs::File::open(path).map_err(cannot_read)?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(cannot_read)?;
        Self::bytes(name, bytes)
    }

    fn bytes(name: Arc<str>, bytes: Vec<u8>) -> Result<Self, ConfigErrors> {
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { name, text }),
            Err(error) => {
                let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
                let line_start = good.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
                let column = 1 + String::from_utf8_lossy(&good[line_start..]).chars().count();
                let place = Place::File { name, line, column };
                Err(refuse(place, "not UTF-8 text; save the file in UTF-8"))
            }
        }
    }
}

fn refuse(place: Place, message: impl Into<String>) -> ConfigErrors {
    ConfigErrors::new(vec![Problem::new(place, &KeyPath::default(), message)], Vec::new())
}

//! A mistake in the configuration, so that all of them can be reported at once.

use std::fmt;

/// One mistake in the settings: where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Path of the setting within its section, as in `topics[1].filter`.
    pub path: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Mistake {
    pub(crate) fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

impl From<Mistake> for (String, String) {
    fn from(mistake: Mistake) -> Self {
        (mistake.path, mistake.message)
    }
}

//! What can be wrong with archive lines, names and objects.

use messagepipeline::{ErrorClass, StageError};

/// The error of the archive's formats.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A line that no version of the archive writes.
    #[error("not an archive line: {0}")]
    InvalidLine(String),
    /// A name or prefix that could leave its folder, or that file systems or stores do not take.
    #[error("`{name}` cannot name an archive object: {detail}")]
    InvalidName {
        /// The name.
        name: String,
        /// What is wrong and what would be right.
        detail: &'static str,
    },
    /// A location source in the configuration that cannot be read.
    #[error(
        "`{0}` is no source of a location: use `enrichment:<name>`, `attribute:<name>` or a JSON Pointer (`/site`)"
    )]
    InvalidSource(String),
    /// A text that is no day.
    #[error("`{0}` is no day: write it as 2026-11-21, in UTC")]
    InvalidDay(String),
    /// Compressing or decompressing failed.
    #[error("{action} an archive object failed: {source}")]
    Compression {
        /// `compressing` or `decompressing`.
        action: &'static str,
        /// What the library said.
        source: std::io::Error,
    },
    /// A store of objects did not do what it was asked.
    #[error("{action} {place} failed: {detail}")]
    Store {
        /// What was tried (`reading`).
        action: &'static str,
        /// The object, folder or bucket.
        place: String,
        /// A word in kebab case.
        reason: &'static str,
        /// What repeating would bring.
        class: ErrorClass,
        /// What is wrong and what would be right.
        detail: String,
    },
}

impl Error {
    /// What repeating would bring.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        match self {
            Self::InvalidLine(_) => ErrorClass::Permanent,
            Self::InvalidName { .. } | Self::InvalidSource(_) | Self::InvalidDay(_) => {
                ErrorClass::Configuration
            }
            Self::Compression { .. } => ErrorClass::Transient,
            Self::Store { class, .. } => *class,
        }
    }

    /// A word in kebab case for metrics and dead letters.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::InvalidLine(_) => "invalid-line",
            Self::InvalidName { .. } => "invalid-name",
            Self::InvalidSource(_) => "invalid-source",
            Self::InvalidDay(_) => "invalid-day",
            Self::Compression { .. } => "compression",
            Self::Store { reason, .. } => reason,
        }
    }
}

impl From<Error> for StageError {
    fn from(error: Error) -> Self {
        Self::new(error.class(), error.reason(), error.to_string()).with_source(error)
    }
}

//! Why a message cannot become a row.

use crate::ColumnType;
use messagepipeline::{ErrorClass, StageError};

/// A message that the configuration does not let into the warehouse. It names types, never values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A required column found no value.
    #[error("column `{column}` is required, and {what} at {sources}")]
    Missing {
        /// The column.
        column: String,
        /// Where it looked.
        sources: String,
        /// Whether there was nothing, or no JSON to look into.
        what: &'static str,
    },
    /// A strict or required column found a value of another type.
    #[error("column `{column}` takes {expected}, and {origin} holds {found}")]
    WrongType {
        /// The column.
        column: String,
        /// Where the value stood.
        origin: String,
        /// The column's type.
        expected: ColumnType,
        /// The type of what was found.
        found: &'static str,
    },
}

impl Error {
    /// Always permanent: the message does not change.
    #[must_use]
    pub const fn class(&self) -> ErrorClass {
        ErrorClass::Permanent
    }

    /// A word in kebab case for metrics and dead letters.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "missing-value",
            Self::WrongType { .. } => "wrong-type",
        }
    }
}

impl From<Error> for StageError {
    fn from(error: Error) -> Self {
        Self::new(error.class(), error.reason(), error.to_string())
    }
}

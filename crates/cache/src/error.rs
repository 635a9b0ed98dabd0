//! Why a look-up failed.

use messagepipeline::{ErrorClass, StageError};
use std::sync::Arc;

/// A look-up that has no answer. An absent key is an answer and not an error.
///
/// Cloning shares it: one failed call is the answer for every key in it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// A layer missed and there is nobody to ask.
    #[error("not found in the cache layer `{layer}`, and no fallback is configured")]
    NoFallback {
        /// The layer's name.
        layer: &'static str,
    },
    /// A source failed, or did not answer in time.
    #[error(transparent)]
    Source(Arc<StageError>),
}

impl FetchError {
    /// What repeating the look-up would bring.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NoFallback { .. } => ErrorClass::Configuration,
            Self::Source(error) => error.class(),
        }
    }
}

impl From<StageError> for FetchError {
    fn from(error: StageError) -> Self {
        Self::Source(Arc::new(error))
    }
}

impl From<FetchError> for StageError {
    fn from(error: FetchError) -> Self {
        let reason = match &error {
            FetchError::NoFallback { .. } => "lookup-no-fallback",
            FetchError::Source(source) => {
                let (class, reason, detail) = (source.class(), source.reason(), source.detail());
                return StageError::new(class, reason.to_owned(), detail).with_source(error);
            }
        };
        StageError::new(error.class(), reason, error.to_string())
    }
}

/// A cache without room for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("maxSize must be greater than 0")]
pub struct ZeroSize;

//! What can go wrong with Firestore.

use cache::FetchError;
use messagepipeline::{ErrorClass, StageError};
use std::time::Duration;

/// Why Firestore gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no such document. Look-ups answer without a value instead.
    #[error("document not found: {collection}/{id}")]
    DocumentNotFound {
        /// The collection.
        collection: String,
        /// The id asked for.
        id: String,
    },
    /// A setting that cannot work.
    #[error("Firestore {setting}: {problem}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// No credentials, or they were refused by who issues them.
    #[error("no credentials for Firestore: {reason}")]
    Credentials {
        /// What went wrong.
        reason: String,
        /// Whether trying again may help.
        transient: bool,
    },
    /// Firestore does not let us, or has no such database.
    #[error(
        "Firestore refuses ({code}): {reason}; check project, database and the rights of the service account"
    )]
    Refused {
        /// The gRPC code.
        code: &'static str,
        /// Firestore's words.
        reason: String,
    },
    /// A request that Firestore does not understand.
    #[error("Firestore takes the request for wrong ({code}): {reason}")]
    Invalid {
        /// The gRPC code.
        code: &'static str,
        /// Firestore's words.
        reason: String,
    },
    /// Firestore failed or cannot be reached.
    #[error("Firestore failed ({code}): {reason}")]
    Unavailable {
        /// The gRPC code.
        code: &'static str,
        /// Its words, or the transport's.
        reason: String,
    },
    /// No answer in time.
    #[error("Firestore did not answer within {limit:?}{after}")]
    Timeout {
        /// The time it had.
        limit: Duration,
        /// What failed before that, if anything did.
        after: String,
    },
}

impl Error {
    /// What trying again would bring.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::DocumentNotFound { .. } | Self::Invalid { .. } => ErrorClass::Permanent,
            Self::Setting { .. } | Self::Refused { .. } => ErrorClass::Configuration,
            Self::Credentials { transient: false, .. } => ErrorClass::Configuration,
            Self::Credentials { .. } | Self::Unavailable { .. } | Self::Timeout { .. } => {
                ErrorClass::Transient
            }
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::DocumentNotFound { .. } => "firestore-not-found",
            Self::Setting { .. } => "firestore-setting",
            Self::Credentials { .. } => "firestore-credentials",
            Self::Refused { .. } => "firestore-refused",
            Self::Invalid { .. } => "firestore-invalid",
            Self::Unavailable { .. } => "firestore-unavailable",
            Self::Timeout { .. } => "firestore-timeout",
        }
    }
}

impl From<Error> for StageError {
    fn from(error: Error) -> Self {
        StageError::new(error.class(), error.reason(), error.to_string()).with_source(error)
    }
}

impl From<Error> for FetchError {
    fn from(error: Error) -> Self {
        StageError::from(error).into()
    }
}

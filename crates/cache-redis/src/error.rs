//! What can go wrong with Redis.

use cache::FetchError;
use messagepipeline::{ErrorClass, StageError};
use std::time::Duration;

/// Why Redis could not be used. No variant holds an address with its password.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The URL, or a certificate beside it, cannot be used.
    #[error(
        "the Redis URL or its certificate cannot be used ({reason}); write redis://HOST:PORT, or rediss://HOST:PORT for TLS"
    )]
    Address {
        /// What is wrong with it.
        reason: String,
    },
    /// The namespace cannot begin a key.
    #[error("`{namespace}` is no namespace for keys; write 1 to 64 letters, digits, `.`, `_` or `-`")]
    Namespace {
        /// What was given.
        namespace: String,
    },
    /// Redis failed before and is not asked at the moment.
    #[error("Redis at {server} is not asked for {wait:?} after a failure: {reason}")]
    Waiting {
        /// Host and port.
        server: String,
        /// How long until it is asked again.
        wait: Duration,
        /// What failed last.
        reason: String,
    },
    /// No answer in time.
    #[error("Redis at {server} did not answer within {limit:?}")]
    Timeout {
        /// Host and port.
        server: String,
        /// The time it had.
        limit: Duration,
    },
    /// Redis refused the user, the password or the command.
    #[error("Redis at {server} refuses: {reason}; check user, password and rights")]
    Refused {
        /// Host and port.
        server: String,
        /// Its words.
        reason: String,
    },
    /// The server's certificate is not trusted.
    #[error(
        "the certificate of Redis at {server} is not trusted ({reason}); name the authority that signed it in the \
         certificate file, or none where the system trusts it, and reach Redis by a name that its certificate holds"
    )]
    Untrusted {
        /// Host and port.
        server: String,
        /// What TLS says.
        reason: String,
    },
    /// The connection or the server failed.
    #[error("Redis at {server} failed: {reason}")]
    Failed {
        /// Host and port.
        server: String,
        /// Its words.
        reason: String,
    },
    /// So many changes wait to be written that no further one was taken in time.
    #[error("too many changes wait to be written to Redis at {server}")]
    QueueFull {
        /// Host and port.
        server: String,
    },
}

impl Error {
    /// What trying again would bring.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Address { .. } | Self::Namespace { .. } | Self::Refused { .. } | Self::Untrusted { .. } => {
                ErrorClass::Configuration
            }
            Self::Waiting { .. } | Self::Timeout { .. } | Self::Failed { .. } | Self::QueueFull { .. } => {
                ErrorClass::Transient
            }
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Address { .. } => "redis-address",
            Self::Namespace { .. } => "redis-namespace",
            Self::Waiting { .. } => "redis-waiting",
            Self::Timeout { .. } => "redis-timeout",
            Self::Refused { .. } => "redis-refused",
            Self::Untrusted { .. } => "redis-certificate",
            Self::Failed { .. } => "redis-failed",
            Self::QueueFull { .. } => "redis-queue-full",
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

//! What can go wrong between Millstream and Pub/Sub.

use google_cloud_gax::error::rpc::Code;
use google_cloud_pubsub::Error as VendorError;
use messagepipeline::{ErrorClass, MessageId, StageError};
use std::time::Duration;

/// An error of the Pub/Sub adapter. Names are full resource names (`projects/P/topics/T`).
#[derive(Clone, Debug, thiserror::Error)]
pub enum PubSubError {
    /// A name that no topic or subscription can have.
    #[error("`{name}` cannot be the name of a {kind}: {why}")]
    Name {
        /// `topic` or `subscription`.
        kind: &'static str,
        /// The name as it was given.
        name: String,
        /// What would be right.
        why: String,
    },
    /// The client could not be put together: the endpoint's URL, TLS or the credentials.
    #[error("the Pub/Sub client cannot be set up: {0}; check endpoint and credentials")]
    Setup(String),
    /// Topic or subscription does not exist.
    #[error("{resource} does not exist, or the credentials may not see it: create it, or name another one")]
    NotFound {
        /// The topic or subscription.
        resource: String,
    },
    /// The credentials lack a right.
    #[error(
        "the credentials may not use {resource} ({message}); publishing needs roles/pubsub.publisher on the topic, consuming roles/pubsub.subscriber on the subscription"
    )]
    Denied {
        /// The topic or subscription.
        resource: String,
        /// The service's words.
        message: String,
    },
    /// There is no token to ask with, or the service takes it for none.
    #[error(
        "no valid credentials for {resource} ({message}); a renewed key or permission is found without a restart"
    )]
    Credentials {
        /// The topic or subscription.
        resource: String,
        /// The words of who was to hand out the token, or of who refused it.
        message: String,
    },
    /// The service takes a message's form or content never.
    #[error("{resource} refuses it: {message}")]
    Invalid {
        /// The topic or subscription.
        resource: String,
        /// The service's words.
        message: String,
    },
    /// Any other failure of a request or stream; it may work later.
    #[error("{resource}: {message}")]
    Unavailable {
        /// The topic or subscription.
        resource: String,
        /// The service's or the client's words.
        message: String,
    },
    /// No answer in time.
    #[error("{resource} did not answer within {:.1} s", after.as_secs_f64())]
    Timeout {
        /// The topic or subscription.
        resource: String,
        /// The deadline.
        after: Duration,
    },
    /// A message that Pub/Sub cannot hold.
    #[error("it takes {bytes} bytes on the wire, Pub/Sub holds at most {limit}")]
    TooLarge {
        /// Its bytes with its attributes.
        bytes: usize,
        /// The service's limit.
        limit: usize,
    },
    /// An earlier message with the same ordering key failed.
    #[error("an earlier message of the same ordering key failed")]
    KeyPaused,
    /// The window of a publisher that never waits is full.
    #[error("{0} messages wait for the service's answer already")]
    Full(usize),
    /// It was closed.
    #[error("closed")]
    Closed,
    /// The consumer was closed while verdicts could not reach the service, or were refused.
    #[error("{0}; those messages come again")]
    VerdictsLost(String),
    /// One message's failure.
    #[error("failed to publish message ID {id}: {source}")]
    Publish {
        /// The message.
        id: MessageId,
        /// Why.
        source: Box<PubSubError>,
    },
}

impl PubSubError {
    /// The same of a stream: what the service refuses there is about the subscription, never about a message, so a person
    /// is needed and the stream is opened again.
    pub(crate) fn of_a_stream(self) -> Self {
        match self {
            Self::Invalid { resource, message } => {
                Self::Setup(format!("{resource} refuses the stream: {message}"))
            }
            error => error,
        }
    }

    /// What repeating would bring.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Name { .. }
            | Self::Setup(_)
            | Self::NotFound { .. }
            | Self::Denied { .. }
            | Self::Credentials { .. } => ErrorClass::Configuration,
            Self::Invalid { .. } | Self::TooLarge { .. } => ErrorClass::Permanent,
            Self::Unavailable { .. }
            | Self::Timeout { .. }
            | Self::KeyPaused
            | Self::Full(_)
            | Self::Closed
            | Self::VerdictsLost(_) => ErrorClass::Transient,
            Self::Publish { source, .. } => source.class(),
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Name { .. } => "pubsub-name",
            Self::Setup(_) => "pubsub-setup",
            Self::NotFound { .. } => "pubsub-not-found",
            Self::Denied { .. } => "pubsub-denied",
            Self::Credentials { .. } => "pubsub-credentials",
            Self::Invalid { .. } => "pubsub-refused",
            Self::Unavailable { .. } | Self::KeyPaused => "pubsub-unavailable",
            Self::Timeout { .. } => "pubsub-timeout",
            Self::TooLarge { .. } => "too-large-for-pubsub",
            Self::Full(_) => "pubsub-window-full",
            Self::Closed => "pubsub-closed",
            Self::VerdictsLost(_) => "acks-not-delivered",
            Self::Publish { source, .. } => source.word(),
        }
    }

    /// The vendor's error about `resource`.
    pub(crate) fn from_vendor(resource: &str, error: &VendorError) -> Self {
        let resource = resource.to_owned();
        if let Some(status) = error.status() {
            let message = status.message.clone();
            return match status.code {
                Code::NotFound => Self::NotFound { resource },
                Code::PermissionDenied => Self::Denied { resource, message },
                Code::Unauthenticated => Self::Credentials { resource, message },
                Code::InvalidArgument | Code::OutOfRange => Self::Invalid { resource, message },
                code => Self::Unavailable { resource, message: format!("{code}: {message}") },
            };
        }
        if error.is_authentication() && !error.is_transient_and_before_rpc() {
            return Self::Credentials { resource, message: with_causes(error) };
        }
        Self::Unavailable { resource, message: error.to_string() }
    }

    /// This error as that of one message.
    pub(crate) fn of(self, id: MessageId) -> Self {
        Self::Publish { id, source: Box::new(self) }
    }
}

/// An error and what it rests on, in one sentence.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors of the client show their cause themselves.
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    // The client says so of credentials; they are read again until they work.
    text.replace(" and future attempts will not succeed", "")
}

impl From<PubSubError> for StageError {
    fn from(error: PubSubError) -> Self {
        Self::new(error.class(), error.word(), error.to_string())
    }
}

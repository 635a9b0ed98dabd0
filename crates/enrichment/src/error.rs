//! Why a message could not be enriched.

use cache::FetchError;
use messagepipeline::{ErrorClass, StageError};

/// The error of one message in the enrichment stage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source of truth does not know the device, and the configuration sends such messages to the dead letters.
    #[error("the registry does not know the device `{key}`: import it, or let unknown devices pass or park")]
    UnknownDevice {
        /// The look-up key.
        key: Box<str>,
    },
    /// The look-up has no answer.
    #[error(transparent)]
    Lookup(#[from] FetchError),
    /// The parking lot failed.
    #[error("the message could not be parked: {0}")]
    Parking(FetchError),
}

impl Error {
    /// What trying the message again would bring.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::UnknownDevice { .. } => ErrorClass::Permanent,
            // A look-up says nothing against the message, whatever it says about the source.
            Self::Lookup(error) | Self::Parking(error) => match error.class() {
                ErrorClass::Permanent => ErrorClass::Configuration,
                class => class,
            },
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::UnknownDevice { .. } => messagepipeline::names::UNKNOWN_DEVICE,
            Self::Lookup(_) => "lookup-failed",
            Self::Parking(_) => "parking-failed",
        }
    }
}

impl From<Error> for StageError {
    fn from(error: Error) -> Self {
        Self::new(error.class(), error.reason(), error.to_string()).with_source(error)
    }
}

//! Why a part could not be connected.

use messagepipeline::{ErrorClass, StageError};

/// A part that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A store of the data folder.
    #[error(transparent)]
    Embedded(#[from] embedded::Error),
    /// The MQTT endpoint.
    #[error(transparent)]
    Endpoint(#[from] mqttconverter::endpoint::EndpointError),
    /// The client of an outside broker.
    #[error(transparent)]
    Broker(#[from] mqttconverter::broker::BrokerError),
    /// Pub/Sub.
    #[cfg(feature = "google")]
    #[error(transparent)]
    PubSub(#[from] ::pubsub::PubSubError),
    /// A part refused to open.
    #[error(transparent)]
    Stage(#[from] StageError),
}

impl ConnectError {
    /// What trying again would bring.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Embedded(error) => error.class(),
            Self::Endpoint(error) => error.class(),
            Self::Broker(error) => error.class(),
            #[cfg(feature = "google")]
            Self::PubSub(error) => error.class(),
            Self::Stage(error) => error.class(),
        }
    }
}

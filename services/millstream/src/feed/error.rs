//! Why a feed ended before its time.

use crate::recording::RecordingError;
use messagepipeline::{ErrorClass, StageError};
use mqttconverter::tls::TlsError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a feed ended before its time. What had its PUBACK until then stays acknowledged; the report counts it.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The broker's address is not one.
    #[error(
        "`{url}` is no broker address: {reason}; examples are mqtt://127.0.0.1:1883 and mqtts://broker.example:8883"
    )]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Options that cannot work together.
    #[error("{0}")]
    Options(&'static str),
    /// A certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A recording cannot be read on.
    #[error(transparent)]
    Recording(#[from] RecordingError),
    /// What produces the messages ended without saying why.
    #[error("the reader of the recordings stopped unexpectedly; this is a mistake in Millstream")]
    Source,
    /// No connection came about.
    #[error(
        "no MQTT broker answers at {address} ({reason}); start one there, for example `millstream up`, or name another with --broker"
    )]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the last attempt met.
        reason: String,
    },
    /// Connections come about and break again without progress.
    #[error("the connection to {address} broke {breaks} times within {} s without an acknowledgement ({reason}); the oldest unacknowledged message is {place}", waited.as_secs())]
    Stuck {
        /// Host and port.
        address: String,
        /// How often.
        breaks: u32,
        /// For how long.
        waited: Duration,
        /// How the last one broke.
        reason: String,
        /// File and line of the message that waits longest, or "none".
        place: String,
    },
    /// The broker does not let us in, and trying again would not change that.
    #[error("the broker at {address} refuses the connection of client `{client_id}`: {reason}")]
    Refused {
        /// Host and port.
        address: String,
        /// Our client id.
        client_id: String,
        /// The broker's reason and what to do.
        reason: String,
    },
    /// The two sides do not trust each other's certificates, or the other side does not speak TLS.
    #[error(
        "no encrypted connection to {address}: {reason}; check --ca-file, --cert-file and --key-file, and that the port is the broker's TLS port"
    )]
    Handshake {
        /// Host and port.
        address: String,
        /// What went wrong.
        reason: String,
    },
    /// The list of acknowledged lines cannot be written.
    #[error("cannot write the acknowledged lines to {}: {source}", path.display())]
    Acked {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
}

impl FeedError {
    /// What repeating would bring.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unreachable { .. } | Self::Stuck { .. } => ErrorClass::Transient,
            Self::Source => ErrorClass::Permanent,
            _ => ErrorClass::Configuration,
        }
    }
}

impl From<FeedError> for StageError {
    fn from(error: FeedError) -> Self {
        Self::new(error.class(), "feed", error.to_string()).with_source(error)
    }
}

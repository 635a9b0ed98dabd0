//! Errors of the endpoint.

use super::options::Mistake;
use crate::tls::TlsError;
use messagepipeline::{ErrorClass, StageError};
use std::net::SocketAddr;

/// Why the endpoint cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Settings that do not do.
    #[error("the MQTT endpoint cannot start: {}", list(.0))]
    Options(Vec<Mistake>),
    /// The TLS files cannot be used.
    #[error("the MQTT endpoint cannot start: {0}")]
    Tls(#[from] TlsError),
    /// The stored sessions cannot be read.
    #[error("the MQTT endpoint cannot start without its stored sessions: {0}")]
    Sessions(StageError),
    /// The address cannot be listened on.
    #[error("cannot listen for MQTT on {address}: {}", remedy(source))]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

fn remedy(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "port in use; stop the other program (an MQTT broker?) or choose another port (0 picks a free one)".to_owned()
        }
        _ => error.to_string(),
    }
}

fn list(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl EndpointError {
    /// What repeating would bring. Mostly a person must change something first.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Sessions(error) => error.class(),
            Self::Options(_) | Self::Tls(_) | Self::Bind { .. } => ErrorClass::Configuration,
        }
    }
}

impl From<EndpointError> for StageError {
    fn from(error: EndpointError) -> Self {
        Self::new(error.class(), "mqtt-endpoint", error.to_string()).with_source(error)
    }
}

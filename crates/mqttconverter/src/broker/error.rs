//! What can go wrong between Millstream and an outside broker.

use crate::routing::Mistake;
use crate::tls::TlsError;
use messagepipeline::{ErrorClass, StageError};
use std::time::Duration;

/// An error of the broker client.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The options cannot work. All mistakes at once.
    #[error("the broker's settings cannot work: {}", join(.0))]
    Options(Vec<Mistake>),
    /// A certificate or key cannot be loaded. The client never connects without what was asked for.
    #[error("TLS towards the broker: {0}")]
    Tls(#[from] TlsError),
    /// No TCP connection, or it broke.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// TCP, TLS and CONNACK together took too long.
    #[error("no answer within {}", seconds(.0))]
    ConnectTimeout(Duration),
    /// The broker did not answer SUBSCRIBE.
    #[error("no answer to the subscription within {}", seconds(.0))]
    SubscribeTimeout(Duration),
    /// The broker answered CONNECT with a refusal.
    #[error("the broker refused the connection: {reason}")]
    Refused {
        /// The broker's reason.
        reason: String,
        /// Whether only a person can change it (credentials, client id, protocol version).
        lasting: bool,
    },
    /// The broker said goodbye.
    #[error("the broker closed the connection{}", reason(.0))]
    Closed(Option<String>),
    /// Nothing came for longer than the keep-alive allows.
    #[error("the broker was silent for {}", seconds(.0))]
    Silent(Duration),
    /// The broker did not take what was written to it.
    #[error("the broker took no data for {}", seconds(.0))]
    WriteStalled(Duration),
    /// A packet is larger than allowed. In MQTT 3.1.1 the broker cannot be told to keep it back.
    #[error(
        "the broker sends a packet of {size} bytes, more than max_packet_size ({max} bytes); a larger max_packet_size lets it in"
    )]
    PacketTooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        max: u32,
    },
    /// What came is not the MQTT that was agreed on.
    #[error("not understood: {0}")]
    Protocol(String),
    /// The client was closed, and it is not certain that the broker has all acknowledgements.
    #[error("{0} acknowledgements may not have reached the broker; if so, it sends those messages again")]
    AcksLost(usize),
    /// The network task is gone, which only a defect can bring about.
    #[error("the task that talks to the broker ended unexpectedly")]
    TaskEnded,
}

impl BrokerError {
    /// What repeating would bring.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Options(_)
            | Self::Tls(_)
            | Self::PacketTooLarge { .. }
            | Self::Refused { lasting: true, .. } => ErrorClass::Configuration,
            Self::TaskEnded => ErrorClass::Permanent,
            _ => ErrorClass::Transient,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Options(_) => "broker-options",
            Self::Tls(_) => "broker-tls",
            Self::Io(_) | Self::ConnectTimeout(_) => "broker-unreachable",
            Self::Refused { .. } => "broker-refused",
            Self::Closed(_) | Self::Silent(_) | Self::WriteStalled(_) | Self::SubscribeTimeout(_) => {
                "broker-connection-lost"
            }
            Self::PacketTooLarge { .. } => "packet-too-large",
            Self::Protocol(_) => "broker-protocol",
            Self::AcksLost(_) => "acks-not-delivered",
            Self::TaskEnded => "broker-task-ended",
        }
    }
}

impl From<BrokerError> for StageError {
    fn from(error: BrokerError) -> Self {
        Self::new(error.class(), error.word(), error.to_string())
    }
}

fn join(mistakes: &[Mistake]) -> String {
    let lines: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

fn seconds(duration: &Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn reason(reason: &Option<String>) -> String {
    reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"))
}

//! The shared sections of the configuration: which bus, and its bounds.

use embedded::bus::{BusOptions, SubscriptionOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::config::{ByteSize, Duration};

/// The bus between the services.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BusConfig {
    /// Which bus.
    pub kind: BusKind,
    /// Bytes of unsettled messages that one topic may hold. At this size publishing waits; nothing is dropped.
    pub max_size: ByteSize,
    /// How much the dead letters may hold.
    pub dead_letters: DeadLetterConfig,
    /// How long a service may hold a message without a verdict before the message is delivered again.
    pub lease: Duration,
    /// Pause before a message that failed is delivered again; it doubles with each failure.
    pub redelivery_min: Duration,
    /// Longest such pause.
    pub redelivery_max: Duration,
}

impl Default for BusConfig {
    fn default() -> Self {
        Self {
            kind: BusKind::default(),
            max_size: ByteSize::from_gib(64),
            dead_letters: DeadLetterConfig::default(),
            lease: Duration::from_mins(10),
            redelivery_min: Duration::from_millis(100),
            redelivery_max: Duration::from_mins(1),
        }
    }
}

impl BusConfig {
    pub(crate) fn options(&self, max_parked: u64) -> BusOptions {
        BusOptions {
            max_topic_bytes: self.max_size.bytes(),
            max_parked,
            max_dead_letters: self.dead_letters.max_count,
            max_dead_letter_bytes: self.dead_letters.max_size.bytes(),
        }
    }

    pub(crate) fn subscription(&self, window: Window) -> SubscriptionOptions {
        SubscriptionOptions {
            max_outstanding_messages: window.messages,
            max_outstanding_bytes: window.bytes,
            lease: self.lease.get(),
            nack_delay: self.redelivery_min.get(),
            nack_delay_max: self.redelivery_max.get(),
            max_attempts: window.max_attempts,
        }
    }
}

/// The bounds of the dead letters that wait for a person. At a bound a stage keeps what it would give up, says so in
/// `/readyz`, and goes on when letters were retried or dropped; nothing is lost.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetterConfig {
    /// How many.
    pub max_count: u64,
    /// Bytes of their payloads, attributes and reasons.
    pub max_size: ByteSize,
}

impl Default for DeadLetterConfig {
    fn default() -> Self {
        Self { max_count: 1_000_000, max_size: ByteSize::from_gib(4) }
    }
}

/// Which bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BusKind {
    /// Durable topics in `bus.db` of the data folder.
    #[default]
    Embedded,
}

/// What a service asks of its subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// How many messages it may run ahead of its oldest unsettled one.
    pub messages: usize,
    /// The same in bytes.
    pub bytes: usize,
    /// Deliveries until a message that ends the process each time goes to the dead letters.
    pub max_attempts: u32,
}

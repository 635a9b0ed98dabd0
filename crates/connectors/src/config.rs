//! The shared sections of the configuration: which bus, and its bounds.

use embedded::bus::{BusOptions, SubscriptionOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::config::{ByteSize, Duration};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The topic from ingestion to enrichment.
pub const RAW: &str = "raw";
/// The topic from enrichment to the sinks.
pub const ENRICHED: &str = "enriched";

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
    /// For `kind: pubsub`. Pauses before a redelivery and deliveries until Pub/Sub's own dead letters are settings of
    /// the subscription there.
    pub pubsub: PubSubConfig,
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
            pubsub: PubSubConfig::default(),
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
    /// Google Pub/Sub, between services that are processes of their own.
    Pubsub,
}

/// Google Pub/Sub.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PubSubConfig {
    /// Names of the topics in the project; a topic that is not listed has its own name there.
    pub topics: BTreeMap<String, String>,
    /// Names of the subscriptions in the project by service; one that is not listed is called as its service.
    pub subscriptions: BTreeMap<String, String>,
    /// Topic of the dead letters and of the records of what a rule ended.
    pub dead_letters: String,
    /// Subscription on it that `millstream books` reads and `millstream dead-letters` works through.
    pub dead_letters_reader: String,
    /// Form of a message.
    pub wire: WireForm,
    /// Ordering keys that devices are spread over, so that each device's messages stay in order; 0 for no order. The
    /// subscriptions must have message ordering enabled.
    #[schemars(range(max = 1000))]
    pub ordering_keys: u32,
    /// Streams that a service receives over. One stream of Pub/Sub carries about 10 MB a second.
    #[schemars(range(min = 1, max = 64))]
    pub streams: u32,
    /// By how much the lease of a message that is worked on is extended at a time, 10 s to 10 min: so long it takes after
    /// a crash until Pub/Sub delivers to others what the process had.
    pub lease_extension: Duration,
    /// How long a message's lease is extended in all; one that is older is delivered again, which the subscription counts
    /// as a failed delivery. As long as an outage of a sink may last.
    pub max_lease: Duration,
    /// Creates topics and subscriptions that are not there, with defaults; for trials. It needs more rights than
    /// publishing and subscribing.
    pub create: bool,
    /// How long messages wait for others to be published together.
    pub publish_delay: Duration,
    /// Longest time a publish may take, repetitions included.
    pub publish_timeout: Duration,
}

impl Default for PubSubConfig {
    fn default() -> Self {
        Self {
            topics: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            dead_letters: "dead-letters".to_owned(),
            dead_letters_reader: "books".to_owned(),
            wire: WireForm::default(),
            ordering_keys: 0,
            streams: 4,
            lease_extension: Duration::from_mins(1),
            max_lease: Duration::from_hours(7 * 24),
            create: false,
            publish_delay: Duration::from_millis(10),
            publish_timeout: Duration::from_mins(1),
        }
    }
}

/// Form of a message on Pub/Sub. Whatever is configured, both are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WireForm {
    /// The body is the device's payload; everything else stands in attributes.
    #[default]
    Binary,
    /// One JSON document with the payload in base64, for readers that expect one.
    Json,
}

/// Google Cloud, for the parts that are configured to stand there. The usual variables of the emulators
/// (`PUBSUB_EMULATOR_HOST`, `FIRESTORE_EMULATOR_HOST`, `STORAGE_EMULATOR_HOST`, `BIGQUERY_EMULATOR_HOST` with
/// `BIGQUERY_STORAGE_EMULATOR_HOST` for its gRPC port) are honoured.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GoogleConfig {
    /// Project id. Without it that of `GOOGLE_CLOUD_PROJECT`, else that of the machine it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Credentials file (JSON). Without it Google's default chain: `GOOGLE_APPLICATION_CREDENTIALS`, the user's own,
    /// the machine's service account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
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

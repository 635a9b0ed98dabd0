//! What the adapter is told from outside.

use google_cloud_auth::credentials::Credentials;
use std::time::Duration;

/// Where Pub/Sub is and who asks.
#[derive(Clone, Debug)]
pub struct PubSubOptions {
    /// The Google Cloud project of topics and subscriptions that are named without one.
    pub project: String,
    /// URL of an emulator or of a regional endpoint; `None` is the service itself.
    pub endpoint: Option<String>,
    /// Who asks. An emulator takes anonymous credentials.
    pub credentials: Credentials,
}

/// How a consumer reads its subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerOptions {
    /// Messages held at most: received and waiting, and from the oldest without a verdict to the newest handed out.
    /// One response of the service may go beyond it. Default 10,000.
    pub max_outstanding_messages: usize,
    /// The same in bytes, counted as [`messagepipeline::Message::weight`] does. Default 64 MiB.
    pub max_outstanding_bytes: usize,
    /// How long a message's lease is extended, at most. Older ones are not handed out any more; the service delivers
    /// them again. Default seven days, which is how long a subscription keeps messages by default: during an outage of a sink
    /// the service must not count deliveries that nobody could help.
    pub max_lease: Duration,
    /// By how much a lease is extended at a time, 10 to 600 s: what a crash takes until the service delivers again.
    /// Default 60 s.
    pub lease_extension: Duration,
    /// The least `lease_extension` that is used, whatever that says. Default 10 s, which is the service's own least.
    pub min_ack_extension: Duration,
    /// Streams that read side by side, each with a connection of its own. The service sends up to 10 MB/s on one.
    /// Default 4.
    pub streams: usize,
    /// A stream on which nothing came for so long, while nothing is held, is opened anew on a new connection: the only
    /// remedy for a connection that a gateway forgot. Default five minutes.
    pub max_silence: Duration,
    /// The service that consumes. Dead letters of other services that are retried over the same topic
    /// ([`crate::PubSubPublisher::publish_again`]) are acknowledged unread; `None` takes them all. Default `None`.
    pub service: Option<String>,
    /// How long `close` waits for verdicts to reach the service. Default 10 s.
    pub close_deadline: Duration,
    /// Seed of the jitter between attempts to open a stream; another one in each replica.
    pub seed: u64,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            max_outstanding_messages: 10_000,
            max_outstanding_bytes: 64 << 20,
            max_lease: Duration::from_secs(7 * 24 * 3_600),
            lease_extension: Duration::from_secs(60),
            min_ack_extension: Duration::from_secs(10),
            streams: 4,
            max_silence: Duration::from_secs(300),
            service: None,
            close_deadline: Duration::from_secs(10),
            seed: 0,
        }
    }
}

/// The form of a message on the wire. A consumer reads both, and messages from anybody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// The body is the payload, byte for byte; everything else is in attributes.
    #[default]
    Binary,
    /// The body is one JSON document with the payload in base64, for readers that expect one. The attributes are sent
    /// as well.
    Json,
}

/// Whether messages carry ordering keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ordering {
    /// None. Pub/Sub delivers in any order.
    #[default]
    None,
    /// Messages of one device come in their order, on subscriptions with message ordering. Calls to the publisher
    /// then take turns.
    ByDevice {
        /// Devices share so many keys. Each costs the client memory for ever and carries at most 1 MB/s.
        keys: u32,
    },
}

/// How a publisher writes to its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublisherOptions {
    /// Form on the wire.
    pub wire: Wire,
    /// Messages that wait for the service's answer, at most; a call with more than that passes alone. Default 10,000.
    pub max_outstanding_messages: usize,
    /// The same in bytes, counted as [`messagepipeline::Message::weight`] does. Default 32 MiB.
    pub max_outstanding_bytes: usize,
    /// Messages in one request, at most 1,000. Default 1,000.
    pub batch_messages: u32,
    /// Bytes in one request, at most 10 MB. Default 2 MB.
    pub batch_bytes: u32,
    /// How long a message waits for others to share its request. Default 10 ms.
    pub batch_delay: Duration,
    /// Whether messages carry ordering keys.
    pub ordering: Ordering,
    /// How long a request is repeated after passing errors; then its messages have failed for now. Default 30 s.
    pub deadline: Duration,
}

impl Default for PublisherOptions {
    fn default() -> Self {
        Self {
            wire: Wire::Binary,
            max_outstanding_messages: 10_000,
            max_outstanding_bytes: 32 << 20,
            batch_messages: 1_000,
            batch_bytes: 2_000_000,
            batch_delay: Duration::from_millis(10),
            ordering: Ordering::None,
            deadline: Duration::from_secs(30),
        }
    }
}

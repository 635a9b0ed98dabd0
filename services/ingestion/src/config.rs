//! The `ingestion` section of the configuration.

use mqttconverter::broker::{Protocol, Subscription};
use mqttconverter::routing::{DeviceIdRule, MessageIdRule, Route};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::config::{ByteSize, Duration, Secret};
use std::net::SocketAddr;
use std::path::PathBuf;

/// MQTT in: where messages come from and which topic they go to.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IngestionConfig {
    /// The endpoint that devices connect to. Not used when `broker` is set.
    pub mqtt: EndpointConfig,
    /// An outside MQTT broker to subscribe to, in place of the endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerConfig>,
    /// A durable buffer on this machine between MQTT and Pub/Sub, in the data folder: a message is acknowledged once it
    /// is there, so neither the way to Pub/Sub nor an outage of it slows devices down. For the program `ingestion`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spool: Option<SpoolConfig>,
    /// Writes the ids of all messages to `ledger/` of the data folder, 16 bytes each (32 with `spool`); `millstream
    /// books` compares the sinks with them. For the program `ingestion`.
    pub ledger: bool,
    /// Ids in the ledger are kept for so long, then deleted by whole days (UTC); `millstream books` names what is missing
    /// for so long. At least 1d. Not longer than the sinks keep what they have.
    pub ledger_keep: Duration,
    /// Which messages go to which topic; the first filter that matches decides. A message that matches none is a dead
    /// letter.
    pub routes: Vec<Route>,
    /// Where the device id stands.
    pub device_id: DeviceIdRule,
    /// A message id of the device's own that is trusted: with it a message sent again is known again, whatever
    /// happened between, for as long as `retention.ids`. Without it Millstream makes the ids. It counts per
    /// device; the number `1` and the text `"1"` are the same id. A message gets an id of ours where it is
    /// missing, empty, longer than 256 bytes or has control characters, or where there is no device id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<MessageIdRule>,
    /// Payloads smaller than this are skipped.
    pub min_payload: ByteSize,
    /// Most messages that are taken and not yet on the bus, over all connections.
    #[schemars(range(min = 1))]
    pub max_in_flight: u32,
    /// Most bytes of messages that are taken and not yet on the bus, over all connections.
    pub max_in_flight_bytes: ByteSize,
}

impl Default for IngestionConfig {
    fn default() -> Self {
        Self {
            mqtt: EndpointConfig::default(),
            broker: None,
            spool: None,
            ledger: true,
            ledger_keep: Duration::from_hours(30 * 24),
            routes: mqttconverter::routing::default_routes(),
            device_id: DeviceIdRule::default(),
            message_id: None,
            min_payload: ByteSize::from_bytes(0),
            max_in_flight: 20_000,
            max_in_flight_bytes: ByteSize::from_mib(16),
        }
    }
}

/// The buffer on disk.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolConfig {
    /// Most bytes of messages that one topic's part may hold. At this size devices wait; nothing is dropped.
    pub max_size: ByteSize,
    /// Ids of messages that have left it are known for so long, so that what a device sends again under an id of its
    /// own is known again.
    pub ids: Duration,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self { max_size: ByteSize::from_gib(16), ids: Duration::from_hours(24) }
    }
}

/// The MQTT endpoint (3.1.1 and 5, QoS 0 to 2).
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EndpointConfig {
    /// Address to listen on; port 0 picks a free one.
    #[schemars(extend("format" = "socket-address"))]
    pub listen: SocketAddr,
    /// Allows listening beyond loopback with neither `users` nor `tls.client_ca`. Anybody who reaches the port may then
    /// send.
    pub allow_insecure: bool,
    /// Certificate and key; devices then connect with TLS only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTlsConfig>,
    /// Who may connect; empty means anybody who reaches the port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<UserConfig>,
    /// Largest MQTT packet taken.
    pub max_packet_size: ByteSize,
    /// Most QoS 1 and 2 messages a device may have in flight on one connection (MQTT 5 receive maximum; for 3.1.1 reading
    /// stops there).
    #[schemars(range(min = 1))]
    pub receive_maximum: u16,
    /// Most connections at a time.
    pub max_connections: u32,
    /// Time a client has for the TLS handshake and its CONNECT.
    pub connect_timeout: Duration,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 1883)),
            allow_insecure: false,
            tls: None,
            users: Vec::new(),
            max_packet_size: ByteSize::from_mib(1),
            receive_maximum: 1_000,
            max_connections: 10_000,
            connect_timeout: Duration::from_secs(10),
        }
    }
}

/// TLS of the endpoint.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerTlsConfig {
    /// PEM file with the certificate chain.
    pub cert: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the authorities that sign client certificates; when set, a client certificate is required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
}

/// Somebody who may connect to the endpoint.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserConfig {
    /// User name.
    pub name: String,
    /// Argon2 hash of the password, as `millstream hash-password` prints it.
    pub password_hash: Secret,
    /// Topic filters the user may publish to.
    #[serde(default = "everything")]
    pub publish: Vec<String>,
}

fn everything() -> Vec<String> {
    vec!["#".to_owned()]
}

/// An outside MQTT broker.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BrokerConfig {
    /// `mqtt://HOST:PORT` or `mqtts://HOST:PORT`.
    #[serde(serialize_with = "without_credentials")]
    pub url: String,
    /// What to subscribe to; `$share/GROUP/FILTER` shares the messages with other replicas.
    #[serde(default = "BrokerConfig::default_topics")]
    pub topics: Vec<Subscription>,
    /// MQTT version to speak.
    #[serde(default)]
    pub version: Protocol,
    /// Fixed client id; the broker keeps the session under it. Each replica needs one of its own.
    #[serde(default = "BrokerConfig::default_client_id")]
    pub client_id: String,
    /// How long the broker keeps the session while Millstream is away.
    #[serde(default = "BrokerConfig::default_session_expiry")]
    pub session_expiry: Duration,
    /// Most unacknowledged messages the broker may send (MQTT 5 receive maximum).
    #[serde(default = "BrokerConfig::default_receive_maximum")]
    pub receive_maximum: u16,
    /// Largest MQTT packet taken. With MQTT 5 the broker itself discards what is larger, without a word to anybody; with
    /// 3.1.1 it ends the connection until this is raised.
    #[serde(default = "BrokerConfig::default_max_packet_size")]
    pub max_packet_size: ByteSize,
    /// User name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// Allows a connection without user name and without client certificate.
    #[serde(default)]
    pub allow_anonymous: bool,
    /// TLS of an `mqtts://` connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTlsConfig>,
    /// Longest silence before a ping.
    #[serde(default = "BrokerConfig::default_keep_alive")]
    pub keep_alive: Duration,
    /// Time a connection attempt may take.
    #[serde(default = "BrokerConfig::default_connect_timeout")]
    pub connect_timeout: Duration,
    /// First pause before connecting again; doubles up to `reconnect_max`.
    #[serde(default = "BrokerConfig::default_reconnect_min")]
    pub reconnect_min: Duration,
    /// Longest pause before connecting again.
    #[serde(default = "BrokerConfig::default_reconnect_max")]
    pub reconnect_max: Duration,
}

/// Credentials do not belong in the URL, and the check refuses them; whoever wrote them there all the same does not see
/// them printed.
fn without_credentials<S: serde::Serializer>(url: &str, serializer: S) -> Result<S::Ok, S::Error> {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => {
            serializer.serialize_str(&format!("{}***{}", &url[..scheme + 3], &url[at..]))
        }
        _ => serializer.serialize_str(url),
    }
}

impl BrokerConfig {
    fn default_topics() -> Vec<Subscription> {
        vec![Subscription { filter: "#".to_owned(), qos: 1 }]
    }
    fn default_client_id() -> String {
        "millstream-ingestion".to_owned()
    }
    fn default_session_expiry() -> Duration {
        Duration::from_secs(7 * 24 * 3_600)
    }
    fn default_receive_maximum() -> u16 {
        1_000
    }
    fn default_max_packet_size() -> ByteSize {
        ByteSize::from_mib(6)
    }
    fn default_keep_alive() -> Duration {
        Duration::from_secs(60)
    }
    fn default_connect_timeout() -> Duration {
        Duration::from_secs(10)
    }
    fn default_reconnect_min() -> Duration {
        Duration::from_secs(1)
    }
    fn default_reconnect_max() -> Duration {
        Duration::from_secs(120)
    }
}

/// TLS towards the broker.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTlsConfig {
    /// PEM file with the authorities to trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file with the client certificate chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// PEM file with the client certificate's private key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

//! The `enrichment` section of the configuration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::config::{ByteSize, Duration, Secret};
use std::path::PathBuf;

/// Adds what the device registry knows about a device to its messages.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EnrichmentConfig {
    /// What becomes of a message whose device the registry does not know.
    pub unknown_device: UnknownDevicePolicy,
    /// Bounds of the parking lot, for `unknown_device: park`.
    pub park: ParkConfig,
    /// Where the device registry is.
    pub source: SourceConfig,
    /// A Redis between the in-memory cache and the registry, shared by all replicas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisConfig>,
    /// The in-memory cache in front of the registry.
    pub cache: CacheConfig,
    /// Where the look-up key stands, tried in order: `attribute:<name>` or `enrichment:<name>`.
    pub keys: Vec<String>,
    /// Under which names the device's fields are added.
    pub fields: FieldNames,
    /// Most messages taken from the bus and not yet published.
    #[schemars(range(min = 1))]
    pub max_in_flight: u32,
    /// Most bytes taken from the bus and not yet published.
    pub max_in_flight_bytes: ByteSize,
    /// Deliveries before a message that keeps failing goes to the dead letters.
    pub max_attempts: u32,
    /// Longest time one look-up may take.
    pub lookup_timeout: Duration,
}

impl Default for EnrichmentConfig {
    fn default() -> Self {
        Self {
            unknown_device: UnknownDevicePolicy::default(),
            park: ParkConfig::default(),
            source: SourceConfig::default(),
            redis: None,
            cache: CacheConfig::default(),
            keys: ["enrichment:DeviceID", "attribute:device_id", "attribute:deviceID", "attribute:uid"]
                .map(str::to_owned)
                .to_vec(),
            fields: FieldNames::default(),
            max_in_flight: 10_000,
            max_in_flight_bytes: ByteSize::from_mib(16),
            max_attempts: 5,
            lookup_timeout: Duration::from_secs(5),
        }
    }
}

/// What becomes of a message whose device is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UnknownDevicePolicy {
    /// It passes with the attribute `enrichment_status: unknown-device`.
    #[default]
    Pass,
    /// It goes to the dead letters.
    DeadLetter,
    /// It is kept durably and released, enriched, when the device appears in the registry.
    Park,
}

/// Bounds of the parking lot. What does not fit, or waited too long, passes with the marker.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ParkConfig {
    /// Most messages parked.
    pub max_messages: u64,
    /// Longest time a message is parked.
    pub max_age: Duration,
}

impl Default for ParkConfig {
    fn default() -> Self {
        Self { max_messages: 100_000, max_age: Duration::from_secs(7 * 24 * 3_600) }
    }
}

/// Where the device registry is.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// Which registry.
    pub kind: SourceKind,
    /// `firestore`: the collection, a document per device with the device's id as its id; `sites/a/devices` is one
    /// below a document.
    pub collection: String,
    /// `firestore`: the database.
    pub database: String,
    /// `firestore`: listens to changes, so that a changed device is looked up again within seconds and not at
    /// `cache.max_age` or `redis.ttl`. Each replica then reads every document that changes, and pays for it: leave it
    /// off where programs write to the documents all the time.
    pub listen: bool,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            kind: SourceKind::default(),
            collection: "devices".to_owned(),
            database: "(default)".to_owned(),
            listen: false,
        }
    }
}

/// Which registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// `registry.db` in the data folder. It tells its changes by itself.
    #[default]
    Embedded,
    /// A collection of Google's Firestore.
    Firestore,
}

/// A Redis between the in-memory cache and the registry. While it is down, look-ups go past it.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://HOST:PORT[/DATABASE]`, or `rediss://` for TLS.
    #[serde(serialize_with = "without_credentials")]
    pub url: String,
    /// User name; without one the password is that of the default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// PEM file with the authorities to trust for `rediss://`, in place of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Begins every key. Installations that share a Redis need one each.
    #[serde(default = "RedisConfig::default_namespace")]
    pub namespace: String,
    /// Longest time a device's data stays there.
    #[serde(default = "RedisConfig::default_ttl")]
    pub ttl: Duration,
    /// Longest time it is remembered there that a device is unknown.
    #[serde(default = "RedisConfig::default_negative_ttl")]
    pub negative_ttl: Duration,
    /// Longest time a call may take before the look-up goes past it.
    #[serde(default = "RedisConfig::default_timeout")]
    pub timeout: Duration,
}

impl RedisConfig {
    fn default_namespace() -> String {
        "millstream".to_owned()
    }
    fn default_ttl() -> Duration {
        Duration::from_hours(2)
    }
    fn default_negative_ttl() -> Duration {
        Duration::from_secs(10)
    }
    fn default_timeout() -> Duration {
        Duration::from_millis(300)
    }
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

/// The in-memory cache.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Most devices kept; the least recently used leaves. 0: no cache in memory, each message asks the next layer.
    pub size: u32,
    /// Longest time a device's data is used without asking the registry again.
    pub max_age: Duration,
    /// Longest time a device is taken for unknown without asking again.
    pub negative_age: Duration,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { size: 100_000, max_age: Duration::from_secs(300), negative_age: Duration::from_secs(10) }
    }
}

/// Under which names a device's fields are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FieldNames {
    /// As in the registry: `client_id`, `location_id`, `category` and the further columns.
    #[default]
    Registry,
    /// `name`, `location` and `serviceTag` for these three, for readers that know those names.
    NameLocationServiceTag,
}

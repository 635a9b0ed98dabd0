//! The `enrichment` section of the configuration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::config::{ByteSize, Duration};

/// Adds what the device registry knows about a device to its messages.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EnrichmentConfig {
    /// What becomes of a message whose device the registry does not know.
    pub unknown_device: UnknownDevicePolicy,
    /// Bounds of the parking lot, for `unknown_device: park`.
    pub park: ParkConfig,
    /// The in-memory cache in front of the registry.
    pub cache: CacheConfig,
    /// Where the look-up key stands, tried in order: `attribute:<name>` or `enrichment:<name>`.
    pub keys: Vec<String>,
    /// Under which names the device's fields are added.
    pub fields: FieldNames,
    /// Most messages taken from the bus and not yet published.
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

/// The in-memory cache.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheConfig {
    /// Most devices kept; the least recently used leaves.
    #[schemars(range(min = 1))]
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

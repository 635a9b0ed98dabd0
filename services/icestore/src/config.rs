//! The `icestore` section of the configuration: the archive.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::config::{ByteSize, Duration};

/// The archive: compressed objects of JSON lines, by day and location.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveConfig {
    /// Form of a line.
    pub line: LineForm,
    /// How objects are compressed.
    pub compression: CompressionKind,
    /// Where the location of a message stands, tried in order; empty means objects by day alone.
    pub location: Vec<LocationSource>,
    /// When a group of lines with one key becomes an object.
    pub batch: ArchiveBatchConfig,
    /// Most bytes of messages held in memory over all groups; beyond it the oldest group becomes an object.
    pub memory: ByteSize,
    /// Most messages taken from the bus and not yet archived.
    pub max_in_flight: u32,
    /// Deliveries before a message that keeps failing goes to the dead letters.
    pub max_attempts: u32,
}

impl Default for ArchiveConfig {
    fn default() -> Self {
        Self {
            line: LineForm::default(),
            compression: CompressionKind::default(),
            location: vec![
                LocationSource::Enrichment("location_id".to_owned()),
                LocationSource::Enrichment("location".to_owned()),
                LocationSource::Attribute("location".to_owned()),
            ],
            batch: ArchiveBatchConfig::default(),
            memory: ByteSize::from_mib(48),
            max_in_flight: 200_000,
            max_attempts: 5,
        }
    }
}

/// When a group becomes an object.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveBatchConfig {
    /// At this many lines.
    #[schemars(range(min = 1))]
    pub count: u32,
    /// At this many bytes, before compression.
    pub bytes: ByteSize,
    /// When its first line is this old.
    pub age: Duration,
}

impl Default for ArchiveBatchConfig {
    fn default() -> Self {
        Self { count: 10_000, bytes: ByteSize::from_mib(8), age: Duration::from_secs(60) }
    }
}

/// Form of an archive line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LineForm {
    /// `{"id","key","receivedAt","attributes","enrichment","payload"}`; a payload that is not one JSON document stands
    /// as `payload_base64`.
    #[default]
    Json,
    /// `{"id","batchKey","originalPubSubPayload","archivedAt"}` with the payload in base64.
    Base64,
}

/// How objects are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CompressionKind {
    /// gzip, level 6: every tool reads it.
    #[default]
    Gzip,
    /// Zstandard, level 3: smaller, at half the CPU.
    Zstd,
}

/// Where a location may stand.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LocationSource {
    /// A field of the enrichment data.
    Enrichment(String),
    /// A message attribute.
    Attribute(String),
    /// A JSON Pointer into the payload.
    Payload(String),
}

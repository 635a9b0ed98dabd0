//! The `icestore` section of the configuration: the archive.

use icestore::{Compression, LineForm};
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
    pub compression: Compression,
    /// Where the location of a message stands, tried in order: `enrichment:<name>`, `attribute:<name>`, or a JSON
    /// Pointer into the payload. Empty means objects by day alone.
    pub location: Vec<String>,
    /// When a group of lines with one key becomes an object.
    pub batch: ArchiveBatchConfig,
    /// Most bytes of messages held in memory over all groups; beyond it the oldest group becomes an object.
    pub memory: ByteSize,
    /// Most messages taken from the bus and not yet archived.
    pub max_in_flight: u32,
    /// Deliveries before a message that keeps failing goes to the dead letters.
    pub max_attempts: u32,
}

impl ArchiveConfig {
    /// How far the bus is read ahead of the oldest message without a verdict, in bytes: room for the open groups and
    /// for the objects that are being made meanwhile.
    #[must_use]
    pub fn window_bytes(&self) -> usize {
        self.memory.as_usize() + 2 * self.batch.bytes.as_usize()
    }
}

impl Default for ArchiveConfig {
    fn default() -> Self {
        Self {
            line: LineForm::default(),
            compression: Compression::default(),
            location: icestore::default_locations(),
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

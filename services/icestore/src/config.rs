//! The `icestore` section of the configuration: the archive.

use icestore::{Compression, LineForm};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::config::{ByteSize, Duration};

/// The archive: compressed objects of JSON lines, by day and location.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArchiveConfig {
    /// Where objects stand.
    pub kind: ArchiveKind,
    /// For `kind: cloud-storage`.
    pub google: CloudStorageConfig,
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
    #[schemars(range(min = 1))]
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
            kind: ArchiveKind::default(),
            google: CloudStorageConfig::default(),
            line: LineForm::default(),
            compression: Compression::default(),
            location: icestore::default_locations(),
            batch: ArchiveBatchConfig::default(),
            memory: ByteSize::from_mib(32),
            max_in_flight: 200_000,
            max_attempts: 5,
        }
    }
}

/// Where objects stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ArchiveKind {
    /// `archive/` of the data folder.
    #[default]
    Folder,
    /// A bucket of Cloud Storage.
    CloudStorage,
}

/// Cloud Storage.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CloudStorageConfig {
    /// Bucket.
    pub bucket: String,
    /// Folder below which all objects lie.
    pub prefix: String,
    /// Creates a bucket that is not there. It needs more rights than writing objects.
    pub create_bucket: bool,
    /// Region in which the bucket is created; the service's default without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// How long one upload may take.
    pub timeout: Duration,
    /// Objects stored longer ago than this are not looked into for messages that come again. Longer than the
    /// subscription keeps what is not acknowledged.
    pub recall: Duration,
}

impl Default for CloudStorageConfig {
    fn default() -> Self {
        Self {
            bucket: String::new(),
            prefix: String::new(),
            create_bucket: false,
            location: None,
            timeout: Duration::from_mins(1),
            recall: Duration::from_hours(7 * 24),
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

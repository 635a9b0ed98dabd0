//! The `bigquery` section of the configuration: the warehouse.

use bqstore::ColumnConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::config::{ByteSize, Duration};

/// The warehouse: one row per message.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WarehouseConfig {
    /// Table name.
    pub table: String,
    /// The columns and where each value stands. The first one holds the message id. A column added here is added to
    /// the existing table.
    pub columns: Vec<ColumnConfig>,
    /// Rows written together.
    pub batch: BatchConfig,
    /// Most messages taken from the bus and not yet stored.
    pub max_in_flight: u32,
    /// Most bytes taken from the bus and not yet stored.
    pub max_in_flight_bytes: ByteSize,
    /// Deliveries before a message that keeps failing goes to the dead letters.
    pub max_attempts: u32,
}

impl Default for WarehouseConfig {
    fn default() -> Self {
        Self {
            table: "messages".to_owned(),
            columns: bqstore::default_columns(),
            batch: BatchConfig::default(),
            max_in_flight: 10_000,
            max_in_flight_bytes: ByteSize::from_mib(16),
            max_attempts: 5,
        }
    }
}

/// When a batch of rows is written.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BatchConfig {
    /// At this many rows.
    #[schemars(range(min = 1))]
    pub count: u32,
    /// At this many bytes.
    pub bytes: ByteSize,
    /// When its first row is this old.
    pub age: Duration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { count: 1_000, bytes: ByteSize::from_mib(4), age: Duration::from_millis(100) }
    }
}

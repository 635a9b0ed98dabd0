//! The `bigquery` section of the configuration: the warehouse.

use bqstore::ColumnConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::config::{ByteSize, Duration};

/// The warehouse: one row per message.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WarehouseConfig {
    /// Where the table stands.
    pub kind: WarehouseKind,
    /// For `kind: bigquery`.
    pub google: BigQueryConfig,
    /// Table name.
    pub table: String,
    /// The columns and where each value stands. The first one holds the message id. A column added here is added to
    /// the existing table.
    pub columns: Vec<ColumnConfig>,
    /// Rows written together.
    pub batch: BatchConfig,
    /// Most messages taken from the bus and not yet stored.
    #[schemars(range(min = 1))]
    pub max_in_flight: u32,
    /// Most bytes taken from the bus and not yet stored.
    pub max_in_flight_bytes: ByteSize,
    /// Deliveries before a message that keeps failing goes to the dead letters.
    pub max_attempts: u32,
}

impl Default for WarehouseConfig {
    fn default() -> Self {
        Self {
            kind: WarehouseKind::default(),
            google: BigQueryConfig::default(),
            table: "messages".to_owned(),
            columns: bqstore::default_columns(),
            batch: BatchConfig::default(),
            max_in_flight: 10_000,
            max_in_flight_bytes: ByteSize::from_mib(16),
            max_attempts: 5,
        }
    }
}

/// Where the table stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WarehouseKind {
    /// `warehouse.db` of the data folder.
    #[default]
    Embedded,
    /// A dataset of BigQuery.
    Bigquery,
}

/// BigQuery.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BigQueryConfig {
    /// Dataset, which must exist.
    pub dataset: String,
    /// Location of the dataset (`EU`, `europe-west1`); BigQuery finds it by itself without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// How rows are sent, and so what a redelivery to another replica makes of them.
    pub mode: WriteModeConfig,
    /// Creates a missing table, and in mode `append` the view that shows each id once.
    pub create: bool,
    /// Columns by which a table that is created is clustered, at most four; the device id without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_by: Option<Vec<String>>,
    /// Daily partitions of a table that is created are removed when they are older than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiration: Option<Duration>,
    /// Mode `upsert`: how old answers of queries may be, so that they need not merge what has just come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_staleness: Option<Duration>,
    /// What becomes of values for which the table has no fitting column.
    pub drift: DriftConfig,
    /// How long any call may take.
    pub timeout: Duration,
    /// At the start the ids of rows received within this time are read, so that what is delivered again after a
    /// restart makes no second row. `0s` reads none.
    pub recall: Duration,
}

impl Default for BigQueryConfig {
    fn default() -> Self {
        Self {
            dataset: "millstream".to_owned(),
            location: None,
            mode: WriteModeConfig::default(),
            create: true,
            cluster_by: None,
            expiration: None,
            max_staleness: None,
            drift: DriftConfig::default(),
            timeout: Duration::from_secs(30),
            recall: Duration::from_hours(1),
        }
    }
}

/// How rows are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WriteModeConfig {
    /// Storage Write API, default stream: at least once. The view `<table>_distinct` shows each id once.
    #[default]
    Append,
    /// Storage Write API with upserts by message id: one row per id, whoever sends it; BigQuery bills the merging.
    Upsert,
    /// `tabledata.insertAll` with the message id as insertId: repetitions within about a minute are left out.
    InsertAll,
}

/// What becomes of values for which the table has no fitting column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum DriftConfig {
    /// A missing column is added; a value that its column does not take goes to the JSON column `_extra`.
    #[default]
    AddColumns,
    /// Every value without a place goes to `_extra`.
    ExtraColumn,
    /// The table stays as it is; a value without a place is left out.
    Ignore,
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

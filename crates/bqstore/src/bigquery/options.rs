//! Settings of a BigQuery table that takes rows.

use super::Error;
use crate::{Column, ColumnType, Columns, MESSAGE_ID, Source, identifier_problem};
use google_cloud_auth::credentials::Credentials;
use std::time::Duration;

/// Name of the JSON column for values that have no column of their own.
pub const EXTRA_COLUMN: &str = "_extra";
/// BigQuery clusters by no more columns.
const MAX_CLUSTERING: usize = 4;
/// The service refuses requests of 10 MB; what gRPC adds needs room.
const MAX_REQUEST: usize = 9_000_000;
/// The emulator refuses messages of 4 MiB.
const MAX_EMULATOR_REQUEST: usize = 3_500_000;

/// How rows are sent, and so what redelivery makes of them.
///
/// In every mode a message that is redelivered to the same process, or to one that recalled its id when it started,
/// becomes no second row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteMode {
    /// Storage Write API, default stream: at least once. A message that is redelivered to another replica, or whose
    /// append was not answered, may have two rows; the view `<table>_distinct` shows each id once.
    #[default]
    Append,
    /// Storage Write API with change data capture: the message id is the table's primary key, and a row that comes
    /// again replaces itself, whoever sends it. BigQuery merges in the background, which is billed as analysis, and
    /// merges what is not merged yet when a query reads the table, unless `max_staleness` allows older answers.
    Upsert,
    /// `tabledata.insertAll` with the message id as insertId, by which BigQuery leaves out repetitions for about a
    /// minute, best effort. For places where the Storage Write API cannot be reached; costs more per byte.
    InsertAll,
}

/// By which column the table is partitioned by day when it is created.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Partition {
    /// The column that holds the time of receipt, where there is one.
    #[default]
    Received,
    /// This column of type timestamp.
    Column(String),
    /// Not at all.
    None,
}

/// What becomes of a value for which the table has no fitting column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drift {
    /// A missing column is added. A value that its column's type does not take goes to the JSON column
    /// [`EXTRA_COLUMN`], which is added when it may be needed.
    #[default]
    AddColumns,
    /// Columns are not added, but for [`EXTRA_COLUMN`], which takes every value that has no place.
    ExtraColumn,
    /// The table stays as it is; a value that has no place is left out.
    Ignore,
}

/// Addresses in place of Google's, of an emulator or a double.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// URL of the REST API, `http://127.0.0.1:9050`.
    pub rest: String,
    /// URL of the Storage Write API (gRPC), `http://127.0.0.1:9060`.
    pub grpc: String,
}

/// Settings of [`BigQueryInserter`](super::BigQueryInserter) and [`BigQueryReader`](super::BigQueryReader).
#[derive(Clone, Debug)]
pub struct BigQueryOptions {
    /// Project that owns the dataset and pays for queries.
    pub project: String,
    /// Dataset, which must exist.
    pub dataset: String,
    /// Table.
    pub table: String,
    /// Location of the dataset (`EU`, `europe-west1`), sent with queries; BigQuery finds it by itself when `None`.
    pub location: Option<String>,
    /// Other addresses than Google's.
    pub endpoints: Option<Endpoints>,
    /// Who we are.
    pub credentials: Credentials,
    /// How rows are sent.
    pub mode: WriteMode,
    /// Whether a missing table and a missing view are created at the start.
    pub create: bool,
    /// Partitioning of a table that is created.
    pub partition: Partition,
    /// Columns by which a table that is created is clustered, at most four. `None`: by the device id's column where
    /// there is one; in mode [`WriteMode::Upsert`] by the message id, which is what merging looks for.
    pub cluster_by: Option<Vec<String>>,
    /// Partitions of a table that is created are removed when they are older than this.
    pub expiration: Option<Duration>,
    /// [`WriteMode::Upsert`]: how old the answers of queries may be, so that they need not merge what has just come.
    pub max_staleness: Option<Duration>,
    /// What becomes of values without a fitting column.
    pub drift: Drift,
    /// How long any call may take. An append that is not answered by then is given up with its connection.
    pub timeout: Duration,
    /// Longest request in bytes. `None`: 9 MB, below the service's limit; 3.5 MB with other endpoints, whose gRPC
    /// servers commonly take 4 MiB.
    pub max_request_bytes: Option<usize>,
    /// [`WriteMode::InsertAll`]: most rows in a request; Google advises 500.
    pub max_request_rows: usize,
    /// Inserts under way at the same time, each with a connection of its own; further ones wait.
    pub max_in_flight: usize,
    /// Ids of stored rows that this process remembers, about 80 bytes each.
    pub remember: usize,
    /// At the start the ids of rows received within this time are read from the table, so that what is redelivered
    /// after a restart makes no second row. Zero reads none. The query reads the ids of one or two daily partitions.
    pub recall: Duration,
}

impl BigQueryOptions {
    /// Defaults for everything but names and credentials.
    #[must_use]
    pub fn new(
        project: impl Into<String>,
        dataset: impl Into<String>,
        table: impl Into<String>,
        credentials: Credentials,
    ) -> Self {
        Self {
            project: project.into(),
            dataset: dataset.into(),
            table: table.into(),
            location: None,
            endpoints: None,
            credentials,
            mode: WriteMode::default(),
            create: true,
            partition: Partition::default(),
            cluster_by: None,
            expiration: None,
            max_staleness: None,
            drift: Drift::default(),
            timeout: Duration::from_secs(30),
            max_request_bytes: None,
            max_request_rows: 500,
            max_in_flight: 8,
            remember: 200_000,
            recall: Duration::from_secs(3_600),
        }
    }

    pub(super) fn request_bytes(&self) -> usize {
        let usual = if self.endpoints.is_some() { MAX_EMULATOR_REQUEST } else { MAX_REQUEST };
        self.max_request_bytes.unwrap_or(usual)
    }

    /// `project.dataset.table`, for people.
    pub(super) fn table_name(&self) -> String {
        format!("{}.{}.{}", self.project, self.dataset, self.table)
    }

    /// The names, before they become parts of paths and of SQL.
    pub(super) fn check_names(&self) -> Result<(), Error> {
        let is_project = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | ':' | '_');
        if self.project.is_empty() || !self.project.chars().all(is_project) {
            return Err(Error::Settings(format!("`{}` is no project id", self.project)));
        }
        for (what, name) in [("dataset", &self.dataset), ("table", &self.table)] {
            let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if name.is_empty() || !name.chars().all(word) {
                let problem = format!("`{name}` cannot name a {what}: use letters, digits and underscores");
                return Err(Error::Settings(problem));
            }
        }
        Ok(())
    }

    /// Everything that can be wrong before a connection is opened.
    pub(super) fn check(&self, columns: &Columns) -> Result<(), Error> {
        self.check_names()?;
        if let Some(problem) = columns.iter().find_map(|column| identifier_problem(&column.name)) {
            return Err(Error::Settings(problem));
        }
        if columns.iter().any(|column| column.name.eq_ignore_ascii_case(EXTRA_COLUMN)) {
            return Err(Error::Settings(format!(
                "the column name `{EXTRA_COLUMN}` is kept for values without a column: choose another name"
            )));
        }
        if self.timeout.is_zero() || self.max_in_flight == 0 || self.max_request_rows == 0 {
            return Err(Error::Settings(
                "timeout, max_in_flight and max_request_rows must not be zero".to_owned(),
            ));
        }
        if !(10_000..=MAX_REQUEST).contains(&self.request_bytes()) {
            return Err(Error::Settings(format!(
                "max_request_bytes must be between 10000 and {MAX_REQUEST}"
            )));
        }
        self.partition_column(columns)?;
        self.clustering(columns).map(drop)
    }

    /// Name of the column by which the table is partitioned.
    pub(super) fn partition_column(&self, columns: &Columns) -> Result<Option<String>, Error> {
        let is_time = |column: &Column| column.kind == ColumnType::Timestamp;
        match &self.partition {
            Partition::None => Ok(None),
            Partition::Received => Ok(received_column(columns).map(|column| column.name.clone())),
            Partition::Column(name)
                if columns.iter().any(|column| column.name == *name && is_time(column)) =>
            {
                Ok(Some(name.clone()))
            }
            Partition::Column(name) => Err(Error::Settings(format!(
                "the table cannot be partitioned by `{name}`, which is no column of type timestamp"
            ))),
        }
    }

    /// Names of the columns by which the table is clustered.
    pub(super) fn clustering(&self, columns: &Columns) -> Result<Vec<String>, Error> {
        let Some(names) = &self.cluster_by else {
            let device = columns.iter().find(|column| column.sources == [Source::DeviceId]);
            let by_id = self.mode == WriteMode::Upsert;
            let name =
                if by_id { Some(MESSAGE_ID.to_owned()) } else { device.map(|column| column.name.clone()) };
            return Ok(name.into_iter().collect());
        };
        if names.len() > MAX_CLUSTERING {
            return Err(Error::Settings(format!("a table is clustered by at most {MAX_CLUSTERING} columns")));
        }
        match names.iter().find(|name| !columns.iter().any(|column| column.name == **name)) {
            Some(name) => {
                Err(Error::Settings(format!("the table cannot be clustered by `{name}`, which is no column")))
            }
            None => Ok(names.clone()),
        }
    }
}

/// The column of the time of receipt.
pub(super) fn received_column(columns: &Columns) -> Option<&Column> {
    columns
        .iter()
        .find(|column| column.sources == [Source::ReceivedAt] && column.kind == ColumnType::Timestamp)
}

//! The table: found or created, given the columns it lacks, and its view of each id once.

use super::rest::{Failure, Rest, document};
use super::schema::{self, Field, TablePlan, fit};
use super::{BigQueryOptions, Error, WriteMode};
use crate::{ColumnType, Columns, MESSAGE_ID, Source};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use std::time::Duration;

const READ: &str = "read the table's schema";
const CREATE: &str = "create the table";
const CHANGE: &str = "add columns to the table";
const CREATE_VIEW: &str = "create the view of distinct rows";
/// Rounds of looking and changing, when others change the table at the same time.
const ROUNDS: usize = 5;

/// Ending of the view's name.
pub(super) const VIEW_ENDING: &str = "_distinct";

/// Makes one table ready.
#[derive(Debug)]
pub(super) struct Admin {
    rest: Rest,
    options: BigQueryOptions,
    columns: Columns,
}

/// A table as the REST API describes it. Its columns stay as they came, so that a change sends back what we do not
/// know of them.
#[derive(Debug, Default, Deserialize)]
struct Table {
    #[serde(default)]
    schema: TableSchema,
    #[serde(rename = "tableConstraints", default)]
    constraints: Json,
    #[serde(rename = "type", default)]
    kind: String,
}

#[derive(Debug, Default, Deserialize)]
struct TableSchema {
    #[serde(default)]
    fields: Vec<Json>,
}

impl Admin {
    pub(super) fn new(options: &BigQueryOptions, columns: &Columns, rest: Rest) -> Self {
        Self { rest, options: options.clone(), columns: columns.clone() }
    }

    /// Makes the table ready and says where values go. With `may_create` a missing table is created.
    pub(super) async fn prepare(&self, may_create: bool) -> Result<TablePlan, Error> {
        for _ in 0..ROUNDS {
            let Some(table) = self.table().await? else {
                if !may_create {
                    return Err(self.missing("create it, or let Millstream do so (create)"));
                }
                self.create().await?;
                continue;
            };
            self.check(&table)?;
            let fields = table.schema.fields.iter().map(Field::deserialize);
            let unreadable = |error| Error::Unavailable { call: READ, message: format!("{error}") };
            let fields: Vec<Field> = fields.collect::<Result<_, _>>().map_err(unreadable)?;
            let fitting = fit(&self.columns, &fields, self.options.drift, &self.options.table_name())?;
            if fitting.missing.is_empty() {
                return Ok(fitting.plan);
            }
            self.add(table.schema.fields, fitting.missing).await?;
        }
        Err(Error::Changing(format!("columns added to {} do not show", self.options.table_name())))
    }

    /// Whether the table is there.
    pub(super) async fn exists(&self) -> Result<bool, Error> {
        Ok(self.table().await?.is_some())
    }

    /// Creates the view that shows each id once, unless it is there. Rows stay right without it.
    pub(super) async fn create_view(&self) -> Result<(), Error> {
        let name = format!("{}{VIEW_ENDING}", self.options.table);
        let view = json!({
            "tableReference": self.reference(&name),
            "view": {"query": self.view_query(), "useLegacySql": false},
            "description": "Each message id once, the row that was received first",
        });
        match self.rest.send::<Json>(Method::POST, &self.tables(), document(&view)).await {
            Ok(_) => Ok(()),
            Err(failure) if failure.is(StatusCode::CONFLICT) => Ok(()),
            Err(failure) => Err(failure.into_error(CREATE_VIEW)),
        }
    }

    fn view_query(&self) -> String {
        let order = super::options::received_column(&self.columns).map_or(MESSAGE_ID, |column| &column.name);
        let payload =
            self.columns.iter().find(|c| c.sources == [Source::Payload] && c.kind == ColumnType::Bytes);
        let name = |column: &crate::Column| format!("{}_text", column.name);
        let is_free = |name: &str| !self.columns.iter().any(|column| column.name.eq_ignore_ascii_case(name));
        let text = payload.filter(|column| is_free(&name(column))).map_or_else(String::new, |column| {
            format!(", SAFE_CONVERT_BYTES_TO_STRING(`{}`) AS `{}`", column.name, name(column))
        });
        format!(
            "SELECT *{text} FROM `{}` WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY `{MESSAGE_ID}` ORDER BY \
             `{order}`) = 1",
            self.options.table_name()
        )
    }

    async fn table(&self) -> Result<Option<Table>, Error> {
        match self.rest.get(&self.path()).await {
            Ok(table) => Ok(Some(table)),
            Err(failure) if failure.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(failure) => Err(settle(failure, READ)),
        }
    }

    async fn create(&self) -> Result<(), Error> {
        let body = document(&self.new_table()?);
        match self.rest.send::<Json>(Method::POST, &self.tables(), body).await {
            Ok(_) => {
                tracing::info!(table = self.options.table_name(), "table created in BigQuery");
                Ok(())
            }
            // Another replica was faster.
            Err(failure) if failure.is(StatusCode::CONFLICT) => Ok(()),
            Err(failure) if failure.is(StatusCode::NOT_FOUND) => Err(Error::Missing {
                what: format!("dataset {}.{}", self.options.project, self.options.dataset),
                remedy: format!(
                    "create it (`bq mk --dataset {}:{}`), or set another dataset or project",
                    self.options.project, self.options.dataset
                ),
            }),
            Err(failure) => Err(settle(failure, CREATE)),
        }
    }

    fn new_table(&self) -> Result<Json, Error> {
        let options = &self.options;
        let mut table = json!({
            "tableReference": self.reference(&options.table),
            "schema": {"fields": self.new_fields()?},
            "description": "Messages of devices, stored by Millstream",
        });
        if let Some(column) = options.partition_column(&self.columns)? {
            table["timePartitioning"] = json!({"type": "DAY", "field": column});
            if let Some(expiration) = options.expiration {
                table["timePartitioning"]["expirationMs"] = json!(expiration.as_millis().to_string());
            }
        }
        let clustering = options.clustering(&self.columns)?;
        if !clustering.is_empty() {
            table["clustering"] = json!({"fields": clustering});
        }
        if options.mode == WriteMode::Upsert {
            table["tableConstraints"] = json!({"primaryKey": {"columns": [MESSAGE_ID]}});
            if let Some(staleness) = options.max_staleness {
                table["maxStaleness"] = json!(interval(staleness));
            }
        }
        Ok(table)
    }

    /// The configured columns, and what else values of theirs need.
    fn new_fields(&self) -> Result<Vec<Json>, Error> {
        let mut fields = schema::definitions(&self.columns);
        let unreadable = |error| Error::Settings(format!("{error}"));
        let made: Vec<Field> =
            fields.iter().map(Field::deserialize).collect::<Result<_, _>>().map_err(unreadable)?;
        fields.extend(fit(&self.columns, &made, self.options.drift, &self.options.table_name())?.missing);
        Ok(fields)
    }

    async fn add(&self, mut fields: Vec<Json>, missing: Vec<Json>) -> Result<(), Error> {
        let names: Vec<_> = missing.iter().filter_map(|field| field["name"].as_str()).collect();
        let names = names.join(", ");
        fields.extend(missing);
        let body = document(&json!({"schema": {"fields": fields}}));
        match self.rest.send::<Json>(Method::PATCH, &self.path(), body).await {
            Ok(_) => {
                tracing::info!(
                    table = self.options.table_name(),
                    columns = names,
                    "columns added in BigQuery"
                );
                Ok(())
            }
            // Another replica added columns meanwhile, which must not be left out again: look once more.
            Err(failure)
                if failure.is(StatusCode::CONFLICT) || failure.is(StatusCode::PRECONDITION_FAILED) =>
            {
                Ok(())
            }
            Err(Failure::Answer { status: StatusCode::BAD_REQUEST, message, .. })
                if message.contains("missing in new schema") =>
            {
                Ok(())
            }
            Err(failure) => Err(settle(failure, CHANGE)),
        }
    }

    fn check(&self, table: &Table) -> Result<(), Error> {
        if !matches!(&*table.kind, "" | "TABLE") {
            return Err(Error::Settings(format!(
                "{} is a {}, which takes no rows: set another table",
                self.options.table_name(),
                table.kind.to_ascii_lowercase()
            )));
        }
        let is_key = table.constraints["primaryKey"]["columns"] == json!([MESSAGE_ID]);
        if self.options.mode == WriteMode::Upsert && !is_key {
            let name = self.options.table_name();
            return Err(Error::Settings(format!(
                "rows of {name} cannot be replaced by their id, because `{MESSAGE_ID}` is not its primary key: run \
                 ALTER TABLE `{name}` ADD PRIMARY KEY ({MESSAGE_ID}) NOT ENFORCED, or set another mode"
            )));
        }
        Ok(())
    }

    pub(super) fn missing(&self, remedy: &str) -> Error {
        Error::Missing { what: format!("table {}", self.options.table_name()), remedy: remedy.to_owned() }
    }

    fn reference(&self, table: &str) -> Json {
        json!({"projectId": self.options.project, "datasetId": self.options.dataset, "tableId": table})
    }

    fn tables(&self) -> String {
        format!("/datasets/{}/tables", self.options.dataset)
    }

    fn path(&self) -> String {
        format!("{}/{}", self.tables(), self.options.table)
    }
}

/// A refusal here is about our settings, never about a message.
fn settle(failure: Failure, call: &'static str) -> Error {
    match failure.into_error(call) {
        Error::Refused { call, message } => Error::Settings(format!("BigQuery refuses to {call}: {message}")),
        error => error,
    }
}

/// BigQuery's text of an interval: years-months days hours:minutes:seconds.
fn interval(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("0-0 0 {}:{}:{}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

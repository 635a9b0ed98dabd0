//! BigQuery in this process: the Storage Write API of the crate `bigquery`'s fake, and beside it the few REST calls
//! that it lacks, over the same tables.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{Method, StatusCode, Uri};
use bigquery::testing::BigQueryFake;
use bigquery::{BigQueryDatasetId, BigQueryFieldType, BigQuerySchemaColumn, BigQuerySchemaColumnsBuilder};
use bigquery::{BigQueryTableId, BigQueryTableRef};
use bqstore::bigquery::{BigQueryOptions, Endpoints};
use messagepipeline::MessageId;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const PROJECT: &str = "fake-project";
pub(crate) const DATASET: &str = "telemetry";
pub(crate) const TABLE: &str = "messages";

/// BigQuery, for one test.
pub(crate) struct Google {
    pub(crate) storage: Arc<BigQueryFake>,
    pub(crate) rest: Arc<Rest>,
    address: String,
    server: tokio::task::JoinHandle<()>,
}

/// What the REST side holds.
pub(crate) struct Rest {
    storage: Arc<BigQueryFake>,
    pub(crate) state: Mutex<Tables>,
}

#[derive(Default)]
pub(crate) struct Tables {
    /// Descriptions of tables and views by name; none while there is no dataset.
    pub(crate) tables: Option<BTreeMap<String, Value>>,
    /// Rows that insertAll stored, as they came.
    pub(crate) inserted: Vec<Value>,
    /// Their insertIds.
    inserted_ids: HashSet<String>,
    /// Calls as `METHOD path`.
    pub(crate) calls: Vec<String>,
    /// Answers in place of the next calls whose `METHOD path` ends like this.
    pub(crate) faults: VecDeque<(&'static str, u16, Value)>,
    /// Refuses rows of insertAll: by what stands in their payload column, with reason and message.
    pub(crate) refuses: Option<(&'static str, &'static str, &'static str)>,
}

/// A row as a reader of the table sees it.
#[derive(Debug, Deserialize)]
pub(crate) struct StoredRow {
    pub(crate) message_id: String,
    pub(crate) payload: Option<Vec<u8>>,
}

#[derive(Debug, Deserialize)]
struct StoredId {
    message_id: String,
}

impl Google {
    /// BigQuery with an empty dataset.
    pub(crate) async fn start() -> Self {
        super::install_tls();
        let storage = Arc::new(BigQueryFake::start().await.expect("a free port"));
        let state = Tables { tables: Some(BTreeMap::new()), ..Tables::default() };
        let rest = Arc::new(Rest { storage: Arc::clone(&storage), state: Mutex::new(state) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let router =
            Router::new().fallback(answer).layer(DefaultBodyLimit::disable()).with_state(Arc::clone(&rest));
        let server = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Self { storage, rest, address, server }
    }

    /// Settings for the table [`TABLE`].
    pub(crate) fn options(&self) -> BigQueryOptions {
        let mut options = BigQueryOptions::new(PROJECT, DATASET, TABLE, super::credentials());
        let grpc = self.storage.db().options().effective_bigquery_storage_api_url().to_string();
        options.endpoints = Some(Endpoints { rest: self.address.clone(), grpc });
        options.timeout = Duration::from_secs(20);
        options
    }

    /// The table as the storage side knows it.
    pub(crate) fn table() -> BigQueryTableRef {
        reference(TABLE)
    }

    /// All rows, in the order in which they were stored.
    pub(crate) fn rows(&self) -> Vec<(MessageId, Vec<u8>)> {
        let rows: Vec<StoredRow> = self.storage.rows(Self::table()).unwrap_or_default();
        rows.into_iter().map(pair).collect()
    }

    /// The rows after all changes were applied by primary key.
    pub(crate) fn merged(&self) -> Vec<(MessageId, Vec<u8>)> {
        let changes = self.storage.changes::<StoredRow>(Self::table()).unwrap_or_default();
        let merged: HashMap<_, _> = changes.into_iter().map(|change| pair(change.row)).collect();
        let mut rows: Vec<_> = merged.into_iter().collect();
        rows.sort();
        rows
    }

    /// Names of the table's columns.
    pub(crate) fn columns(&self) -> Vec<String> {
        let state = self.rest.state.lock();
        let fields = state.tables.as_ref().unwrap()[TABLE]["schema"]["fields"].as_array().unwrap().clone();
        fields.iter().map(|field| field["name"].as_str().unwrap().to_owned()).collect()
    }

    /// How many calls ended like this.
    pub(crate) fn calls(&self, ending: &str) -> usize {
        self.rest.state.lock().calls.iter().filter(|call| call.ends_with(ending)).count()
    }
}

impl Drop for Google {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn pair(row: StoredRow) -> (MessageId, Vec<u8>) {
    (row.message_id.parse().expect("an id"), row.payload.unwrap_or_default())
}

pub(crate) fn reference(table: &str) -> BigQueryTableRef {
    let table = BigQueryTableId::new(table).expect("a name");
    BigQueryDatasetId::new(DATASET).expect("a name").table(table)
}

/// An error document.
pub(crate) fn error(code: u16, reason: &str, message: &str) -> Value {
    json!({"error": {"code": code, "message": message, "errors": [{"reason": reason, "message": message}]}})
}

fn refusal(code: u16, reason: &str, message: &str) -> (u16, Value) {
    (code, error(code, reason, message))
}

async fn answer(
    State(rest): State<Arc<Rest>>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> (StatusCode, String) {
    let path = uri.path().to_owned();
    let call = format!("{method} {path}");
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let fault = {
        let mut state = rest.state.lock();
        state.calls.push(call.clone());
        let at = state.faults.iter().position(|(ending, ..)| call.ends_with(ending));
        at.and_then(|at| state.faults.remove(at))
    };
    let (status, reply) = match fault {
        Some((_, status, reply)) => (status, reply),
        None => rest.serve(&method, &path, body).await,
    };
    (StatusCode::from_u16(status).expect("a status"), reply.to_string())
}

impl Rest {
    async fn serve(&self, method: &Method, path: &str, body: Value) -> (u16, Value) {
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        match *method {
            Method::GET => self.get(&name),
            Method::PATCH => self.patch(&name, body).await,
            Method::POST if path.ends_with("/tables") => self.create(body),
            Method::POST if path.ends_with("/insertAll") => self.insert_all(&body),
            Method::POST if path.ends_with("/queries") => self.query(&body),
            _ => refusal(501, "notImplemented", path),
        }
    }

    fn get(&self, name: &str) -> (u16, Value) {
        match self.state.lock().tables.as_ref().and_then(|tables| tables.get(name)) {
            Some(table) => (200, table.clone()),
            None => refusal(404, "notFound", "Not found: Table"),
        }
    }

    fn create(&self, mut body: Value) -> (u16, Value) {
        let name = body["tableReference"]["tableId"].as_str().unwrap_or_default().to_owned();
        let mut state = self.state.lock();
        let Some(tables) = &mut state.tables else { return refusal(404, "notFound", "Not found: Dataset") };
        if tables.contains_key(&name) {
            return refusal(409, "duplicate", "Already Exists: Table");
        }
        body["type"] = json!(if body["view"].is_object() { "VIEW" } else { "TABLE" });
        if body["type"] == "TABLE" {
            let columns = columns(&body);
            self.storage
                .table(reference(&name), |builder| builder.fields(columns))
                .create()
                .expect("a new table");
        }
        tables.insert(name, body.clone());
        (200, body)
    }

    async fn patch(&self, name: &str, body: Value) -> (u16, Value) {
        let old = self.get(name).1["schema"]["fields"].as_array().cloned().unwrap_or_default();
        let new = body["schema"]["fields"].as_array().cloned().unwrap_or_default();
        if let Some(field) = old.iter().find(|old| !new.iter().any(|new| new["name"] == old["name"])) {
            let message =
                format!("Provided Schema does not match. Field {} is missing in new schema", field["name"]);
            return refusal(400, "invalid", &message);
        }
        let columns = columns(&body);
        let change =
            self.storage.db().fluent().schema().table(reference(name)).columns(|c| c.fields(columns));
        change.sync().await.expect("a change of the schema");
        if let Some(table) = self.state.lock().tables.as_mut().and_then(|tables| tables.get_mut(name)) {
            table["schema"] = body["schema"].clone();
        }
        self.get(name)
    }

    fn insert_all(&self, body: &Value) -> (u16, Value) {
        let mut state = self.state.lock();
        if !state.tables.as_ref().is_some_and(|tables| tables.contains_key(TABLE)) {
            return refusal(404, "notFound", "Not found: Table");
        }
        let mut errors = Vec::new();
        for (index, row) in body["rows"].as_array().into_iter().flatten().enumerate() {
            let payload = row["json"]["payload"].as_str().unwrap_or_default();
            match state.refuses {
                Some((wanted, reason, message)) if payload == wanted => {
                    let error = json!({"reason": reason, "location": "value", "message": message});
                    errors.push(json!({"index": index, "errors": [error]}));
                }
                _ => {
                    if state.inserted_ids.insert(row["insertId"].to_string()) {
                        state.inserted.push(row.clone());
                    }
                }
            }
        }
        (200, if errors.is_empty() { json!({}) } else { json!({ "insertErrors": errors }) })
    }

    /// The only query that an inserter makes: the ids that are there.
    fn query(&self, body: &Value) -> (u16, Value) {
        let sql = body["query"].as_str().unwrap_or_default();
        assert!(sql.starts_with("SELECT `message_id` FROM "), "{sql}");
        let rows: Vec<StoredId> = self.storage.rows(reference(TABLE)).unwrap_or_default();
        let mut ids: Vec<_> = rows.into_iter().map(|row| row.message_id).collect();
        let changes = self.storage.changes::<StoredId>(reference(TABLE)).unwrap_or_default();
        ids.extend(changes.into_iter().map(|change| change.row.message_id));
        let rows: Vec<_> = ids.iter().rev().map(|id| json!({"f": [{"v": id}]})).collect();
        (200, json!({"jobComplete": true, "jobReference": {"jobId": "j"}, "rows": rows}))
    }
}

fn columns(table: &Value) -> Vec<BigQuerySchemaColumn> {
    let fields = table["schema"]["fields"].as_array().cloned().unwrap_or_default();
    fields.iter().map(column).collect()
}

fn column(field: &Value) -> BigQuerySchemaColumn {
    let column = BigQuerySchemaColumnsBuilder.field(field["name"].as_str().expect("a name"));
    let column = column.of_type(match field["type"].as_str().expect("a type") {
        "STRING" => BigQueryFieldType::String { max_length: None },
        "BYTES" => BigQueryFieldType::Bytes { max_length: None },
        "INTEGER" => BigQueryFieldType::Int64,
        "FLOAT" => BigQueryFieldType::Float64,
        "BOOLEAN" => BigQueryFieldType::Bool,
        "TIMESTAMP" => BigQueryFieldType::Timestamp,
        "JSON" => BigQueryFieldType::Json,
        other => panic!("no type {other} here"),
    });
    if field["mode"] == "REQUIRED" { column.required() } else { column }
}

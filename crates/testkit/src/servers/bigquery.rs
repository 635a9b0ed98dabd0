//! The BigQuery emulator of <https://github.com/goccy/bigquery-emulator>.

use std::net::{Ipv4Addr, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::server::Description;
use super::{Server, http, left_out};

/// The version that `tests/emulators/bigquery` pins and `tests/run` builds.
const PROGRAM: &str = "bigquery-emulator-0.8.1";
/// The project of an emulator that was asked for none.
const PROJECT: &str = "test-project";

/// A BigQuery emulator, which lives as long as this value. Of the service it has tables, queries, `insertAll` and the
/// Storage Write API over protobuf; it checks neither offsets nor required fields and reports no row errors.
#[derive(Debug)]
pub struct BigQueryEmulator {
    server: Server,
    project: String,
}

impl BigQueryEmulator {
    /// Starts an emulator. `None` means that it has not been built, which has been said with the name of `test`.
    ///
    /// # Panics
    /// When it is there but does not start, or is required and not there.
    #[must_use]
    pub fn start(test: &str) -> Option<Self> {
        Self::start_for(test, PROJECT)
    }

    /// As [`BigQueryEmulator::start`], for `project`; it has this one only.
    ///
    /// # Panics
    /// As [`BigQueryEmulator::start`].
    #[must_use]
    pub fn start_for(test: &str, project: &str) -> Option<Self> {
        let program = program().filter(|file| file.is_file()).or_else(|| left_out(test, PROGRAM))?;
        let (started, asked) = (project.to_owned(), project.to_owned());
        let description = Description {
            name: "the BigQuery emulator",
            ports: 2,
            command: Box::new(move |_folder, ports| {
                let mut command = Command::new(&program);
                command.args(["--project", &started, "--host", "127.0.0.1"]);
                command.args(["--port", &ports[0].to_string(), "--grpc-port", &ports[1].to_string()]);
                Ok(command)
            }),
            ready: Box::new(move |ports| {
                let path = format!("/bigquery/v2/projects/{asked}/datasets");
                let answers =
                    http::request(ports[0], "GET", &path, None).is_ok_and(|answer| answer.status == 200);
                answers && TcpStream::connect((Ipv4Addr::LOCALHOST, ports[1])).is_ok()
            }),
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        Some(Self { server: Server::start(description, folder), project: project.to_owned() })
    }

    /// The emulator that all tests of this process share, started by the first; a dataset for each test keeps them apart.
    ///
    /// # Panics
    /// As [`BigQueryEmulator::start`].
    #[must_use]
    pub fn shared(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Option<BigQueryEmulator>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(test)).as_ref().or_else(|| left_out(test, PROGRAM))
    }

    /// The project, the only one it has.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    /// The REST interface (administration, queries, `insertAll`): `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn rest_endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// The Storage API over gRPC: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn grpc_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.ports()[1])
    }

    /// Makes a dataset.
    ///
    /// # Panics
    /// When it is refused.
    pub fn create_dataset(&self, dataset: &str) {
        let reference = json!({"projectId": self.project, "datasetId": dataset});
        self.call("POST", "/datasets", &json!({"datasetReference": reference}));
    }

    /// Makes a table with `fields` as the REST interface writes them: `[{"name": …, "type": …, "mode": …}]`.
    ///
    /// # Panics
    /// When it is refused.
    pub fn create_table(&self, dataset: &str, table: &str, fields: &Value) {
        let reference = json!({"projectId": self.project, "datasetId": dataset, "tableId": table});
        let body = json!({"tableReference": reference, "schema": {"fields": fields}});
        self.call("POST", &format!("/datasets/{dataset}/tables"), &body);
    }

    /// The table's metadata, or `None` when there is no such table.
    ///
    /// # Panics
    /// When the emulator does not answer.
    #[must_use]
    pub fn table(&self, dataset: &str, table: &str) -> Option<Value> {
        self.try_table(dataset, table).unwrap_or_else(|error| panic!("{table}: {error}"))
    }

    /// As [`table`](Self::table), where no answer is an answer: beside many inserts the emulator has none for minutes.
    ///
    /// # Errors
    /// What came in its place.
    pub fn try_table(&self, dataset: &str, table: &str) -> Result<Option<Value>, String> {
        let path = format!("/bigquery/v2/projects/{}/datasets/{dataset}/tables/{table}", self.project);
        let answer = http::request(self.server.port(), "GET", &path, None);
        let answer = answer.map_err(|error| error.to_string())?;
        Ok((answer.status == 200).then_some(answer.body))
    }

    /// Runs a statement in standard SQL; each row is an object by column name. As in the service's own JSON, every
    /// scalar is text, `null` is null, and a record is an object.
    ///
    /// # Panics
    /// When it is refused.
    pub fn query(&self, sql: &str) -> Vec<Value> {
        self.try_query(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// As [`query`](Self::query), where an error is an answer: beside an insert the emulator fails a query now and then
    /// ("database is locked").
    ///
    /// # Errors
    /// The emulator's answer.
    pub fn try_query(&self, sql: &str) -> Result<Vec<Value>, String> {
        let body = json!({"query": sql, "useLegacySql": false, "maxResults": 1_000_000});
        let path = format!("/bigquery/v2/projects/{}/queries", self.project);
        let answer = http::request(self.server.port(), "POST", &path, Some(&body));
        let answer = answer.map_err(|error| error.to_string())?;
        if !(200..300).contains(&answer.status) {
            return Err(format!("{}: {}", answer.status, answer.body));
        }
        let rows = answer.body["rows"].as_array().cloned().unwrap_or_default();
        Ok(rows.iter().map(|row| record(&answer.body["schema"]["fields"], row)).collect())
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let path = format!("/bigquery/v2/projects/{}{path}", self.project);
        http::call(self.server.port(), method, &path, Some(body))
    }
}

impl Deref for BigQueryEmulator {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for BigQueryEmulator {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// Where `tests/run` puts what it builds.
fn program() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let tools = variable("MILLSTREAM_TEST_TOOLS").or_else(|| Some(cache()?.join("millstream-test-tools")))?;
    Some(tools.join(PROGRAM))
}

/// A row or a record: `{"f": [{"v": …}]}` with the names from the schema.
fn record(fields: &Value, row: &Value) -> Value {
    let mut object = Map::new();
    for (at, field) in fields.as_array().into_iter().flatten().enumerate() {
        let name = field["name"].as_str().unwrap_or_default().to_owned();
        object.insert(name, cell(field, &row["f"][at]["v"]));
    }
    Value::Object(object)
}

fn cell(field: &Value, value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| cell(field, &item["v"])).collect(),
        Value::Object(_) => record(&field["fields"], value),
        scalar => scalar.clone(),
    }
}

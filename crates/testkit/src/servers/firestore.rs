//! Google's Firestore emulator.

use std::ops::{Deref, DerefMut};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::server::Description;
use super::{Server, find_emulator, find_program, http, left_out};

/// Writes that one commit may hold.
const COMMIT: usize = 500;

/// A Firestore emulator, which lives as long as this value. It keeps its documents in memory; a project for each test
/// keeps tests apart, and projects need not be made.
#[derive(Debug)]
pub struct FirestoreEmulator {
    server: Server,
}

impl FirestoreEmulator {
    /// Starts an emulator. `None` means that it or Java is not installed, which has been said with the name of `test`.
    ///
    /// # Panics
    /// When it is installed but does not start, or is required and not installed.
    #[must_use]
    pub fn start(test: &str) -> Option<Self> {
        let java = find_program("java").or_else(|| left_out(test, "java"))?;
        let program = find_emulator("cloud-firestore-emulator", ".jar");
        let program = program.or_else(|| left_out(test, "the Firestore emulator of the Google Cloud CLI"))?;
        let description = Description {
            name: "the Firestore emulator",
            ports: 1,
            // Java itself: the script that belongs to it starts Java as a child, which outlives a killed script.
            command: Box::new(move |_folder, ports| {
                let mut command = Command::new(&java);
                command.args(["-Xmx512m", "-Duser.language=en", "-cp"]).arg(&program);
                command.args(["com.google.cloud.datastore.emulator.firestore.CloudFirestore", "start"]);
                command.args(["--host=127.0.0.1", &format!("--port={}", ports[0])]);
                Ok(command)
            }),
            ready: Box::new(|ports| {
                http::request(ports[0], "GET", "/", None).is_ok_and(|answer| answer.status == 200)
            }),
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        Some(Self { server: Server::start(description, folder) })
    }

    /// The emulator that all tests of this process share, started by the first.
    ///
    /// # Panics
    /// As [`FirestoreEmulator::start`].
    #[must_use]
    pub fn shared(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Option<FirestoreEmulator>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(test)).as_ref().or_else(|| left_out(test, "the Firestore emulator"))
    }

    /// Its address as a client's endpoint: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Writes the JSON object `data` as the document `id`, in place of what is there.
    ///
    /// # Panics
    /// When it is refused.
    pub fn put_document(&self, project: &str, collection: &str, id: &str, data: &Value) {
        self.put_documents(project, collection, [(id.to_owned(), data.clone())]);
    }

    /// Writes many documents, 500 in one commit.
    ///
    /// # Panics
    /// When they are refused.
    pub fn put_documents(
        &self,
        project: &str,
        collection: &str,
        documents: impl IntoIterator<Item = (String, Value)>,
    ) {
        let write = |(id, data): (String, Value)| {
            let name = format!("{}/{collection}/{id}", root(project));
            json!({"update": {"name": name, "fields": fields(&data)}})
        };
        let writes: Vec<Value> = documents.into_iter().map(write).collect();
        for writes in writes.chunks(COMMIT) {
            self.call("POST", &format!("{}:commit", root(project)), &json!({"writes": writes}));
        }
    }

    /// The document's fields as the REST interface writes them (`{"name": {"stringValue": …}}`), or `None`.
    ///
    /// # Panics
    /// When the emulator does not answer.
    #[must_use]
    pub fn document(&self, project: &str, collection: &str, id: &str) -> Option<Value> {
        let path = format!("/v1/{}/{collection}/{id}", root(project));
        let answer = http::request(self.server.port(), "GET", &path, None).expect("the emulator answers");
        (answer.status == 200).then(|| answer.body["fields"].clone())
    }

    /// Deletes a document, if it is there.
    ///
    /// # Panics
    /// When it is refused.
    pub fn delete_document(&self, project: &str, collection: &str, id: &str) {
        self.call("DELETE", &format!("{}/{collection}/{id}", root(project)), &json!({}));
    }

    /// Deletes all documents of a project.
    ///
    /// # Panics
    /// When it is refused.
    pub fn clear(&self, project: &str) {
        let path = format!("/emulator/v1/{}", root(project));
        http::call(self.server.port(), "DELETE", &path, None);
    }

    fn call(&self, method: &str, name: &str, body: &Value) {
        http::call(self.server.port(), method, &format!("/v1/{name}"), Some(body));
    }
}

impl Deref for FirestoreEmulator {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for FirestoreEmulator {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

fn root(project: &str) -> String {
    format!("projects/{project}/databases/(default)/documents")
}

fn fields(data: &Value) -> Map<String, Value> {
    let object = data.as_object().expect("a document is a JSON object");
    object.iter().map(|(name, value)| (name.clone(), typed(value))).collect()
}

/// A JSON value as the REST interface writes it (<https://cloud.google.com/firestore/docs/reference/rest/v1/Value>).
fn typed(value: &Value) -> Value {
    match value {
        Value::Null => json!({"nullValue": null}),
        Value::Bool(value) => json!({"booleanValue": value}),
        Value::Number(number) if number.is_f64() => json!({"doubleValue": number}),
        // Integers are 64 bits wide there and written as text.
        Value::Number(number) => json!({"integerValue": number.to_string()}),
        Value::String(text) => json!({"stringValue": text}),
        Value::Array(items) => json!({"arrayValue": {"values": items.iter().map(typed).collect::<Vec<_>>()}}),
        Value::Object(_) => json!({"mapValue": {"fields": fields(value)}}),
    }
}

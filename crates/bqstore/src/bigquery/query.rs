//! Asking BigQuery with SQL: one query, its result page by page.

use super::Error;
use super::rest::{Failure, Rest, document};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value as Json, json};
use std::fmt::Write as _;

const ASK: &str = "answer the query";
/// Rows of a page.
const PAGE: usize = 10_000;
/// How long BigQuery may keep a call waiting, in milliseconds; then it is asked again.
const WAIT: usize = 5_000;

/// The result of a query, page by page. The query runs, and is paid for, once.
#[derive(Debug)]
pub struct Pages {
    rest: Rest,
    reply: Reply,
    columns: Vec<String>,
    is_first: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Reply {
    job_complete: bool,
    job_reference: Job,
    page_token: Option<String>,
    schema: Schema,
    rows: Vec<RowCells>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Job {
    job_id: String,
    location: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Schema {
    #[serde(default)]
    fields: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Named {
    name: String,
}

#[derive(Debug, Deserialize)]
struct RowCells {
    #[serde(rename = "f", default)]
    cells: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Value {
    #[serde(rename = "v", default)]
    value: Json,
}

impl Pages {
    /// Asks `sql` and waits for the first page.
    ///
    /// # Errors
    /// When BigQuery cannot be asked or refuses the query.
    pub(super) async fn ask(rest: &Rest, sql: &str, location: Option<&str>) -> Result<Self, Error> {
        let mut body = json!({"query": sql, "useLegacySql": false, "maxResults": PAGE, "timeoutMs": WAIT});
        if let Some(location) = location {
            body["location"] = json!(location);
        }
        let reply = rest.send(Method::POST, "/queries", document(&body)).await.map_err(refused)?;
        let mut pages = Self { rest: rest.clone(), reply, columns: Vec::new(), is_first: true };
        while !pages.reply.job_complete {
            pages.fetch().await?;
        }
        pages.columns = pages.reply.schema.fields.drain(..).map(|field| field.name).collect();
        Ok(pages)
    }

    /// Names of the columns.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The next rows, each with a value per column as BigQuery writes it in JSON: numbers and times as text, bytes
    /// in base64; `None` after the last.
    ///
    /// # Errors
    /// When BigQuery cannot be asked.
    pub async fn next_page(&mut self) -> Result<Option<Vec<Vec<Json>>>, Error> {
        if !self.is_first {
            if self.reply.page_token.is_none() {
                return Ok(None);
            }
            self.fetch().await?;
        }
        self.is_first = false;
        let rows = std::mem::take(&mut self.reply.rows).into_iter();
        Ok(Some(rows.map(|row| row.cells.into_iter().map(|cell| cell.value).collect()).collect()))
    }

    /// Asks the job again, for its page that comes next.
    async fn fetch(&mut self) -> Result<(), Error> {
        let job = self.reply.job_reference.clone();
        let mut path = format!("/queries/{}?maxResults={PAGE}&timeoutMs={WAIT}", encoded(&job.job_id));
        for (name, value) in [("location", &job.location), ("pageToken", &self.reply.page_token)] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", encoded(value)));
            }
        }
        self.reply = self.rest.get(&path).await.map_err(refused)?;
        self.reply.job_reference = job;
        Ok(())
    }
}

fn refused(failure: Failure) -> Error {
    match failure {
        Failure::Answer { status: StatusCode::NOT_FOUND, message, .. } => {
            Error::Missing { what: message, remedy: "check project, dataset, table and location".to_owned() }
        }
        Failure::Answer { status: StatusCode::BAD_REQUEST, message, .. } => {
            Error::Settings(format!("BigQuery refuses the query: {message}"))
        }
        failure => failure.into_error(ASK),
    }
}

/// A value in a URL.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

//! Inserting through `tabledata.insertAll`, the older streaming API.

use super::append::Answer;
use super::error::{row_refused, without_values};
use super::rest::{Failure, Rest};
use super::rows::JsonRow;
use super::schema::TablePlan;
use super::{BigQueryOptions, Error};
use crate::Row;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

const INSERT: &str = "insert rows";
/// Bytes between two rows and of the request's head.
const HEAD: &[u8] = br#"{"skipInvalidRows":true,"ignoreUnknownValues":false,"rows":["#;
const TAIL: &[u8] = b"]}";

/// Inserts rows into one table.
#[derive(Debug)]
pub(super) struct InsertAll {
    rest: Rest,
    path: String,
    table: String,
    max_bytes: usize,
    max_rows: usize,
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(rename = "insertId")]
    insert_id: &'a str,
    json: JsonRow<'a>,
}

#[derive(Deserialize)]
struct Reply {
    #[serde(rename = "insertErrors", default)]
    errors: Vec<RowErrors>,
}

#[derive(Deserialize)]
struct RowErrors {
    index: usize,
    #[serde(default)]
    errors: Vec<RowError>,
}

#[derive(Deserialize)]
struct RowError {
    #[serde(default)]
    reason: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    message: String,
}

/// A request being filled.
struct Request {
    body: Vec<u8>,
    /// Places of its rows.
    places: Vec<usize>,
}

impl Request {
    fn new() -> Self {
        Self { body: HEAD.to_vec(), places: Vec::new() }
    }

    fn push(&mut self, at: usize, entry: &[u8]) {
        if !self.places.is_empty() {
            self.body.push(b',');
        }
        self.body.extend_from_slice(entry);
        self.places.push(at);
    }
}

impl InsertAll {
    pub(super) fn new(options: &BigQueryOptions, rest: Rest) -> Self {
        let path = format!("/datasets/{}/tables/{}/insertAll", options.dataset, options.table);
        let max_bytes = options.request_bytes();
        Self { rest, path, table: options.table_name(), max_bytes, max_rows: options.max_request_rows }
    }

    /// Stores `rows`; one answer per row.
    ///
    /// # Errors
    /// When no row is known to be stored.
    pub(super) async fn insert(&self, plan: &TablePlan, rows: &[Row]) -> Result<Vec<Answer>, Error> {
        let mut answers: Vec<Option<Answer>> = rows.iter().map(|_| None).collect();
        let mut request = Request::new();
        let mut entry = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            entry.clear();
            let mut buffer = [0; 36];
            let document = Entry { insert_id: row.id.encode(&mut buffer), json: JsonRow { plan, row } };
            if let Err(error) = serde_json::to_writer(&mut entry, &document) {
                answers[at] = Some(Err(Error::Row(error.to_string())));
                continue;
            }
            if HEAD.len() + entry.len() + TAIL.len() > self.max_bytes {
                let what = format!("it takes {} bytes, and a request takes {}", entry.len(), self.max_bytes);
                answers[at] = Some(Err(Error::Row(what)));
                continue;
            }
            let is_full = request.body.len() + 1 + entry.len() + TAIL.len() > self.max_bytes;
            if is_full || request.places.len() >= self.max_rows {
                self.post(std::mem::replace(&mut request, Request::new()), &mut answers).await?;
            }
            request.push(at, &entry);
        }
        if !request.places.is_empty() {
            self.post(request, &mut answers).await?;
        }
        let unanswered = || Error::Unavailable { call: INSERT, message: "a row has no answer".to_owned() };
        Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(unanswered()))).collect())
    }

    /// Sends one request and notes the answers of its rows. It is an error only while nothing is stored.
    async fn post(&self, mut request: Request, answers: &mut [Option<Answer>]) -> Result<(), Error> {
        request.body.extend_from_slice(TAIL);
        let reply: Result<Reply, _> = self.rest.send(Method::POST, &self.path, request.body).await;
        let is_stored = answers.iter().any(|answer| matches!(answer, Some(Ok(()))));
        match reply.map_err(|failure| self.call_error(failure)) {
            Ok(reply) => note(&request.places, reply, answers),
            Err(error) if !is_stored => return Err(error),
            Err(error) => {
                for at in request.places {
                    answers[at] = Some(Err(error.again()));
                }
            }
        }
        Ok(())
    }

    fn call_error(&self, failure: Failure) -> Error {
        match failure {
            Failure::Answer { status: StatusCode::NOT_FOUND, .. } => Error::Missing {
                what: format!("table {}", self.table),
                remedy: "create it, or set another table".to_owned(),
            },
            // insertAll takes requests of 10 MB; which rows are too many is found by halving.
            failure => failure.into_error(INSERT),
        }
    }
}

fn note(places: &[usize], reply: Reply, answers: &mut [Option<Answer>]) {
    let errors: HashMap<usize, RowErrors> = reply.errors.into_iter().map(|row| (row.index, row)).collect();
    for (index, at) in places.iter().enumerate() {
        let refused = errors.get(&index).and_then(|row| row.errors.first());
        answers[*at] = Some(match refused {
            None if errors.contains_key(&index) => Err(Error::Row("no reason is given".to_owned())),
            None => Ok(()),
            Some(error) => Err(row_error(error)),
        });
    }
}

fn row_error(error: &RowError) -> Error {
    let message = without_values(&error.message);
    match &*error.reason {
        // Left out because of other rows, or by an overload.
        "stopped" | "timeout" | "backendError" | "internalError" | "rateLimitExceeded" => {
            Error::Unavailable { call: INSERT, message }
        }
        // A column that was there when the rows were made.
        "invalid" if message.starts_with("no such field") => {
            Error::Changing(format!("its column `{}` is not known", error.location))
        }
        reason => row_refused(reason, &error.location, &message),
    }
}

//! Orders to a running `up`: retry or drop dead letters.
//!
//! The process that runs the pipeline owns the bus, so a second one cannot write to it. It listens on a loopback port
//! of its own and writes address and a secret, new at each start, to `control.json` in the data folder, which only
//! its user can read. Whoever may read the folder's files may give orders; nobody else on the machine, and nobody
//! beyond it.

mod client;
mod letters;
mod server;

pub use client::Client;
pub use letters::Letters;
pub use server::{ControlError, Server};

use embedded::bus::LetterFilter;
use messagepipeline::{MessageId, Timestamp};
use serde::{Deserialize, Serialize};

/// What `control.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Contact {
    address: std::net::SocketAddr,
    token: String,
}

/// What to do with letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Back to the stage that gave them up.
    Retry,
    /// Not wanted any more.
    Drop,
}

/// One page of work on the dead letters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// With which: message ids; empty means all that fit the rest.
    pub ids: Vec<String>,
    /// Of this stage.
    pub stage: Option<String>,
    /// For this reason.
    pub reason: Option<String>,
    /// From this device.
    pub device: Option<String>,
    /// Given up then or later.
    pub since: Option<String>,
    /// Given up before.
    pub before: Option<String>,
    /// Behind this letter: stage and id.
    pub after: Option<(String, String)>,
    /// Who asks.
    pub by: String,
    /// Why.
    pub why: Option<String>,
}

/// What became of one page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Letters that were retried or dropped.
    pub done: u64,
    /// Letters that cannot be retried: stage, id and why.
    pub refused: Vec<(String, String, String)>,
    /// Where the next page begins, if there may be one.
    pub next: Option<(String, String)>,
}

impl Request {
    /// A request for the letters of `filter`.
    #[must_use]
    pub fn new(operation: Operation, filter: &LetterFilter, by: String, why: Option<String>) -> Self {
        Self {
            operation,
            ids: filter.ids.iter().map(ToString::to_string).collect(),
            stage: filter.stage.clone(),
            reason: filter.reason.clone(),
            device: filter.device.clone(),
            since: filter.since.map(|at| at.to_string()),
            before: filter.before.map(|at| at.to_string()),
            after: None,
            by,
            why,
        }
    }

    fn filter(&self) -> Result<LetterFilter, String> {
        let ids: Result<Vec<MessageId>, String> = self.ids.iter().map(|id| parse_id(id)).collect();
        let time = |text: &Option<String>| -> Result<Option<Timestamp>, String> {
            text.as_deref().map(|text| text.parse().map_err(|error| format!("{text:?}: {error}"))).transpose()
        };
        Ok(LetterFilter {
            ids: ids?,
            stage: self.stage.clone(),
            reason: self.reason.clone(),
            state: None,
            device: self.device.clone(),
            since: time(&self.since)?,
            before: time(&self.before)?,
        })
    }
}

fn parse_id(text: &str) -> Result<MessageId, String> {
    text.parse().map_err(|_| format!("{text:?} is no message id"))
}

//! Reading the table beside those who fill it: figures for the books, queries.

use super::query::Pages;
use super::rest::Rest;
use super::{BigQueryOptions, Error};
use crate::MESSAGE_ID;
use messagepipeline::{Digest, MessageId};
use serde_json::Value as Json;

/// A view of one table.
#[derive(Debug)]
pub struct BigQueryReader {
    rest: Rest,
    table: String,
    location: Option<String>,
}

impl BigQueryReader {
    /// A reader of the table that `options` name. Nothing is connected yet.
    ///
    /// # Errors
    /// When a name cannot be one.
    pub fn new(options: &BigQueryOptions) -> Result<Self, Error> {
        options.check_names()?;
        let rest = Rest::new(options)?;
        Ok(Self { rest, table: options.table_name(), location: options.location.clone() })
    }

    /// Count of rows and digest of their ids, computed by BigQuery from the rows themselves. An id with two rows
    /// counts twice.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn digest(&self) -> Result<Digest, Error> {
        self.digest_of(&format!("SELECT `{MESSAGE_ID}` AS id FROM `{}`", self.table)).await
    }

    /// The same with each id counted once.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn distinct_digest(&self) -> Result<Digest, Error> {
        self.digest_of(&format!("SELECT DISTINCT `{MESSAGE_ID}` AS id FROM `{}`", self.table)).await
    }

    /// BigQuery's sums of integers must not overflow, so the halves of the fingerprints are added.
    async fn digest_of(&self, ids: &str) -> Result<Digest, Error> {
        let sql = format!(
            "SELECT COUNT(*), SUM(f >> 32), SUM(f & 4294967295) FROM (SELECT FARM_FINGERPRINT(id) AS f FROM ({ids}))"
        );
        let page = Pages::ask(&self.rest, &sql, self.location.as_deref()).await?.next_page().await?;
        let row = page.and_then(|rows| rows.into_iter().next()).unwrap_or_default();
        let number = |at: usize| match row.get(at) {
            Some(Json::String(text)) => text.parse::<i64>().ok(),
            Some(Json::Null) => Some(0),
            _ => None,
        };
        match (number(0), number(1), number(2)) {
            (Some(count), Some(high), Some(low)) => {
                // Modulo 2^64 it does not matter whether the upper half was shifted with its sign.
                let sum = high.cast_unsigned().wrapping_shl(32).wrapping_add(low.cast_unsigned());
                Ok(Digest { count: count.cast_unsigned(), sum })
            }
            _ => Err(unexpected("the digest's query gave no three numbers")),
        }
    }

    /// All ids in rising order, each with the number of its rows.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn ids(&self) -> Result<IdPages, Error> {
        let sql = format!(
            "SELECT `{MESSAGE_ID}` AS id, COUNT(*) AS n FROM `{}` GROUP BY id ORDER BY id",
            self.table
        );
        Ok(IdPages(Pages::ask(&self.rest, &sql, self.location.as_deref()).await?))
    }

    /// Asks `sql`, in BigQuery's own dialect.
    ///
    /// # Errors
    /// When BigQuery cannot be asked or refuses the query.
    pub async fn query(&self, sql: &str) -> Result<Pages, Error> {
        Pages::ask(&self.rest, sql, self.location.as_deref()).await
    }
}

/// Ids with the number of their rows, page by page.
#[derive(Debug)]
pub struct IdPages(Pages);

impl IdPages {
    /// The next ids; `None` after the last.
    ///
    /// # Errors
    /// When BigQuery cannot be asked, or a row's id is none of ours.
    pub async fn next_page(&mut self) -> Result<Option<Vec<(MessageId, u64)>>, Error> {
        let Some(rows) = self.0.next_page().await? else { return Ok(None) };
        rows.iter().map(|row| id_and_count(row)).collect::<Result<_, _>>().map(Some)
    }
}

fn id_and_count(row: &[Json]) -> Result<(MessageId, u64), Error> {
    let text = |at: usize| row.get(at).and_then(Json::as_str).unwrap_or_default();
    match (text(0).parse(), text(1).parse()) {
        (Ok(id), Ok(count)) => Ok((id, count)),
        _ => Err(unexpected("a row's id is not a UUID: remove the row")),
    }
}

fn unexpected(message: &str) -> Error {
    Error::Unavailable { call: "read the table", message: message.to_owned() }
}

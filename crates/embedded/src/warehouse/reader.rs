//! Reading the warehouse beside the process that fills it: figures for the books, rows by id, queries.

use super::table::check_name;
use super::{Cell, SCHEMA, Visit, query};
use crate::{Error, sqlite};
use bqstore::MESSAGE_ID;
use messagepipeline::{Digest, MessageId};
use rusqlite::Connection;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ids read at a time.
const PAGE: usize = 10_000;

/// A read-only view of one table of `warehouse.db`. All its calls read the disk before they return.
#[derive(Debug)]
pub struct WarehouseReader {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    pub(super) table: String,
}

impl WarehouseReader {
    /// Opens `table` in the database `path`.
    ///
    /// # Errors
    /// When the file is missing or of another kind.
    pub fn open(path: &Path, table: &str) -> Result<Self, Error> {
        check_name(table)?;
        let connection = sqlite::open_reader(path, &SCHEMA)?;
        Ok(Self { connection, path: path.to_owned(), table: table.to_owned() })
    }

    /// Count of rows and digest of their ids, from the rows themselves.
    ///
    /// # Errors
    /// When the table cannot be read, or holds a row whose id is none of ours.
    pub fn digest(&self) -> Result<Digest, Error> {
        self.ids().try_fold(Digest::default(), |sum, id| Ok(sum + Digest::of(&id?)))
    }

    /// All ids in rising order. Memory does not grow with their number; rows that come while it runs may or may not
    /// be in it.
    pub fn ids(&self) -> impl Iterator<Item = Result<MessageId, Error>> + '_ {
        let mut page = Vec::new().into_iter();
        let mut after = String::new();
        let mut failed = false;
        std::iter::from_fn(move || {
            if page.len() == 0 && !failed {
                match self.page(&after) {
                    Ok(texts) => page = texts.into_iter(),
                    Err(error) => {
                        failed = true;
                        return Some(Err(error));
                    }
                }
            }
            let text: String = page.next()?;
            let id = text.parse().map_err(|_| Error::Inconsistent {
                path: self.path.clone(),
                detail: format!(
                    "a row of table `{}` has the id `{text}`, which is not a UUID: remove the row",
                    self.table
                ),
            });
            after = text;
            failed |= id.is_err();
            Some(id)
        })
    }

    fn page(&self, after: &str) -> Result<Vec<String>, Error> {
        let sql = format!(
            "SELECT \"{MESSAGE_ID}\" FROM \"{}\" WHERE \"{MESSAGE_ID}\" > ?1 ORDER BY \"{MESSAGE_ID}\" LIMIT {PAGE}",
            self.table
        );
        let read = || {
            let mut statement = self.connection.prepare_cached(&sql)?;
            statement.query_map([after], |row| row.get(0))?.collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| Error::from(error).at(&self.path))
    }

    /// The row of one message as names and values; `visit` is not called when there is none.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn get(&self, id: &MessageId, visit: &mut dyn FnMut(&[String], &[Cell<'_>])) -> Result<(), Error> {
        let sql = format!("SELECT * FROM \"{}\" WHERE \"{MESSAGE_ID}\" = '{id}'", self.table);
        query::run(&self.connection, &sql, &mut |names, cells| {
            visit(names, cells);
            ControlFlow::Break(())
        })
        .map_err(|error| error.at(&self.path))
        .map(drop)
    }

    /// Runs one SELECT and hands each row to `visit` with the names of its columns, until it answers `Break`.
    /// Answers with the names, also when there is no row. Nothing can be changed through it.
    ///
    /// # Errors
    /// When it is not one SELECT, when SQLite cannot run it, or when it takes longer than `deadline`.
    pub fn query(&self, sql: &str, deadline: Duration, visit: &mut Visit<'_>) -> Result<Vec<String>, Error> {
        query::check_query(sql)?;
        query::run_within(&self.connection, sql, deadline, visit).map_err(|error| error.at(&self.path))
    }
}

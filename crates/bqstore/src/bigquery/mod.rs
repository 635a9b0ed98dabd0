//! BigQuery as the warehouse: an inserter of rows, and a reader for books and queries.
//!
//! ```text
//!  open    tables.get ─► tables.insert (missing) or tables.patch (columns missing) ─► view, ids of the last hour
//!  insert  memory of ids ─► TablePlan (value ─► column, or `_extra`) ─► Storage Write API or tabledata.insertAll
//!                              ▲                                          one answer per row
//!                              └── made anew when the table has changed ──────┘
//! ```
//!
//! Types: text, whole numbers, numbers, truth values, times and JSON become STRING, INT64, FLOAT64, BOOL, TIMESTAMP
//! and JSON; the payload becomes BYTES, which alone holds every payload byte for byte
//! (`SAFE_CONVERT_BYTES_TO_STRING(payload)` reads it as text). A column that is there with another type takes what
//! it can hold exactly.

mod admin;
mod append;
mod error;
mod exact_json;
mod insert_all;
mod memory;
mod options;
mod query;
mod reader;
mod rest;
mod rows;
mod schema;

pub use error::Error;
pub use options::{BigQueryOptions, Drift, EXTRA_COLUMN, Endpoints, Partition, WriteMode};
pub use query::Pages;
pub use reader::{BigQueryReader, IdPages};

use crate::{Columns, MESSAGE_ID, Row, RowInserter, RowOutcome};
use admin::Admin;
use append::{Answer, Appender};
use futures_util::future::BoxFuture;
use insert_all::InsertAll;
use memory::{Memory, Standing};
use messagepipeline::{ID_CONFLICT, MessageId, StageError};
use parking_lot::Mutex;
use rest::Rest;
use schema::TablePlan;
use std::fmt;
use std::sync::Arc;

/// A table of BigQuery that takes rows. What each mode promises stands at [`WriteMode`].
pub struct BigQueryInserter {
    options: BigQueryOptions,
    columns: Columns,
    admin: Admin,
    rest: Rest,
    sender: Sender,
    memory: Memory,
    /// `None` before the table was looked at, and after it was found changed.
    plan: Mutex<Option<Arc<TablePlan>>>,
}

enum Sender {
    Storage(Box<Appender>),
    InsertAll(InsertAll),
}

impl fmt::Debug for BigQueryInserter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BigQueryInserter").field("table", &self.options.table_name()).finish_non_exhaustive()
    }
}

impl BigQueryInserter {
    /// An inserter for `columns`. Nothing is connected yet.
    ///
    /// # Errors
    /// Settings that cannot work.
    pub fn new(options: BigQueryOptions, columns: &Columns) -> Result<Self, Error> {
        options.check(columns)?;
        let rest = Rest::new(&options)?;
        let sender = match options.mode {
            WriteMode::InsertAll => Sender::InsertAll(InsertAll::new(&options, rest.clone())),
            WriteMode::Append | WriteMode::Upsert => Sender::Storage(Box::new(Appender::new(&options)?)),
        };
        Ok(Self {
            admin: Admin::new(&options, columns, rest.clone()),
            memory: Memory::new(columns, options.remember),
            columns: columns.clone(),
            plan: Mutex::default(),
            rest,
            sender,
            options,
        })
    }

    async fn make_ready(&self) -> Result<(), Error> {
        let plan = self.admin.prepare(self.options.create).await?;
        *self.plan.lock() = Some(Arc::new(plan));
        if self.options.create
            && self.options.mode != WriteMode::Upsert
            && let Err(error) = self.admin.create_view().await
        {
            tracing::warn!(%error, "no view of distinct rows; rows are stored all the same");
        }
        if let Err(error) = self.recall().await {
            tracing::warn!(%error, "ids of the last rows not read; what is redelivered may become a second row");
        }
        Ok(())
    }

    /// Reads the ids of the last rows, so that what is redelivered after a restart is known.
    async fn recall(&self) -> Result<(), Error> {
        let Some(received) = options::received_column(&self.columns) else { return Ok(()) };
        if self.options.recall.is_zero() || self.options.remember == 0 {
            return Ok(());
        }
        let sql = format!(
            "SELECT `{MESSAGE_ID}` FROM `{}` WHERE `{received}` >= TIMESTAMP_SUB(CURRENT_TIMESTAMP(), INTERVAL {} \
             SECOND) ORDER BY `{received}` DESC LIMIT {}",
            self.options.table_name(),
            self.options.recall.as_secs(),
            self.options.remember,
            received = received.name,
        );
        let limit = self.options.timeout;
        let ids = tokio::time::timeout(limit, self.read_ids(&sql)).await;
        let mut ids = ids.map_err(|_| Error::Deadline { call: "read the last ids", limit })??;
        // The oldest are forgotten first.
        ids.reverse();
        self.memory.recall(ids);
        Ok(())
    }

    async fn read_ids(&self, sql: &str) -> Result<Vec<MessageId>, Error> {
        let mut pages = query::Pages::ask(&self.rest, sql, self.options.location.as_deref()).await?;
        let mut ids = Vec::new();
        while let Some(rows) = pages.next_page().await? {
            let texts = rows.iter().filter_map(|row| row.first()?.as_str());
            ids.extend(texts.filter_map(|text| text.parse::<MessageId>().ok()));
        }
        Ok(ids)
    }

    async fn store(&self, rows: &[Row]) -> Result<Vec<RowOutcome>, Error> {
        let claim = self.memory.claim(rows);
        let is_new = |(at, standing): (usize, &Standing)| (*standing == Standing::New).then_some(at);
        let places: Vec<usize> = claim.standings().iter().enumerate().filter_map(is_new).collect();
        let new: Vec<Row> = places.iter().map(|at| rows[*at].clone()).collect();
        let answers = if new.is_empty() { Vec::new() } else { self.send(&new).await? };
        let mut outcomes: Vec<Option<Answer>> = rows.iter().map(|_| None).collect();
        for (at, answer) in places.iter().zip(answers) {
            outcomes[*at] = Some(answer);
        }
        let is_stored = |at: &usize| matches!(outcomes[*at], Some(Ok(())));
        claim.stored(rows, places.iter().copied().filter(is_stored));
        let standings = claim.standings().iter().enumerate();
        Ok(standings.map(|(at, standing)| outcome(*standing, at, rows, &outcomes)).collect())
    }

    /// Sends rows that are not known to be stored. When the table has changed, it is looked at anew, once; so it is
    /// when the call is refused as a whole, because then it may be the table that differs from what we know of it.
    async fn send(&self, rows: &[Row]) -> Result<Vec<Answer>, Error> {
        let plan = self.plan().await?;
        let mut answers = match self.send_by(&plan, rows).await {
            Err(Error::Changing(_) | Error::Refused { .. }) => return self.send_anew(&plan, rows).await,
            answers => answers?,
        };
        let is_changing = |answer: &Answer| matches!(answer, Err(Error::Changing(_)));
        let open: Vec<usize> = (0..rows.len()).filter(|at| is_changing(&answers[*at])).collect();
        if open.is_empty() {
            return Ok(answers);
        }
        let again: Vec<Row> = open.iter().map(|at| rows[*at].clone()).collect();
        match self.send_anew(&plan, &again).await {
            Ok(later) => open.iter().zip(later).for_each(|(at, answer)| answers[*at] = answer),
            Err(error) if answers.iter().any(|answer| answer.is_ok()) => {
                open.iter().for_each(|at| answers[*at] = Err(error.again()));
            }
            Err(error) => return Err(error),
        }
        Ok(answers)
    }

    async fn send_anew(&self, old: &Arc<TablePlan>, rows: &[Row]) -> Result<Vec<Answer>, Error> {
        self.forget(old);
        if let Sender::Storage(appender) = &self.sender {
            appender.drop_idle().await;
        }
        let plan = self.plan().await?;
        self.send_by(&plan, rows).await
    }

    async fn send_by(&self, plan: &Arc<TablePlan>, rows: &[Row]) -> Result<Vec<Answer>, Error> {
        let result = match &self.sender {
            Sender::Storage(appender) => appender.append(plan, rows).await,
            Sender::InsertAll(inserter) => inserter.insert(plan, rows).await,
        };
        if !matches!(result, Err(Error::Missing { .. })) {
            return result;
        }
        self.forget(plan);
        // A new table is there for some parts of BigQuery minutes before it is there for others.
        match self.admin.exists().await {
            Ok(true) => Err(Error::Changing("it is new, and cannot take rows yet".to_owned())),
            _ => Err(self.admin.missing("create it, or set another table")),
        }
    }

    /// Where values go. A table that somebody removed is not created again.
    async fn plan(&self) -> Result<Arc<TablePlan>, Error> {
        let known = self.plan.lock().clone();
        if let Some(plan) = known {
            return Ok(plan);
        }
        let plan = Arc::new(self.admin.prepare(false).await?);
        Ok(Arc::clone(self.plan.lock().insert(plan)))
    }

    fn forget(&self, old: &Arc<TablePlan>) {
        let mut plan = self.plan.lock();
        if plan.as_ref().is_some_and(|plan| Arc::ptr_eq(plan, old)) {
            *plan = None;
        }
    }
}

/// The outcome of the row at `at`, from its standing before the call and the answers of those that were sent.
fn outcome(standing: Standing, at: usize, rows: &[Row], answers: &[Option<Answer>]) -> RowOutcome {
    let answered = |at: usize| match &answers[at] {
        Some(Ok(())) => RowOutcome::Stored,
        Some(Err(error)) => RowOutcome::Refused(error.clone().into()),
        None => RowOutcome::Refused(waiting(rows[at].id)),
    };
    match standing {
        Standing::New => answered(at),
        Standing::Stored => RowOutcome::AlreadyStored,
        Standing::Conflict => RowOutcome::Refused(conflict(rows[at].id)),
        Standing::UnderWay => RowOutcome::Refused(waiting(rows[at].id)),
        Standing::RepeatOf(first) | Standing::ConflictWith(first) => match (answered(first), standing) {
            (RowOutcome::Stored, Standing::RepeatOf(_)) => RowOutcome::AlreadyStored,
            (RowOutcome::Stored, _) => RowOutcome::Refused(conflict(rows[at].id)),
            (refused, Standing::RepeatOf(_)) => refused,
            _ => RowOutcome::Refused(waiting(rows[at].id)),
        },
    }
}

fn conflict(id: MessageId) -> StageError {
    StageError::permanent(ID_CONFLICT, format!("message {id} is in the warehouse with another payload"))
}

/// Whether a row is stored shows when another one with its id has its answer.
fn waiting(id: MessageId) -> StageError {
    StageError::transient("under-way", format!("another row of message {id} is being stored at this moment"))
}

impl RowInserter for BigQueryInserter {
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async { Ok(self.make_ready().await?) })
    }

    fn insert(&self, rows: Vec<Row>) -> BoxFuture<'_, Result<Vec<RowOutcome>, StageError>> {
        Box::pin(async move { Ok(self.store(&rows).await?) })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async {
            if let Sender::Storage(appender) = &self.sender {
                appender.close().await;
            }
            Ok(())
        })
    }
}

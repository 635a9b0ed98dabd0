//! Appending through the Storage Write API: the only file that knows the crate `bigquery`.
//!
//! Each call has a connection of its own for its time, taken from those that lie idle. A connection whose answers do
//! not come is thrown away, because nobody can say what became of its requests, and the idle ones with it: what broke it
//! may have broken them, and each would cost a deadline of its own.

use super::error::{in_words, row_refused, without_values};
use super::rows::TypedRow;
use super::schema::TablePlan;
use super::{BigQueryOptions, Error, WriteMode};
use crate::Row;
use bigquery::errors::{
    BigQueryCodecErrorKind as CodecKind, BigQueryError, BigQueryRowErrors, BigQuerySerializationError,
};
use bigquery::{
    BigQueryCdcWriter, BigQueryDatasetId, BigQueryDatasetRef, BigQueryDb, BigQueryDbOptions,
    BigQueryLocation, BigQueryResult, BigQueryStreamingWriteOptions, BigQueryStreamingWriter,
    BigQueryTableId, BigQueryTableRef, BigQueryTraceId, BigQueryWriteResponse,
};
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

const GOOGLE: &str = "https://bigquerystorage.googleapis.com";
const OPEN: &str = "open a write stream";
const APPEND: &str = "append rows";
/// The first and the longest pause before a connection is made anew after one that failed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What became of a row: `Err` with the class permanent when it is the row's fault.
pub(super) type Answer = Result<(), Error>;

/// Appends rows to one table.
pub(super) struct Appender {
    options: BigQueryOptions,
    table: BigQueryTableRef,
    client: OnceCell<BigQueryDb>,
    idle: Mutex<Vec<Connection>>,
    places: Semaphore,
    recovery: Mutex<Recovery>,
}

/// The pause after failures.
#[derive(Debug, Default)]
struct Recovery {
    pause: Duration,
    until: Option<Instant>,
}

/// A writer with its acknowledgements.
struct Connection {
    writer: Writer,
    answers: BoxStream<'static, BigQueryResult<BigQueryWriteResponse>>,
    /// Rows written so far, from which answers count.
    written: u64,
    plan: Arc<TablePlan>,
}

enum Writer {
    Append(BigQueryStreamingWriter<TypedRow>),
    Upsert(BigQueryCdcWriter<TypedRow>),
}

impl Writer {
    async fn write(&mut self, row: &TypedRow) -> BigQueryResult<()> {
        match self {
            Self::Append(writer) => writer.write(row).await,
            Self::Upsert(writer) => writer.upsert(row).await,
        }
    }

    async fn flush(&mut self) -> BigQueryResult<()> {
        match self {
            Self::Append(writer) => writer.flush().await,
            Self::Upsert(writer) => writer.flush().await,
        }
    }

    async fn finish(self) -> BigQueryResult<()> {
        match self {
            Self::Append(writer) => writer.finish().await.map(drop),
            Self::Upsert(writer) => writer.finish().await.map(drop),
        }
    }
}

impl Appender {
    pub(super) fn new(options: &BigQueryOptions) -> Result<Self, Error> {
        let invalid = |error: BigQueryError| Error::Settings(error.to_string());
        let dataset = BigQueryDatasetId::new(&options.dataset).map_err(invalid)?;
        let table = BigQueryTableId::new(&options.table).map_err(invalid)?;
        let dataset = BigQueryDatasetRef::new(&options.project, dataset).map_err(invalid)?;
        Ok(Self {
            table: dataset.table(table),
            client: OnceCell::new(),
            idle: Mutex::default(),
            places: Semaphore::new(options.max_in_flight),
            recovery: Mutex::default(),
            options: options.clone(),
        })
    }

    /// Stores `rows`; one answer per row. Rows that BigQuery refuses are left out and the others sent again, because
    /// one such row makes it refuse the whole request.
    ///
    /// # Errors
    /// When no row is known to be stored.
    pub(super) async fn append(&self, plan: &Arc<TablePlan>, rows: &[Row]) -> Result<Vec<Answer>, Error> {
        let Ok(_place) = self.places.acquire().await else {
            return Err(Error::Unavailable { call: APPEND, message: "the table is closed".to_owned() });
        };
        let mut answers: Vec<Option<Answer>> = rows.iter().map(|_| None).collect();
        let mut open: Vec<usize> = (0..rows.len()).collect();
        let mut whole = Ok(());
        while whole.is_ok() && !open.is_empty() {
            let (mut fates, result) = match self.connect(plan).await {
                Ok(connection) => self.pass(connection, rows, &open).await,
                Err(error) => (HashMap::new(), Err(error)),
            };
            let before = open.len();
            open.retain(|at| match fates.remove(at) {
                Some(Fate::Answered(answer)) => {
                    answers[*at] = Some(answer);
                    false
                }
                Some(Fate::NotTaken) | None => true,
            });
            whole = match result {
                Ok(()) if open.len() == before => Err(unnamed()),
                result => result,
            };
        }
        let is_stored = answers.iter().any(|answer| matches!(answer, Some(Ok(()))));
        match whole {
            Err(error) if !is_stored => Err(error),
            Err(error) => {
                Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(error.again()))).collect())
            }
            Ok(()) => {
                Ok(answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(unnamed()))).collect())
            }
        }
    }

    /// Sends the rows at the places `open` over `connection`, which is kept if it still works.
    async fn pass(
        &self,
        connection: Connection,
        rows: &[Row],
        open: &[usize],
    ) -> (HashMap<usize, Fate>, Result<(), Error>) {
        let limit = self.options.timeout;
        let mut pass = Pass { connection, rows, sent: Vec::with_capacity(open.len()), fates: HashMap::new() };
        let sent = timeout(limit, pass.send(open)).await;
        let sent = sent.unwrap_or(Err(Error::Deadline { call: APPEND, limit }));
        let result = pass.collect().and(sent);
        let Pass { mut connection, sent, fates, .. } = pass;
        connection.written += sent.len() as u64;
        match &result {
            Ok(()) => {
                *self.recovery.lock() = Recovery::default();
                self.idle.lock().push(connection);
            }
            // Nobody knows what is still on its way.
            Err(Error::Deadline { .. }) => {
                self.pause();
                drop(std::mem::take(&mut *self.idle.lock()));
            }
            Err(error) => {
                if !matches!(error, Error::Refused { .. } | Error::Changing(_)) {
                    self.pause();
                }
                // It may have failed already; then this says so once more.
                let _ = timeout(limit, connection.writer.finish()).await;
            }
        }
        (fates, result)
    }

    /// Ends the idle connections.
    pub(super) async fn close(&self) {
        self.drop_idle().await;
        self.places.close();
    }

    /// Ends the idle connections, whose schema may be out of date, side by side within one deadline.
    pub(super) async fn drop_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        let endings = idle.into_iter().map(|connection| connection.writer.finish());
        // Nothing is under way on them; a failure changes nothing.
        let _ = timeout(self.options.timeout, join_all(endings)).await;
    }

    async fn connect(&self, plan: &Arc<TablePlan>) -> Result<Connection, Error> {
        let found = self.idle.lock().pop();
        if let Some(connection) = found {
            if Arc::ptr_eq(&connection.plan, plan) {
                return Ok(connection);
            }
            let _ = timeout(self.options.timeout, connection.writer.finish()).await;
        }
        let until = self.recovery.lock().until;
        if let Some(until) = until {
            sleep_until(until).await;
        }
        let limit = self.options.timeout;
        let opened = timeout(limit, self.open(plan)).await;
        let opened = opened.unwrap_or(Err(Error::Deadline { call: OPEN, limit }));
        if opened.is_err() {
            self.pause();
        }
        opened
    }

    async fn open(&self, plan: &Arc<TablePlan>) -> Result<Connection, Error> {
        let client = self.client.get_or_try_init(|| self.client()).await?;
        let mut options =
            BigQueryStreamingWriteOptions::new().with_max_request_bytes(self.options.request_bytes());
        options.trace_id = BigQueryTraceId::new("millstream").ok();
        let table = self.table.clone();
        let (writer, answers) = match self.options.mode {
            WriteMode::Upsert => {
                let (writer, answers) =
                    client.create_cdc_writer(table, options).await.map_err(|e| call_error(OPEN, e))?;
                (Writer::Upsert(writer), answers)
            }
            _ => {
                let opened = client.create_streaming_writer_with_options(table, options).await;
                let (writer, answers) = opened.map_err(|e| call_error(OPEN, e))?;
                (Writer::Append(writer), answers)
            }
        };
        Ok(Connection { writer, answers, written: 0, plan: Arc::clone(plan) })
    }

    async fn client(&self) -> Result<BigQueryDb, Error> {
        let address = self.options.endpoints.as_ref().map_or(GOOGLE, |endpoints| &endpoints.grpc);
        let parsed = address.parse::<bigquery::url::Url>();
        let url = parsed.map_err(|error| Error::Settings(format!("`{address}` is no URL: {error}")))?;
        // The crate connects to the v2 API as well, which is spoken over REST here.
        let mut options = BigQueryDbOptions::new(self.options.project.clone())
            .with_bigquery_api_url(url.clone())
            .with_bigquery_storage_api_url(url);
        options.location = self.options.location.as_deref().and_then(|text| BigQueryLocation::new(text).ok());
        let made = BigQueryDb::with_options_auth(options, self.options.credentials.clone()).await;
        made.map_err(|error| call_error("connect to the Storage Write API", error))
    }

    fn pause(&self) {
        let mut recovery = self.recovery.lock();
        recovery.pause = (recovery.pause * 2).clamp(PAUSES.0, PAUSES.1);
        recovery.until = Some(Instant::now() + recovery.pause);
    }
}

/// What became of a row in one pass.
enum Fate {
    /// It has its answer.
    Answered(Answer),
    /// Nothing was wrong with it, but its request was not taken.
    NotTaken,
}

/// One pass of rows over one connection.
struct Pass<'r> {
    connection: Connection,
    rows: &'r [Row],
    /// Places in `rows` in the order in which the writer took them, the first as number `connection.written`.
    sent: Vec<usize>,
    fates: HashMap<usize, Fate>,
}

impl Pass<'_> {
    /// Sends the rows at the places `open` and waits until each request is answered.
    async fn send(&mut self, open: &[usize]) -> Result<(), Error> {
        for at in open.iter().copied() {
            let row = TypedRow { plan: Arc::clone(&self.connection.plan), row: self.rows[at].clone() };
            match self.connection.writer.write(&row).await {
                Ok(()) => self.sent.push(at),
                Err(BigQueryError::SerializeError(error)) => {
                    self.fates.insert(at, Fate::Answered(Err(row_error(&error))));
                }
                Err(error) => return Err(call_error(APPEND, error)),
            }
        }
        self.connection.writer.flush().await.map_err(|error| call_error(APPEND, error))
    }

    /// Takes the answers that are there; the first failure of a request that names no rows is an error.
    fn collect(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        while let Some(Some(answer)) = self.connection.answers.next().now_or_never() {
            match answer {
                Ok(done) => {
                    for at in self.places(done.first_row, done.row_count) {
                        self.fates.insert(at, Fate::Answered(Ok(())));
                    }
                }
                Err(BigQueryError::RowErrors(refused)) => self.note_refused(&refused),
                Err(error) if first.is_ok() => first = Err(call_error(APPEND, error)),
                Err(_) => {}
            }
        }
        first
    }

    fn note_refused(&mut self, refused: &BigQueryRowErrors) {
        for at in self.places(refused.first_row, refused.row_count) {
            self.fates.insert(at, Fate::NotTaken);
        }
        for row in &refused.errors {
            for at in self.places(row.row, 1) {
                let what = format!("{}: {}", row.code, without_values(&row.message));
                self.fates.insert(at, Fate::Answered(Err(Error::Row(what))));
            }
        }
    }

    fn places(&self, first: u64, count: u64) -> Vec<usize> {
        let from = first.saturating_sub(self.connection.written);
        let (Ok(from), Ok(count)) = (usize::try_from(from), usize::try_from(count)) else {
            return Vec::new();
        };
        self.sent.iter().skip(from).take(count).copied().collect()
    }
}

/// A row that the writer's encoder does not take.
fn row_error(error: &BigQuerySerializationError) -> Error {
    match error.kind {
        CodecKind::UnknownField | CodecKind::TypeMismatch | CodecKind::UnsupportedType => Error::Changing(
            format!("its column `{}` is not known to the Storage Write API as it was", error.path),
        ),
        kind => row_refused(kind, &error.path, &without_values(&error.message)),
    }
}

fn call_error(call: &'static str, error: BigQueryError) -> Error {
    match error {
        BigQueryError::DataNotFoundError(_) => Error::Missing {
            what: "the table".to_owned(),
            remedy: "create it, or set another table".to_owned(),
        },
        BigQueryError::SchemaMismatchError(error) => {
            Error::Changing(in_words(&error.public.code, &error.details))
        }
        BigQueryError::InvalidParametersError(error) => {
            Error::Settings(format!("{}: {}", error.public.field, error.public.error))
        }
        BigQueryError::DatabaseError(error) => {
            let message = in_words(&error.public.code, &error.details);
            match &*error.public.code {
                _ if error.retry_possible => Error::Unavailable { call, message },
                "PermissionDenied" | "Unauthenticated" => Error::Denied { call, message },
                "InvalidArgument" => Error::Refused { call, message },
                _ => Error::Unavailable { call, message },
            }
        }
        BigQueryError::SystemError(error) => {
            Error::Unavailable { call, message: in_words(&error.public.code, &error.message) }
        }
        BigQueryError::WriteStreamError(error) => {
            Error::Unavailable { call, message: in_words(&error.public.code, &error.details) }
        }
        BigQueryError::DataConflictError(error) => {
            Error::Unavailable { call, message: in_words(&error.public.code, &error.details) }
        }
        other => Error::Unavailable { call, message: without_values(&other.to_string()) },
    }
}

/// BigQuery refused a request for rows that it did not name.
fn unnamed() -> Error {
    Error::Refused { call: APPEND, message: "rows were refused without being named".to_owned() }
}

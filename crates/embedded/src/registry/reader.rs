//! Reading the registry.

use super::{Device, changes, schema};
use crate::{Error, sqlite};
use cache::{FetchError, FetchResult, Fetched, Fetcher};
use futures_util::future::{BoxFuture, FutureExt};
use messagepipeline::{Enrichment, ErrorClass, Shutdown, StageError};
use parking_lot::Mutex;
use rusqlite::{Connection, params};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// How the registry is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistrySettings {
    /// How long a look-up may take before it fails and is tried again.
    pub deadline: Duration,
    /// Look-ups at the same time; each has a connection and a thread while it runs. At least 1.
    pub readers: usize,
    /// Time between two looks for changes.
    pub poll: Duration,
}

impl Default for RegistrySettings {
    /// 5 seconds, 2 readers, a look per second.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(5), readers: 2, poll: Duration::from_secs(1) }
    }
}

/// The device registry as a source of truth for look-ups. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Registry {
    path: Arc<Path>,
    settings: RegistrySettings,
    /// Connections that no look-up uses at the moment; the permits bound how many there are in all.
    idle: Arc<Mutex<Vec<Connection>>>,
    permits: Arc<Semaphore>,
    changes: Arc<watch::Sender<u64>>,
}

impl Registry {
    /// The registry at `path`; creates it where there is none.
    ///
    /// # Errors
    /// When the file cannot be opened or is no registry of a known format.
    pub fn open(path: impl Into<PathBuf>, settings: RegistrySettings) -> Result<Self, Error> {
        let path = path.into();
        drop(sqlite::open(&path, &schema::SCHEMA)?);
        let first = sqlite::open_reader(&path, &schema::SCHEMA)?;
        Ok(Self {
            path: path.into(),
            settings,
            idle: Arc::new(Mutex::new(vec![first])),
            permits: Arc::new(Semaphore::new(settings.readers.max(1))),
            changes: Arc::new(watch::Sender::new(0)),
        })
    }

    /// One device.
    ///
    /// # Errors
    /// When the registry cannot be read in time.
    pub async fn get(&self, device_id: &str) -> Result<Option<Device>, Error> {
        let device_id = device_id.to_owned();
        self.read(move |connection| schema::get(connection, &device_id)).await
    }

    /// Devices in the order of their ids, those after `after`, at most `limit`.
    ///
    /// # Errors
    /// When the registry cannot be read in time.
    pub async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<Device>, Error> {
        // No device has an empty id.
        let after = after.unwrap_or_default().to_owned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(move |connection| {
            let mut statement = connection.prepare_cached(schema::LIST)?;
            statement.query_map(params![after, limit], schema::device)?.collect()
        })
        .await
    }

    /// How many devices there are.
    ///
    /// # Errors
    /// When the registry cannot be read in time.
    pub async fn count(&self) -> Result<u64, Error> {
        let count = |connection: &Connection| {
            connection.query_row("SELECT count(*) FROM devices", [], |row| row.get::<_, i64>(0))
        };
        Ok(self.read(count).await?.unsigned_abs())
    }

    /// Moves whenever [`Registry::watch`] saw a change, and once when it begins.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Looks for changes that anybody committed, this process or another, until the shutdown begins.
    pub async fn watch(&self, shutdown: Shutdown) {
        let watching = changes::watch(Arc::clone(&self.path), self.settings.poll, &self.changes);
        tokio::select! {
            biased;
            () = shutdown.begun() => {}
            () = watching => {}
        }
    }

    /// Runs `job` on a reading connection, on a thread that may block.
    async fn read<T, F>(&self, job: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (registry, deadline) = (self.clone(), self.settings.deadline);
        let work = async {
            let closed = |_| Error::Closed { path: self.path.to_path_buf() };
            let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(closed)?;
            let blocking = tokio::task::spawn_blocking(move || {
                // Held until the work is done, also when nobody waits for it any more.
                let _permit = permit;
                registry.read_now(job)
            });
            blocking.await.unwrap_or_else(|_| Err(Error::Panicked { path: self.path.to_path_buf() }))
        };
        timeout(deadline, work).await.unwrap_or_else(|_| {
            let detail = format!("{} did not answer within {deadline:?}", self.path.display());
            Err(Error::refused(ErrorClass::Transient, "registry-deadline", detail))
        })
    }

    fn read_now<T>(&self, job: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Error> {
        let idle = self.idle.lock().pop();
        let connection = match idle {
            Some(connection) => connection,
            None => sqlite::open_reader(&self.path, &schema::SCHEMA)?,
        };
        // A connection that failed is not used again: the next look-up opens the file anew.
        let result = job(&connection).map_err(|error| Error::from(error).at(&self.path))?;
        self.idle.lock().push(connection);
        Ok(result)
    }
}

impl Fetcher<Enrichment> for Registry {
    fn fetch<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Vec<FetchResult<Enrichment>>> {
        let wanted: Vec<Box<str>> = keys.iter().map(|key| Box::from(*key)).collect();
        let look_up = move |connection: &Connection| -> rusqlite::Result<Vec<_>> {
            let devices = wanted.iter().map(|key| schema::get(connection, key));
            devices.map(|device| Ok(device?.map(Device::into_enrichment))).collect()
        };
        async move {
            if keys.is_empty() {
                return Vec::new();
            }
            match self.read(look_up).await {
                Ok(found) => found.into_iter().map(|data| Ok(Fetched::new(data))).collect(),
                Err(error) => vec![Err(FetchError::from(StageError::from(error))); keys.len()],
            }
        }
        .boxed()
    }
}

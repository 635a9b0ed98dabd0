//! Noticing that somebody wrote.

use super::schema;
use crate::{Error, sqlite};
use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Moves `changes` for every commit, or group of commits, by any connection of any process; never ends.
///
/// `PRAGMA data_version` changes when a connection other than the asking one has committed
/// (sqlite.org/pragma.html#pragma_data_version). Before the first look and during an outage a change is assumed.
pub(super) async fn watch(path: Arc<Path>, poll: Duration, changes: &watch::Sender<u64>) {
    let mut connection = None;
    let mut seen = None;
    loop {
        let looked = look(&path, connection.take()).await;
        match looked {
            Ok((open, version)) => {
                connection = Some(open);
                if seen.replace(version) != Some(version) {
                    changes.send_modify(|count| *count += 1);
                }
            }
            Err(error) if seen != Some(OUTAGE) => {
                tracing::warn!(%error, "the device registry cannot be asked for changes");
                seen = Some(OUTAGE);
            }
            Err(_) => {}
        }
        sleep(poll).await;
    }
}

/// Stands for a version that could not be read; SQLite's are positive.
const OUTAGE: i64 = -1;

async fn look(path: &Arc<Path>, connection: Option<Connection>) -> Result<(Connection, i64), Error> {
    let path = Arc::clone(path);
    let file = Arc::clone(&path);
    let blocking = tokio::task::spawn_blocking(move || {
        let connection = match connection {
            Some(connection) => connection,
            None => sqlite::open_reader(&path, &schema::SCHEMA)?,
        };
        let version = connection.pragma_query_value(None, "data_version", |row| row.get(0));
        let version = version.map_err(|error| Error::from(error).at(&path))?;
        Ok((connection, version))
    });
    blocking.await.unwrap_or_else(|_| Err(Error::Panicked { path: file.to_path_buf() }))
}

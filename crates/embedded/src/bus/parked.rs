//! Messages of unknown devices, waiting in the bus's file.

use super::Bus;
use super::rows::{RowReader, Rows, id_of, signed, unsigned};
use crate::Error;
use crate::sqlite::Writer;
use enrichment::{Parked, ParkingLot, Placed};
use futures_util::future::BoxFuture;
use messagepipeline::{MessageId, StageError, Timestamp};
use rusqlite::{Connection, Statement, params};

/// The parking lot in `bus.db`, bounded by [`super::BusOptions::max_parked`].
#[derive(Clone, Debug)]
pub struct BusParkingLot {
    writer: Writer,
    max: u64,
}

impl Bus {
    /// Where messages of unknown devices wait.
    #[must_use]
    pub fn parking_lot(&self) -> BusParkingLot {
        BusParkingLot { writer: self.writer.clone(), max: self.options.max_parked }
    }
}

impl BusParkingLot {
    fn call<T, F>(&self, bytes: usize, work: F) -> BoxFuture<'_, Result<T, StageError>>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        Box::pin(async move { Ok(self.writer.call_weighing(bytes, work, |_| ()).await?) })
    }
}

/// What [`read_all`] expects; the first column stands where a log has its sequence number.
const COLUMNS: &str = "0, id, publish_time, attributes, enrichment, payload, key, since";

impl ParkingLot for BusParkingLot {
    fn park(&self, messages: Vec<Parked>) -> BoxFuture<'_, Result<Vec<Placed>, StageError>> {
        let bytes = messages.iter().map(|parked| parked.message.weight() + parked.key.len()).sum();
        let max = self.max;
        self.call(bytes, move |connection| {
            let mut count = count(connection)?;
            let mut placed = Vec::with_capacity(messages.len());
            for parked in &messages {
                let new = if count < max { insert(connection, parked)? } else { false };
                count += u64::from(new);
                let held = new || is_parked(connection, parked.message.id)?;
                placed.push(if held { Placed::Held } else { Placed::Full });
            }
            Ok(placed)
        })
    }

    fn keys<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Box<str>>, StageError>> {
        let after = after.map(str::to_owned);
        self.call(0, move |connection| {
            let sql = "SELECT DISTINCT key FROM parked WHERE ?1 IS NULL OR key > ?1 ORDER BY key LIMIT ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let keys = statement.query_map(params![after, signed(limit as u64)], |row| row.get(0))?;
            Ok(keys.collect::<rusqlite::Result<Vec<Box<str>>>>()?)
        })
    }

    fn of_keys(&self, keys: Vec<Box<str>>, limit: usize) -> BoxFuture<'_, Result<Vec<Parked>, StageError>> {
        self.call(0, move |connection| {
            // The keys as one JSON array: a list of any length for one prepared statement.
            let sql = format!(
                "SELECT {COLUMNS} FROM parked WHERE key IN (SELECT value FROM json_each(?1)) \
                 ORDER BY since, id LIMIT ?2"
            );
            let keys: serde_json::Value = keys.iter().map(|key| &**key).collect();
            let mut statement = connection.prepare_cached(&sql)?;
            Ok(read_all(&mut statement, params![keys.to_string(), signed(limit as u64)])?)
        })
    }

    fn parked_before(
        &self,
        cutoff: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Parked>, StageError>> {
        self.call(0, move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM parked WHERE since < ?1 ORDER BY since, id LIMIT ?2");
            let mut statement = connection.prepare_cached(&sql)?;
            Ok(read_all(&mut statement, params![cutoff.as_micros(), signed(limit as u64)])?)
        })
    }

    fn remove(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<(), StageError>> {
        self.call(0, move |connection| {
            let mut statement = connection.prepare_cached("DELETE FROM parked WHERE id = ?1")?;
            for id in &ids {
                statement.execute([id.as_bytes().as_slice()])?;
            }
            Ok(())
        })
    }

    fn count(&self) -> BoxFuture<'_, Result<u64, StageError>> {
        self.call(0, |connection| Ok(count(connection)?))
    }
}

fn count(connection: &Connection) -> rusqlite::Result<u64> {
    connection.prepare_cached("SELECT count(*) FROM parked")?.query_row([], |row| row.get(0)).map(unsigned)
}

fn is_parked(connection: &Connection, id: MessageId) -> rusqlite::Result<bool> {
    connection.prepare_cached("SELECT 1 FROM parked WHERE id = ?1")?.exists([id.as_bytes().as_slice()])
}

/// Whether it was not there before.
fn insert(connection: &Connection, parked: &Parked) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO parked (id, key, since, publish_time, attributes, enrichment, payload) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING";
    let message = &parked.message;
    let inserted = connection.prepare_cached(sql)?.execute(params![
        message.id.as_bytes().as_slice(),
        parked.key,
        parked.since.as_micros(),
        message.publish_time.as_micros(),
        &message.attributes.as_bytes()[..],
        message.enrichment.text(),
        &message.payload[..],
    ])?;
    Ok(inserted > 0)
}

fn read_all(statement: &mut Statement<'_>, params: impl rusqlite::Params) -> rusqlite::Result<Vec<Parked>> {
    let mut found = statement.query(params)?;
    let (mut reader, mut rows, mut waits) = (RowReader::default(), Rows::default(), Vec::new());
    while let Some(row) = found.next()? {
        reader.read(row, &mut rows)?;
        let key: Box<str> = row.get(6)?;
        waits.push((key, Timestamp::from_micros(row.get(7)?)));
    }
    let messages = rows.into_messages()?.into_iter().map(|(_, message)| message);
    Ok(messages.zip(waits).map(|(message, (key, since))| Parked { key, message, since }).collect())
}

/// Ids of parked messages in order, those after `after`, at most `limit`.
pub(super) fn ids_after(
    connection: &Connection,
    after: &[u8],
    limit: usize,
) -> rusqlite::Result<Vec<MessageId>> {
    let mut statement =
        connection.prepare_cached("SELECT id FROM parked WHERE id > ?1 ORDER BY id LIMIT ?2")?;
    let ids = statement.query_map(params![after, signed(limit as u64)], |row| id_of(row.get_ref(0)?))?;
    ids.collect()
}

//! Sessions of the MQTT endpoint in the bus's file, so that their writes share commits with the messages'.

use super::Bus;
use super::rows::{id_of, signed, unsigned};
use crate::Error;
use crate::sqlite::Writer;
use futures_util::future::BoxFuture;
use messagepipeline::StageError;
use mqttconverter::endpoint::{Held, SessionKey, SessionStore, StoredSession};
use rusqlite::{Connection, OptionalExtension, params};
use std::time::Duration;

/// The session store in `bus.db`.
///
/// A message whose packet identifier is held keeps its id in the ledger, whatever its age, because its device may
/// still send it again.
#[derive(Clone, Debug)]
pub struct BusSessions {
    writer: Writer,
}

impl Bus {
    /// Where the MQTT endpoint keeps its sessions.
    #[must_use]
    pub fn sessions(&self) -> BusSessions {
        BusSessions { writer: self.writer.clone() }
    }
}

impl BusSessions {
    fn call<T, F>(&self, bytes: usize, work: F) -> BoxFuture<'_, Result<T, StageError>>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    {
        Box::pin(async move { Ok(self.writer.call_weighing(bytes, work, |_| ()).await?) })
    }
}

impl SessionStore for BusSessions {
    fn load(&self) -> BoxFuture<'_, Result<Vec<StoredSession>, StageError>> {
        self.call(0, |connection| Ok(load(connection)?))
    }

    fn open<'a>(
        &'a self,
        client_id: &'a str,
        expiry: Duration,
        clean: bool,
    ) -> BoxFuture<'a, Result<SessionKey, StageError>> {
        let client_id = client_id.to_owned();
        self.call(client_id.len(), move |connection| {
            if clean {
                connection
                    .prepare_cached("DELETE FROM mqtt_sessions WHERE client_id = ?1")?
                    .execute([&client_id])?;
            }
            let sql = "INSERT INTO mqtt_sessions (client_id, expiry) VALUES (?1, ?2) \
                       ON CONFLICT (client_id) DO UPDATE SET expiry = excluded.expiry RETURNING key";
            let key = connection
                .prepare_cached(sql)?
                .query_row(params![client_id, signed(expiry.as_secs())], |row| row.get(0))?;
            Ok(SessionKey(key))
        })
    }

    fn update(
        &self,
        session: SessionKey,
        held: Vec<Held>,
        released: Vec<u16>,
    ) -> BoxFuture<'_, Result<(), StageError>> {
        let bytes = held.len() * size_of::<Held>() + released.len() * size_of::<u16>();
        self.call(bytes, move |connection| update(connection, session, &held, &released))
    }

    fn end(&self, sessions: Vec<SessionKey>) -> BoxFuture<'_, Result<(), StageError>> {
        self.call(0, move |connection| {
            let mut delete = connection.prepare_cached("DELETE FROM mqtt_sessions WHERE key = ?1")?;
            for session in &sessions {
                delete.execute([session.0])?;
            }
            Ok(())
        })
    }
}

fn load(connection: &Connection) -> rusqlite::Result<Vec<StoredSession>> {
    let mut statement =
        connection.prepare("SELECT key, client_id, expiry FROM mqtt_sessions ORDER BY key")?;
    let rows = statement.query_map([], |row| {
        Ok(StoredSession {
            key: SessionKey(row.get(0)?),
            client_id: row.get(1)?,
            expiry: Duration::from_secs(unsigned(row.get(2)?)),
            held: Vec::new(),
        })
    })?;
    let mut sessions = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut statement = connection
        .prepare("SELECT session, packet_id, message_id, fingerprint FROM mqtt_held ORDER BY session")?;
    let mut rows = statement.query([])?;
    // Both in the order of the key, so one walk over the sessions meets every row.
    let mut walk = sessions.iter_mut().peekable();
    while let Some(row) = rows.next()? {
        let key = SessionKey(row.get(0)?);
        while walk.next_if(|session| session.key < key).is_some() {}
        let Some(session) = walk.peek_mut().filter(|session| session.key == key) else { continue };
        session.held.push(Held {
            packet_id: row.get(1)?,
            message_id: id_of(row.get_ref(2)?)?,
            fingerprint: row.get::<_, i64>(3)?.cast_unsigned(),
        });
    }
    Ok(sessions)
}

fn update(
    connection: &Connection,
    session: SessionKey,
    held: &[Held],
    released: &[u16],
) -> Result<(), Error> {
    let mut exists = connection.prepare_cached("SELECT 1 FROM mqtt_sessions WHERE key = ?1")?;
    if exists.query_row([session.0], |_| Ok(())).optional()?.is_none() {
        return Err(Error::refused(
            messagepipeline::ErrorClass::Transient,
            "session-ended",
            "the MQTT session has ended or was started anew; the device connects again",
        ));
    }
    let sql = "INSERT INTO mqtt_held VALUES (?1, ?2, ?3, ?4) ON CONFLICT (session, packet_id) DO UPDATE SET \
               message_id = excluded.message_id, fingerprint = excluded.fingerprint";
    let mut insert = connection.prepare_cached(sql)?;
    for held in held {
        let id = held.message_id.as_bytes().as_slice();
        insert.execute(params![session.0, held.packet_id, id, held.fingerprint.cast_signed()])?;
    }
    let mut delete =
        connection.prepare_cached("DELETE FROM mqtt_held WHERE session = ?1 AND packet_id = ?2")?;
    for packet_id in released {
        delete.execute(params![session.0, packet_id])?;
    }
    Ok(())
}

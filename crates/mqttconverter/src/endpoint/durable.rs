//! The durable side of sessions: what is written to the session store, and when.
//!
//! A store that is asked writes ahead: a packet identifier of QoS 2 is bound to its message id before the message
//! enters the pipeline, and is forgotten before PUBCOMP. Whatever instant the process dies at, a PUBLISH that comes
//! again is then published under the id that its first copy had or may have had, and a bus that knows an id stores
//! nothing twice. So the store and the bus need no common transaction.
//!
//! For one session calls are made one after the other, and what they say is taken from the window within their turn:
//! a connection that lost its session meanwhile writes nothing that the session has outgrown.

use super::intake::Changes;
use super::reason::Reason;
use super::session::{Attachment, Kept, Session};
use super::shared::Shared;
use super::store::{Held, SessionStore};
use messagepipeline::StageError;
use std::time::Duration;
use tokio::time::timeout;

/// Longest time that the store is waited for.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);

/// Sessions forgotten in one call, so that none gets long.
const ENDED_AT_ONCE: usize = 1_000;

impl Shared {
    /// Sees to it that the store knows the session of `attachment` with `expiry`, and nothing of an earlier one of the
    /// same client. Writes nothing when it knows already.
    pub(super) async fn remember(&self, attachment: &Attachment, expiry: Duration) -> Result<(), Reason> {
        let Some(store) = &self.store else { return Ok(()) };
        let session = &*attachment.session;
        let _turn = session.store_turn.lock().await;
        let kept = {
            let state = session.state.lock();
            if state.epoch != attachment.epoch {
                return Err(Reason::TakenOver);
            }
            state.kept
        };
        if expiry.is_zero() {
            return self.forget_kept(&**store, session, kept).await;
        }
        let is_stale = kept.is_some_and(|kept| kept.is_stale);
        if kept.is_some_and(|kept| kept.expiry == expiry) && !is_stale {
            return Ok(());
        }
        // What this process does not know of must not be there either, nor an earlier session that has ended.
        let clean = is_stale || kept.is_none();
        let key = within_deadline(store.open(&session.client_id, expiry, clean))
            .await
            .map_err(|error| self.store_failed(&error))?;
        let mut state = session.state.lock();
        // A CONNECT that came meanwhile may have begun the session anew, which the store does not know yet.
        let is_stale = state.epoch != attachment.epoch && state.kept.is_some_and(|kept| kept.is_stale);
        state.kept = Some(Kept { key, expiry, is_stale });
        drop(state);
        if let Some(ended) = self.sessions.ended_of(&session.client_id) {
            self.sessions.ended(&session.client_id, ended);
        }
        Ok(())
    }

    /// Has the store forget what it has of a client whose session ends with its connection: else it would come back
    /// after a crash, which ends the connection too.
    async fn forget_kept(
        &self,
        store: &dyn SessionStore,
        session: &Session,
        kept: Option<Kept>,
    ) -> Result<(), Reason> {
        let ended = self.sessions.ended_of(&session.client_id);
        let keys: Vec<_> = kept.map(|kept| kept.key).into_iter().chain(ended).collect();
        if keys.is_empty() {
            return Ok(());
        }
        within_deadline(store.end(keys)).await.map_err(|error| self.store_failed(&error))?;
        session.state.lock().kept = None;
        if let Some(ended) = ended {
            self.sessions.ended(&session.client_id, ended);
        }
        Ok(())
    }

    /// Makes `changes` durable, as far as the session has not outgrown them; nothing to do for a session that ends
    /// with its connection. Afterwards the window knows what became of them.
    pub(super) async fn keep(&self, session: &Session, changes: &Changes) -> Result<(), StageError> {
        // Also over what the window is told, so that a PUBREL on a new connection is judged by what became of the first.
        let _turn = session.store_turn.lock().await;
        let result = match &self.store {
            Some(store) => update(&**store, session, changes).await,
            None => Ok(()),
        };
        let mut state = session.state.lock();
        let before = state.window.exchanges().len();
        let exchanges = state.window.exchanges();
        if result.is_ok() {
            changes.released.iter().for_each(|released| exchanges.released(released));
        } else {
            changes.released.iter().for_each(|released| exchanges.keep(released));
            changes.held.iter().for_each(|held| exchanges.abandon(held));
        }
        self.sessions.recount(before, &mut state.window);
        result
    }

    /// Has the store forget sessions that are over.
    pub(super) async fn forget_ended(&self) -> Result<(), StageError> {
        let Some(store) = &self.store else { return Ok(()) };
        // Whoever has the turn sees to all.
        let Ok(_turn) = self.ending.try_lock() else { return Ok(()) };
        loop {
            let ended = self.sessions.some_ended(ENDED_AT_ONCE);
            if ended.is_empty() {
                return Ok(());
            }
            within_deadline(store.end(ended.iter().map(|(_, key)| *key).collect())).await?;
            for (client_id, key) in ended {
                self.sessions.ended(&client_id, key);
            }
        }
    }

    /// Tells that the store failed; the client hears that the server is unavailable.
    pub(super) fn store_failed(&self, error: &StageError) -> Reason {
        if self.telemetry.refused_for("session-store-failed") {
            tracing::warn!(%error, "cannot keep MQTT sessions; clients with such sessions are turned away");
        }
        Reason::ServerUnavailable
    }
}

async fn update(store: &dyn SessionStore, session: &Session, changes: &Changes) -> Result<(), StageError> {
    let (key, held, released) = {
        let mut state = session.state.lock();
        let Some(kept) = state.kept.filter(|kept| !kept.is_stale) else { return Ok(()) };
        let exchanges = state.window.exchanges();
        let held: Vec<Held> = changes.held.iter().filter(|held| exchanges.holds(held)).copied().collect();
        let released = changes.released.iter().filter(|released| exchanges.is_to_release(released));
        let released: Vec<u16> = released.map(|released| released.packet_id).collect();
        (kept.key, held, released)
    };
    if held.is_empty() && released.is_empty() {
        return Ok(());
    }
    within_deadline(store.update(key, held, released)).await
}

async fn within_deadline<T>(call: impl Future<Output = Result<T, StageError>>) -> Result<T, StageError> {
    timeout(STORE_TIMEOUT, call).await.unwrap_or_else(|_| {
        let detail = format!("the session store did not answer within {STORE_TIMEOUT:?}");
        Err(StageError::transient("session-store-timeout", detail))
    })
}

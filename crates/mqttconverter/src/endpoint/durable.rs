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
        // Else what it still has of an earlier session might come back after a crash.
        while self.sessions.has_ended() {
            self.forget_ended().await.map_err(|error| self.store_failed(&error))?;
        }
        let session = &*attachment.session;
        let _turn = session.store_turn.lock().await;
        let kept = {
            let state = session.state.lock();
            if state.epoch != attachment.epoch {
                return Err(Reason::TakenOver);
            }
            state.kept
        };
        let is_stale = kept.is_some_and(|kept| kept.is_stale);
        // What this process does not know of must not be there either.
        let clean = is_stale || kept.is_none();
        // A session that is to end with its connection needs no write before that.
        let is_as_kept = kept.map_or(expiry.is_zero(), |kept| expiry.is_zero() || kept.expiry == expiry);
        if is_as_kept && !is_stale {
            return Ok(());
        }
        let expiry = if expiry.is_zero() { kept.map_or(expiry, |kept| kept.expiry) } else { expiry };
        let key = within_deadline(store.open(&session.client_id, expiry, clean))
            .await
            .map_err(|error| self.store_failed(&error))?;
        session.state.lock().kept = Some(Kept { key, expiry, is_stale: false });
        Ok(())
    }

    /// Makes `changes` durable, as far as the session has not outgrown them; nothing to do for a session that ends
    /// with its connection. Afterwards the window knows what became of them.
    pub(super) async fn keep(&self, session: &Session, changes: &Changes) -> Result<(), StageError> {
        let result = match &self.store {
            Some(store) => update(&**store, session, changes).await,
            None => Ok(()),
        };
        let mut state = session.state.lock();
        let before = state.window.exchanges().len();
        let exchanges = state.window.exchanges();
        if result.is_ok() {
            changes.released.iter().for_each(|packet_id| exchanges.released(*packet_id));
        } else {
            changes.released.iter().for_each(|packet_id| exchanges.keep(*packet_id));
            changes.held.iter().for_each(|held| exchanges.abandon(held));
        }
        self.sessions.recount(before, &mut state.window);
        result
    }

    /// Has the store forget sessions that are over.
    pub(super) async fn forget_ended(&self) -> Result<(), StageError> {
        let Some(store) = &self.store else { return Ok(()) };
        let _turn = self.ending.lock().await;
        while self.sessions.has_ended() {
            let keys = self.sessions.take_ended(ENDED_AT_ONCE);
            let result = within_deadline(store.end(keys.clone())).await;
            self.sessions.ended(keys, result.is_ok());
            result?;
        }
        Ok(())
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
    let _turn = session.store_turn.lock().await;
    let (key, held, released) = {
        let mut state = session.state.lock();
        let Some(kept) = state.kept.filter(|kept| !kept.is_stale) else { return Ok(()) };
        let exchanges = state.window.exchanges();
        let held: Vec<Held> = changes.held.iter().filter(|held| exchanges.holds(held)).copied().collect();
        let released = changes.released.iter().filter(|id| exchanges.is_releasing(**id)).copied().collect();
        (kept.key, held, released)
    };
    let is_outgrown = held.is_empty() && Vec::is_empty(&released);
    if is_outgrown {
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

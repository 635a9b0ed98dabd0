//! What a connection holds of its session, and what the session tells it.

use super::super::reason::Reason;
use super::super::window::{Answer, Sequence, Window};
use super::Session;
use messagepipeline::Token;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;

/// How things stand for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Standing {
    Good,
    /// Another connection has the session.
    TakenOver,
    /// The pipeline did not take a message, which must be sent again.
    Failed,
}

/// What became of a session after a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Sequel {
    /// Its client came back to it.
    Resumed,
    /// Its client began a new one, or it was forgotten.
    Ended,
}

/// What a session tells a connection, also one that has ended.
#[derive(Debug, Default)]
pub(super) struct Bond {
    pub(super) woken: Notify,
    /// The first there was.
    sequel: OnceLock<Sequel>,
}

impl Bond {
    pub(super) fn tell(&self, sequel: Sequel) {
        // Only the first counts.
        let _ = self.sequel.set(sequel);
        self.woken.notify_one();
    }
}

/// A connection's hold on its session.
pub(in super::super) struct Attachment {
    pub(in super::super) session: Arc<Session>,
    pub(in super::super) epoch: u32,
    pub(super) bond: Arc<Bond>,
}

impl Attachment {
    pub(in super::super) fn client_id(&self) -> &Arc<str> {
        &self.session.client_id
    }

    pub(in super::super) fn token(&self, sequence: Sequence) -> Token {
        self.session.place.token(sequence)
    }

    /// Works on the window; `None` when another connection has the session.
    pub(in super::super) fn with_window<T>(&self, work: impl FnOnce(&mut Window) -> T) -> Option<T> {
        let mut state = self.session.state.lock();
        (state.epoch == self.epoch).then(|| work(&mut state.window))
    }

    /// Hands the replies that may be written to `write`.
    pub(in super::super) fn collect(&self, write: impl FnMut(Answer)) -> Standing {
        let mut state = self.session.state.lock();
        if state.epoch != self.epoch {
            return Standing::TakenOver;
        }
        state.window.write_ready(write);
        if state.failed { Standing::Failed } else { Standing::Good }
    }

    /// Until something happens: verdicts, another connection, or the session's end.
    pub(in super::super) async fn woken(&self) {
        self.bond.woken.notified().await;
    }

    /// The CONNECT is accepted: its client is back. The session is to be remembered for `expiry` after it. Not so if
    /// another connection has the session already.
    pub(in super::super) fn admit(&self, expiry: Duration) -> Result<(), Reason> {
        let mut state = self.session.state.lock();
        if state.epoch != self.epoch {
            return Err(Reason::TakenOver);
        }
        state.expiry = expiry;
        state.is_admitted = true;
        if let Some(former) = state.former.take() {
            former.tell(Sequel::Resumed);
        }
        Ok(())
    }

    /// The session is to be remembered for `expiry` after this connection.
    pub(in super::super) fn set_expiry(&self, expiry: Duration) {
        let mut state = self.session.state.lock();
        if state.epoch == self.epoch {
            state.expiry = expiry;
        }
    }

    /// What became of the session after this connection, once that is known.
    pub(in super::super) fn sequel(&self) -> Option<Sequel> {
        self.bond.sequel.get().copied()
    }
}

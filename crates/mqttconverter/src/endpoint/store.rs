//! Where sessions and what is half done at QoS 2 are kept over a restart.

use futures_util::future::BoxFuture;
use messagepipeline::{MessageId, StageError};
use std::time::Duration;

/// A remembered session in a [`SessionStore`]. A session that starts anew has another key, so that what is written
/// late for the old one cannot reach the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionKey(pub i64);

/// A PUBLISH at QoS 2 that was taken and whose PUBREL has not come: which message a packet identifier stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Packet identifier, not 0.
    pub packet_id: u16,
    /// The id under which the message is published, however often the PUBLISH comes.
    pub message_id: MessageId,
    /// Over topic, payload and properties, the same in every process. Another one under the same packet identifier
    /// says that the device has lost its memory, and that this is another message.
    pub fingerprint: u64,
}

/// A session as it was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSession {
    /// Its key.
    pub key: SessionKey,
    /// Client identifier.
    pub client_id: Box<str>,
    /// How long it outlives its connection, in whole seconds.
    pub expiry: Duration,
    /// What is half done, in any order.
    pub held: Vec<Held>,
}

/// Keeps sessions that outlive their connections. Whatever is answered is durable.
///
/// Callers see to it that calls for one session do not overlap.
pub trait SessionStore: Send + Sync {
    /// All sessions, at start.
    fn load(&self) -> BoxFuture<'_, Result<Vec<StoredSession>, StageError>>;

    /// Remembers the session of `client_id`, or its changed `expiry` (kept in whole seconds). With `clean` what was
    /// kept of an earlier session of that client is forgotten, and the key is a new one.
    fn open<'a>(
        &'a self,
        client_id: &'a str,
        expiry: Duration,
        clean: bool,
    ) -> BoxFuture<'a, Result<SessionKey, StageError>>;

    /// Remembers `held`, in place of what the same packet identifiers stood for, and forgets `released`, all or
    /// nothing. The two have no packet identifier in common; one that is not there is released already.
    ///
    /// An error if the session has ended or was started anew: then nothing is changed.
    fn update(
        &self,
        session: SessionKey,
        held: Vec<Held>,
        released: Vec<u16>,
    ) -> BoxFuture<'_, Result<(), StageError>>;

    /// Forgets sessions; one that is not there is forgotten already.
    fn end(&self, sessions: Vec<SessionKey>) -> BoxFuture<'_, Result<(), StageError>>;
}

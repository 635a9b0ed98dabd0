//! One connection to Redis, a deadline on every call, and the breaker before it.

use crate::breaker::{Admission, Breaker};
use crate::client::{Connection, Failure, Server};
use crate::{Error, RedisOptions, keys};
use parking_lot::Mutex;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// A connection with what was found out when it was made. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) connection: Connection,
    /// What the keys of the current generation begin with.
    pub(crate) prefix: Arc<str>,
    pub(crate) generation: u64,
    /// Which connection it is, counted from the first one.
    number: u64,
}

/// A connection just made, and the generation it begins with.
struct Connected {
    connection: Connection,
    generation: u64,
    /// Whether the generation was begun for it, so that it holds nothing yet.
    fresh: bool,
}

/// Where calls to Redis go through.
pub(crate) struct Link {
    server: Server,
    timeout: Duration,
    namespace: String,
    version: u32,
    /// Where the generation stands; `None` for keys without one.
    generation_key: Option<String>,
    state: Mutex<State>,
}

struct State {
    breaker: Breaker,
    session: Option<Session>,
    next_number: u64,
    last_failure: String,
    /// A removal failed, so entries may be there that must not be read: the next connection begins a new generation.
    distrusted: bool,
}

impl Link {
    /// A link for entries, with generations.
    pub(crate) fn for_entries(options: &RedisOptions) -> Result<Self, Error> {
        Self::new(options, Some(keys::generation(&options.namespace, options.value_version)))
    }

    /// A link for keys without generations.
    pub(crate) fn plain(options: &RedisOptions) -> Result<Self, Error> {
        Self::new(options, None)
    }

    fn new(options: &RedisOptions, generation_key: Option<String>) -> Result<Self, Error> {
        options.check_namespace()?;
        let state = State {
            breaker: Breaker::new(Instant::now()),
            session: None,
            next_number: 0,
            last_failure: "not connected yet".to_owned(),
            distrusted: false,
        };
        Ok(Self {
            server: Server::new(options)?,
            timeout: options.timeout,
            namespace: options.namespace.clone(),
            version: options.value_version,
            generation_key,
            state: Mutex::new(state),
        })
    }

    /// Host and port.
    pub(crate) fn server(&self) -> &str {
        self.server.name()
    }

    /// The longest time a call may take.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Where the generation stands.
    pub(crate) fn generation_key(&self) -> &str {
        self.generation_key.as_deref().unwrap_or_default()
    }

    /// Makes `call` on the connection, and once more on a new one when it was lost. Repeating must be harmless.
    pub(crate) async fn call<T, F>(&self, call: impl Fn(Session) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let deadline = Instant::now() + self.timeout;
        let mut repeated = false;
        loop {
            let session = self.session(deadline).await?;
            let number = session.number;
            match timeout_at(deadline, call(session)).await {
                Ok(Ok(answer)) => {
                    self.state.lock().breaker.answered();
                    return Ok(answer);
                }
                Ok(Err(Failure::Lost(reason))) => {
                    self.lost(number, &reason);
                    if repeated {
                        return Err(self.failed(reason));
                    }
                    repeated = true;
                }
                Ok(Err(failure)) => {
                    self.state.lock().breaker.answered();
                    return Err(self.error(failure));
                }
                Err(_) => {
                    self.timed_out(number);
                    return Err(Error::Timeout { server: self.server().to_owned(), limit: self.timeout });
                }
            }
        }
    }

    /// The open connection, or a new one when it is this caller's turn to make it.
    async fn session(&self, deadline: Instant) -> Result<Session, Error> {
        {
            let mut state = self.state.lock();
            match (state.breaker.admit(Instant::now()), &state.session) {
                (Admission::Call, Some(session)) => return Ok(session.clone()),
                (Admission::Refused(wait), _) => {
                    let reason = state.last_failure.clone();
                    return Err(Error::Waiting { server: self.server().to_owned(), wait, reason });
                }
                (Admission::Probe, _) | (Admission::Call, None) => {}
            }
        }
        let probe = Probe { link: self };
        let outcome = match timeout_at(deadline, self.connect()).await {
            Ok(outcome) => outcome.map_err(|failure| self.error(failure)),
            Err(_) => Err(Error::Timeout { server: self.server().to_owned(), limit: self.timeout }),
        };
        probe.end(outcome)
    }

    async fn connect(&self) -> Result<Connected, Failure> {
        let mut connection = self.server.connect().await?;
        let Some(key) = &self.generation_key else {
            connection.ping().await?;
            return Ok(Connected { connection, generation: 0, fresh: true });
        };
        let fresh = self.state.lock().distrusted;
        let generation =
            if fresh { connection.new_generation(key).await? } else { connection.generation(key).await? };
        Ok(Connected { connection, generation, fresh })
    }

    fn prefix(&self, generation: u64) -> Arc<str> {
        keys::entries(&self.namespace, self.version, generation).into()
    }

    /// From now on entries of `generation` are read and written; the session is one that was found to lag behind.
    pub(crate) fn adopt(&self, session: &Session, generation: u64) {
        let mut state = self.state.lock();
        if let Some(current) = &mut state.session
            && current.number == session.number
        {
            current.prefix = self.prefix(generation);
            current.generation = generation;
        }
    }

    /// The prefix for entries to be written; `None` while there is no connection.
    pub(crate) fn current_prefix(&self) -> Option<Arc<str>> {
        Some(Arc::clone(&self.state.lock().session.as_ref()?.prefix))
    }

    /// Something that had to be removed may still be there. Nothing that is there now is read by this process again.
    pub(crate) fn distrust(&self) {
        let mut state = self.state.lock();
        state.distrusted = true;
        if state.session.take().is_some() {
            state.breaker.lost(Instant::now());
        }
    }

    fn lost(&self, number: u64, reason: &str) {
        let mut state = self.state.lock();
        if state.session.as_ref().is_some_and(|session| session.number == number) {
            state.session = None;
            state.breaker.lost(Instant::now());
            state.last_failure = reason.to_owned();
        }
    }

    fn timed_out(&self, number: u64) {
        let mut state = self.state.lock();
        let current = state.session.as_ref().is_some_and(|session| session.number == number);
        if current && state.breaker.timed_out(Instant::now()) {
            state.session = None;
            state.last_failure = format!("no answer within {:?}, several times in a row", self.timeout);
        }
    }

    fn failed(&self, reason: String) -> Error {
        Error::Failed { server: self.server().to_owned(), reason }
    }

    fn error(&self, failure: Failure) -> Error {
        match failure {
            Failure::Refused(reason) => Error::Refused { server: self.server().to_owned(), reason },
            Failure::Untrusted(reason) => Error::Untrusted { server: self.server().to_owned(), reason },
            Failure::Lost(reason) | Failure::Server(reason) => self.failed(reason),
        }
    }
}

/// The turn to make a connection. Dropped without an outcome, it passes to the next caller.
struct Probe<'a> {
    link: &'a Link,
}

impl Probe<'_> {
    fn end(self, outcome: Result<Connected, Error>) -> Result<Session, Error> {
        let mut state = self.link.state.lock();
        match outcome {
            // A removal failed while the connection was made: it takes another one, with a new generation.
            Ok(connected) if state.distrusted && !connected.fresh => {
                state.breaker.connected();
                state.breaker.lost(Instant::now());
                Err(self.link.failed("entries that had to go may still be there".to_owned()))
            }
            Ok(Connected { connection, generation, fresh: _ }) => {
                state.distrusted = false;
                state.next_number += 1;
                let prefix = self.link.prefix(generation);
                let session = Session { connection, prefix, generation, number: state.next_number };
                state.session = Some(session.clone());
                state.breaker.connected();
                Ok(session)
            }
            Err(error) => {
                state.last_failure = error.to_string();
                state.breaker.refused(Instant::now());
                Err(error)
            }
        }
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.link.state.lock().breaker.abandoned();
    }
}

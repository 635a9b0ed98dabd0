//! The broker as a consumer.

use super::BrokerError;
use super::backoff::Backoff;
use super::client::Client;
use super::connection::Target;
use super::network::{Network, Shared, Subscriber};
use super::options::{Address, BrokerOptions};
use super::session::{Limits, Session};
use crate::routing::Mistake;
use crate::tls;
use messagepipeline::{Chunk, Clock, Consumer, IdGenerator, Settle, StageError, StageHealth};
use parking_lot::Mutex;
use rustls_pki_types::ServerName;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Messages handed out together at most.
const CHUNK: usize = 256;

/// What the consumer is given from outside.
#[derive(Debug)]
pub struct BrokerParts {
    /// Makes the messages' ids.
    pub ids: Arc<IdGenerator>,
    /// Tells when a message was received.
    pub clock: Arc<dyn Clock>,
    /// The connection's own line on the health board; nobody else writes to it.
    pub health: StageHealth,
    /// Seed of the jitter between attempts to connect; another one in each replica.
    pub seed: u64,
}

/// Takes messages from an outside MQTT broker; the module's page says how.
pub struct BrokerConsumer {
    shared: Arc<Shared>,
    closing: CancellationToken,
    state: State,
}

enum State {
    Built(Box<Network>),
    Open(JoinHandle<Result<(), BrokerError>>),
    Closed,
}

impl BrokerConsumer {
    /// Checks the options and loads the TLS files; opens no connection.
    ///
    /// # Errors
    /// When the options cannot work or a TLS file cannot be loaded.
    pub fn new(options: BrokerOptions, parts: BrokerParts) -> Result<Self, BrokerError> {
        let mistakes = options.mistakes();
        if !mistakes.is_empty() {
            return Err(BrokerError::Options(mistakes));
        }
        let address = Address::parse(&options.url).map_err(|message| options_error("url", message))?;
        let tls = if address.tls { Some(load_tls(&options, &address)?) } else { None };
        let limits = Limits { messages: options.window_messages.into(), bytes: options.window_bytes };
        let shared = Arc::new(Shared {
            session: Mutex::new(Session::new(limits)),
            network: Notify::new(),
            consumer: Notify::new(),
            is_gone: AtomicBool::new(false),
            ids: parts.ids,
            clock: parts.clock,
        });
        let closing = CancellationToken::new();
        let client = Client { protocol: options.protocol, max_packet_size: options.max_packet_size };
        parts.health.not_ready(format!("connecting to {}", options.url));
        let network = Network {
            shared: Arc::clone(&shared),
            subscriber: Subscriber::new(&options, parts.health.clone()),
            health: parts.health,
            backoff: Backoff::new(options.reconnect_min, options.reconnect_max, parts.seed),
            closing: closing.clone(),
            was_connected: false,
            target: Target { options: Arc::new(options), address, tls, client },
        };
        Ok(Self { shared, closing, state: State::Built(Box::new(network)) })
    }
}

fn options_error(path: &str, message: String) -> BrokerError {
    BrokerError::Options(vec![Mistake::new(path, message)])
}

fn load_tls(
    options: &BrokerOptions,
    address: &Address,
) -> Result<(TlsConnector, ServerName<'static>), BrokerError> {
    let config = tls::client_config(&options.tls)?;
    let name = ServerName::try_from(address.host.clone())
        .map_err(|_| options_error("url", format!("`{}` is no host name TLS can verify", address.host)))?;
    Ok((TlsConnector::from(config), name))
}

impl Consumer for BrokerConsumer {
    /// Starts connecting and returns at once; whether the broker is there is the health line's matter.
    async fn open(&mut self) -> Result<(), StageError> {
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::Built(network) => State::Open(tokio::spawn(network.run())),
            other => other,
        };
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        let State::Open(_) = &self.state else { return Ok(None) };
        loop {
            let (deliveries, due) = {
                let mut session = self.shared.session.lock();
                (session.take(Instant::now(), CHUNK), session.next_due())
            };
            if !deliveries.is_empty() {
                let settle: Arc<dyn Settle> = self.shared.clone();
                return Ok(Some(Chunk::new(settle, deliveries)));
            }
            if self.shared.is_gone.load(Ordering::Acquire) {
                return Err(BrokerError::TaskEnded.into());
            }
            let woken = self.shared.consumer.notified();
            match due {
                None => woken.await,
                Some(due) => tokio::select! {
                    () = woken => {}
                    () = sleep_until(due) => {}
                },
            }
        }
    }

    async fn close(&mut self) -> Result<(), StageError> {
        self.closing.cancel();
        // The task stays in place until it has ended, so that a caller who gives up waiting still stops it by
        // dropping the consumer.
        let ended = match &mut self.state {
            State::Open(task) => task.await.unwrap_or(Err(BrokerError::TaskEnded)),
            State::Built(_) | State::Closed => Ok(()),
        };
        self.state = State::Closed;
        Ok(ended?)
    }
}

impl Drop for BrokerConsumer {
    /// Without `close` the connection breaks off, and the broker sends again whatever has no PUBACK.
    fn drop(&mut self) {
        if let State::Open(task) = &self.state {
            task.abort();
        }
    }
}

impl std::fmt::Debug for BrokerConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BrokerConsumer")
    }
}

//! The MQTT endpoint of the embedded default: devices connect to Millstream itself, with MQTT 3.1.1 or 5.
//!
//! ```text
//!  socket ─► Wire ─► Packet ─► Gate (topic, rights) ─► Window ─► Budget ─► channel ─► EndpointConsumer::next
//!    ▲                                                    │                                     │
//!    └── replies, in order of receipt ◄── Connection ◄── Window ◄───────── Settle (by token) ◄── verdict
//! ```
//!
//! It is an ingress and no broker: it takes publishes at every QoS, wills included, and answers everything else
//! with the code the specification has for it. PUBACK and PUBREC are written only after the pipeline has acknowledged.
//!
//! **Bounds.** Per client the receive maximum (announced in MQTT 5; a 3.1.1 client is not read from while its window
//! is full), which also bounds the distance between its newest and oldest message; over all clients a budget of
//! messages and bytes, held from before a message is handed out until its verdict. At the bounds connections stop
//! reading. An idle connection owns no buffer.
//!
//! **Messages sent again.** A publish with DUP is not stored a second time while this process knows that it wrote no
//! PUBACK for the first: it is recognised by session, packet identifier and a fingerprint of its bytes, also on a
//! new connection. That memory belongs to the session and ends with it: at a clean start, at its expiry (MQTT 5: as
//! the client asked, within [`EndpointOptions::max_session_expiry`]; 3.1.1 without Clean Session: that maximum), when
//! the process ends, or when more sessions are without a connection than there may be connections: then those that hold
//! nothing of QoS 2 go first, of those the ones that are away for longest. Everything sent
//! again outside of it is a new message with the attribute `mqtt_dup`.
//!
//! **QoS 2.** A packet identifier stands for one message until its PUBREL (`exchange.rs`), and with a [`SessionStore`]
//! over restarts too: the identifier is bound durably to the message's id before the message is handed out, and
//! forgotten durably before PUBCOMP (`durable.rs`). A PUBLISH that comes again after a crash is handed out under the
//! same id, so that a bus that knows its ids stores it once. Without a store, and for sessions that end with their
//! connection, that state lives in memory. A session holds at most four times the receive maximum of identifiers (or 256), all
//! together [`EndpointOptions::max_held`]; a PUBLISH beyond that ends its connection, one that comes again does not.
//!
//! **Failures downstream.** There is no error code for a passing fault that clients would not take as final, so the
//! connection ends without the PUBACK (MQTT 5: DISCONNECT 0x89) and the client sends again. A message at QoS 0 or a
//! will has nobody to send it again; it is counted (`given-up-without-sender`) and logged.

mod auth;
mod budget;
mod certificates;
mod connection;
mod consumer;
mod durable;
mod error;
mod exchange;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod intake;
mod listener;
mod options;
mod packet;
mod reason;
mod reply;
mod session;
mod shared;
mod store;
mod telemetry;
mod window;
mod wire;

pub use consumer::EndpointConsumer;
pub use error::EndpointError;
pub use options::{EndpointOptions, Mistake, User};
pub use store::{Held, SessionKey, SessionStore, StoredSession};

use auth::Authenticator;
use budget::Budget;
use certificates::Certificates;
use hashbrown::DefaultHashBuilder;
use messagepipeline::{Clock, IdGenerator};
use session::{Bounds, Sessions};
use shared::{Phase, Shared};
use std::net::SocketAddr;
use std::sync::Arc;
use telemetry::Telemetry;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Chunks that wait between the connections and the consumer. What is in them is bounded by the budget.
const CHUNKS: usize = 1_024;

/// A bound endpoint. It accepts nobody before its consumer is opened.
#[derive(Debug)]
pub struct Endpoint {
    /// The address it listens on, with the port that was picked if the configured one was 0.
    pub address: SocketAddr,
    /// For the ingestion service.
    pub consumer: EndpointConsumer,
    /// For whoever stops it.
    pub handle: EndpointHandle,
}

/// Tells an endpoint to drain.
#[derive(Clone)]
pub struct EndpointHandle(Arc<Shared>);

impl EndpointHandle {
    /// Accepts and reads nothing more. What was read, at QoS 0 too, is still handed out, PUBACKs are still written,
    /// and then the consumer's `next` answers `None`, which ends the service in good order.
    pub fn drain(&self) {
        self.0.phase.send_if_modified(|phase| {
            let is_open = *phase == Phase::Open;
            if is_open {
                *phase = Phase::Draining;
            }
            is_open
        });
    }
}

impl std::fmt::Debug for EndpointHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EndpointHandle")
    }
}

impl Endpoint {
    /// Checks the settings, loads the certificates and binds the address.
    ///
    /// # Errors
    /// When the settings do not do (all mistakes at once), a TLS file cannot be used, or the address is taken.
    pub async fn bind(
        options: EndpointOptions,
        ids: Arc<IdGenerator>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EndpointError> {
        Self::start(options, ids, clock, None).await
    }

    /// [`Endpoint::bind`] with sessions that outlive the process, in `store`.
    ///
    /// # Errors
    /// As for [`Endpoint::bind`], and when the store cannot be read.
    pub async fn bind_with_store(
        options: EndpointOptions,
        ids: Arc<IdGenerator>,
        clock: Arc<dyn Clock>,
        store: Arc<dyn SessionStore>,
    ) -> Result<Self, EndpointError> {
        Self::start(options, ids, clock, Some(store)).await
    }

    async fn start(
        options: EndpointOptions,
        ids: Arc<IdGenerator>,
        clock: Arc<dyn Clock>,
        store: Option<Arc<dyn SessionStore>>,
    ) -> Result<Self, EndpointError> {
        let mistakes = options.mistakes();
        if !mistakes.is_empty() {
            return Err(EndpointError::Options(mistakes));
        }
        let certificates = options
            .tls
            .as_ref()
            .map(|tls| Certificates::load(tls, Arc::clone(&clock)))
            .transpose()?
            .map(Arc::new);
        let bind_error = |source| EndpointError::Bind { address: options.listen, source };
        let socket = TcpListener::bind(options.listen).await.map_err(bind_error)?;
        let address = socket.local_addr().map_err(bind_error)?;
        if certificates.is_none() && !options.users.is_empty() && !address.ip().is_loopback() {
            tracing::warn!(%address, "passwords cross the network in the clear; set up TLS for MQTT");
        }
        let stored = match &store {
            Some(store) => store.load().await.map_err(EndpointError::Sessions)?,
            None => Vec::new(),
        };
        let shared = Arc::new(share(options, ids, clock, store));
        if shared.sessions.restore(stored).is_err() {
            tracing::warn!(
                "more MQTT sessions are stored than the endpoint has places for; some are not restored"
            );
        }
        let consumer = EndpointConsumer::new(Arc::clone(&shared), socket, certificates, CHUNKS);
        Ok(Self { address, consumer, handle: EndpointHandle(shared) })
    }
}

fn share(
    options: EndpointOptions,
    ids: Arc<IdGenerator>,
    clock: Arc<dyn Clock>,
    store: Option<Arc<dyn SessionStore>>,
) -> Shared {
    let budget = Arc::new(Budget::new(options.max_in_flight_messages, options.max_in_flight_bytes));
    let telemetry = Arc::new(Telemetry::new());
    let sessions = Arc::new(Sessions::new(
        Arc::clone(&budget),
        Arc::clone(&telemetry),
        Bounds {
            receive_maximum: options.receive_maximum,
            detached: options.max_connections,
            held: options.max_held,
        },
    ));
    Shared {
        wills: sessions.nameless(),
        authenticator: Authenticator::new(&options.users),
        options,
        budget,
        sessions,
        store,
        ending: tokio::sync::Mutex::default(),
        telemetry,
        ids,
        clock,
        hasher: DefaultHashBuilder::default(),
        phase: watch::Sender::new(Phase::Open),
    }
}

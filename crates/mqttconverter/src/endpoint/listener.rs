//! Accepting connections.

use super::certificates::Certificates;
use super::connection::Connection;
use super::handshake::{Failure, shake_hands};
use super::packet::ConnectRefused;
use super::reason::Reason;
use super::reply;
use super::shared::{Phase, Sender, Shared};
use super::wire::{Stream, Wire};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How often sessions are swept and certificate files looked at.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// Connections beyond the limit that may be told so at once; further ones are just closed.
const POLITE_REFUSALS: usize = 64;

/// Wait after an accept that failed (no file descriptors left, mostly): they come back when connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a refused client may take to read why.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the accept loop needs.
pub(super) struct Listener {
    pub(super) shared: Arc<Shared>,
    pub(super) socket: TcpListener,
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) tracker: TaskTracker,
    /// Ends every task at once.
    pub(super) kill: CancellationToken,
}

impl Listener {
    /// Accepts until the endpoint drains.
    pub(super) async fn run(self, sender: Sender) {
        let places =
            Arc::new(Semaphore::new(self.shared.options.max_connections.min(Semaphore::MAX_PERMITS)));
        let refusals = Arc::new(Semaphore::new(POLITE_REFUSALS));
        let mut phase = self.shared.phase.subscribe();
        let mut housekeeping = interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, peer)) => self.admit(stream, peer, &places, &refusals, &sender),
                    Err(error) => self.accept_failed(&error).await,
                },
                _ = housekeeping.tick() => self.keep_house(),
                () = leaves_open(&mut phase) => return,
                () = self.kill.cancelled() => return,
            }
        }
    }

    fn admit(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        places: &Arc<Semaphore>,
        refusals: &Arc<Semaphore>,
        sender: &Sender,
    ) {
        let (place, refuse) = match Arc::clone(places).try_acquire_owned() {
            Ok(place) => (place, None),
            Err(_) => match Arc::clone(refusals).try_acquire_owned() {
                Ok(place) => (place, Some(Reason::QuotaExceeded)),
                Err(_) => {
                    self.shared.telemetry.refused(Reason::QuotaExceeded);
                    return;
                }
            },
        };
        // PUBACKs are small and are waited for.
        let _ = stream.set_nodelay(true);
        let visitor = Visitor {
            shared: Arc::clone(&self.shared),
            certificates: self.certificates.clone(),
            sender: sender.clone(),
            peer,
            refuse,
            place,
        };
        let kill = self.kill.clone();
        self.tracker.spawn(async move {
            kill.run_until_cancelled(visitor.serve(stream)).await;
        });
    }

    async fn accept_failed(&self, error: &io::Error) {
        // The client gave up between its SYN and our accept; nothing is wrong here.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return;
        }
        if self.shared.telemetry.refused_for("accept-failed") {
            tracing::warn!(%error, "cannot accept an MQTT connection");
        }
        sleep(ACCEPT_PAUSE).await;
    }

    fn keep_house(&self) {
        let shared = Arc::clone(&self.shared);
        let certificates = self.certificates.clone();
        // Off the network tasks: it reads files and looks at every session.
        self.tracker.spawn(async move {
            let sweeping = Arc::clone(&shared);
            let swept = tokio::task::spawn_blocking(move || {
                sweeping.sessions.sweep();
                if let Some(certificates) = certificates {
                    certificates.refresh();
                }
            });
            if swept.await.is_ok()
                && let Err(error) = shared.forget_ended().await
            {
                shared.store_failed(&error);
            }
        });
    }
}

/// Waits until the endpoint stops taking anything.
async fn leaves_open(phase: &mut watch::Receiver<Phase>) {
    // An error says that the endpoint is gone altogether.
    let _ = phase.wait_for(|phase| *phase != Phase::Open).await;
}

/// A connection that has not said who it is.
struct Visitor {
    shared: Arc<Shared>,
    certificates: Option<Arc<Certificates>>,
    sender: Sender,
    peer: SocketAddr,
    refuse: Option<Reason>,
    place: OwnedSemaphorePermit,
}

impl Visitor {
    async fn serve(self, stream: TcpStream) {
        // Boxed, because what a handshake needs would otherwise be part of every idle connection.
        let Some(connection) = Box::pin(self.receive(stream)).await else { return };
        let Self { shared, sender, place, .. } = self;
        // The connection has its own, which it drops when the endpoint drains.
        drop(sender);
        shared.telemetry.connections.increment(1);
        let counted = (Counted(shared), place);
        let will = connection.run().await;
        // Who is gone holds no place, however late its will is due or the pipeline takes it.
        drop(counted);
        if let Some(will) = will {
            Box::pin(will.publish_when_due()).await;
        }
    }

    async fn receive(&self, stream: TcpStream) -> Option<Connection> {
        let mut phase = self.shared.phase.subscribe();
        let accepted = tokio::select! {
            accepted = timeout(self.shared.options.connect_timeout, self.greet(stream)) => accepted,
            () = leaves_open(&mut phase) => return None,
        };
        accepted.unwrap_or_else(|_| {
            self.log_refusal("connect-timeout", &"no CONNECT in time");
            None
        })
    }

    async fn greet(&self, stream: TcpStream) -> Option<Connection> {
        let stream = match &self.certificates {
            None => Stream::Plain(stream),
            Some(certificates) => match TlsAcceptor::from(certificates.current()).accept(stream).await {
                Ok(stream) => Stream::Tls(Box::new(stream)),
                Err(error) => {
                    self.log_refusal("tls-handshake-failed", &error);
                    return None;
                }
            },
        };
        let mut wire = Wire::new(stream);
        match shake_hands(&self.shared, &mut wire, self.refuse).await {
            Ok(accepted) => {
                tracing::debug!(
                    peer = %self.peer,
                    client_id = &**accepted.attachment.client_id(),
                    "MQTT client connected"
                );
                Some(Connection::new(Arc::clone(&self.shared), wire, accepted, self.sender.clone()))
            }
            Err(Failure::Silent(word)) => {
                self.log_refusal(word, &"closed without an answer");
                None
            }
            Err(Failure::Refused(ConnectRefused { answer_in, reason })) => {
                self.log_refusal(reason.word(), &"CONNECT refused");
                if let Some(version) = answer_in {
                    reply::connack_refused(&mut wire.output, version, reason);
                    wire.finish(FAREWELL).await;
                }
                None
            }
        }
    }

    fn log_refusal(&self, word: &'static str, detail: &(dyn std::fmt::Display + Sync)) {
        if self.shared.telemetry.refused_for(word) {
            tracing::warn!(peer = %self.peer, reason = word, %detail, "MQTT connection refused");
        }
    }
}

/// Counts a connection down, however its task ends.
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.telemetry.connections.decrement(1);
    }
}

//! The HTTP server for operators: liveness, readiness with reasons, metrics.
//!
//! | path | answer |
//! | --- | --- |
//! | `/healthz` | 200 `OK` while the process can answer at all |
//! | `/readyz` | 200 or 503 and a JSON document with a line per stage; 503 as soon as a shutdown begins |
//! | `/metrics` | Prometheus text format 0.0.4 |
//!
//! It is the last part of a program to stop, so that a drain can be watched.

use crate::telemetry::Metrics;
use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use messagepipeline::{ErrorClass, Health, Shutdown, StageError};
use serde_json::json;
use std::collections::VecDeque;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections served at a time; a further one takes the place of the oldest that waits for its client. A few
/// scrapers, probes and people.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take for the head of a request, and keep a connection idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take to make.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may live, so that slow readers cannot hold the places for ever.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// How long an answer under way may take to finish once the connection is to end.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Pause after a failed accept (usually: out of file descriptors), which would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An admin server that could not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address is taken.
    #[error(
        "cannot listen for HTTP on {address}: port in use; stop the other program or choose another port (0 picks a free one)"
    )]
    PortInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address cannot be used.
    #[error("cannot listen for HTTP on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

impl AdminError {
    /// `configuration`: it fails until a person changes the address or stops the other program.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Configuration
    }
}

impl From<AdminError> for StageError {
    fn from(error: AdminError) -> Self {
        Self::new(error.class(), "http-listen", error.to_string()).with_source(error)
    }
}

/// The routes that every service has. A program merges its own into them.
pub fn router(health: Health, shutdown: Shutdown, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(async || "OK"))
        .route("/readyz", get(async move || readiness(&health, &shutdown)))
        .route(
            "/metrics",
            get(async move || {
                ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
            }),
        )
}

fn readiness(health: &Health, shutdown: &Shutdown) -> Response {
    let stopping = shutdown.has_begun();
    let ready = health.is_ready() && !stopping;
    let mut body = format!("{{\"ready\":{ready}");
    if stopping {
        body.push_str(",\"reason\":\"shutting down\"");
    }
    body.push_str(",\"stages\":[");
    for (index, (stage, reason)) in health.stages().into_iter().enumerate() {
        let separator = if index == 0 { "" } else { "," };
        let line = match reason {
            None => json!({ "stage": stage, "ready": true }),
            Some(reason) => json!({ "stage": stage, "ready": false, "reason": reason }),
        };
        // Writing into a string cannot fail.
        let _ = write!(body, "{separator}\n{line}");
    }
    body.push_str("\n]}\n");
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Listens on `address` (port 0 picks one) and serves `routes`, with JSON answers for unknown paths and methods.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(address: SocketAddr, routes: Router) -> Result<AdminServer, AdminError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => AdminError::PortInUse { address },
        _ => AdminError::Bind { address, source },
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let local_addr = listener.local_addr().map_err(failed)?;
    let routes = routes
        .fallback(async || {
            refuse(StatusCode::NOT_FOUND, "no such path; there are /healthz, /readyz and /metrics")
        })
        .method_not_allowed_fallback(async || {
            refuse(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method")
        })
        .layer(middleware::from_fn(within_timeout));
    let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
    connections.spawn(accept(listener, routes, stop.clone(), connections.clone()));
    connections.close();
    Ok(AdminServer { local_addr, stop, connections })
}

fn refuse(status: StatusCode, message: &str) -> Response {
    let body = format!("{}\n", json!({ "error": message }));
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn within_timeout(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "the answer took too long"),
    }
}

/// A running admin server. Dropping it stops it without a wait.
#[derive(Debug)]
pub struct AdminServer {
    local_addr: SocketAddr,
    stop: CancellationToken,
    connections: TaskTracker,
}

impl AdminServer {
    /// The address it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops listening, finishes the answers under way (for at most two seconds) and closes all connections.
    pub async fn stop(self) {
        self.stop.cancel();
        self.connections.wait().await;
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A connection's place among those that are served.
struct Place {
    /// The connection is to end for the sake of another one.
    yielded: CancellationToken,
    /// Whether an answer is being made.
    is_answering: AtomicBool,
}

/// Makes room for one more: an ended connection leaves, else the oldest one that waits for its client must, else the
/// oldest. So clients that begin requests and do not finish them cannot keep a probe out.
fn make_room(places: &mut VecDeque<Arc<Place>>) {
    if places.len() < MAX_CONNECTIONS {
        return;
    }
    // What has ended is held by nobody else.
    places.retain(|place| Arc::strong_count(place) > 1);
    if places.len() < MAX_CONNECTIONS {
        return;
    }
    let waits = |place: &Arc<Place>| !place.is_answering.load(Ordering::Relaxed);
    let oldest = places.iter().position(waits).unwrap_or(0);
    if let Some(place) = places.remove(oldest) {
        place.yielded.cancel();
    }
}

async fn accept(listener: TcpListener, routes: Router, stop: CancellationToken, connections: TaskTracker) {
    let mut places = VecDeque::with_capacity(MAX_CONNECTIONS);
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                failing = false;
                make_room(&mut places);
                let place = Arc::new(Place {
                    yielded: CancellationToken::new(),
                    is_answering: AtomicBool::new(false),
                });
                places.push_back(Arc::clone(&place));
                connections.spawn(serve_connection(stream, routes.clone(), stop.clone(), place));
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept HTTP connections; trying again all the time");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, routes: Router, stop: CancellationToken, place: Arc<Place>) {
    let routes = TowerToHyperService::new(routes);
    let answer = |request| {
        place.is_answering.store(true, Ordering::Relaxed);
        let answer = routes.call(request);
        let place = &place;
        async move {
            let answer = answer.await;
            place.is_answering.store(false, Ordering::Relaxed);
            answer
        }
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = place.yielded.cancelled() => return,
        () = async { tokio::select! { () = stop.cancelled() => {}, () = tokio::time::sleep(CONNECTION_LIFETIME) => {} } } => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(CLOSE_GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

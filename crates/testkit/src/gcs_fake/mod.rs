//! A Cloud Storage fake: the parts of the JSON API (v1) that an archive uses, over HTTP/1.1 on a loopback port.
//!
//! Buckets are made and asked for; objects are uploaded in one piece (`media`, `multipart`) or resumably, with
//! `ifGenerationMatch`; read whole or in ranges, with `x-goog-generation` and `x-goog-hash`; listed with `prefix`,
//! `delimiter`, `startOffset`, `endOffset` and pages; deleted. What it does not model: rights, versions, retention,
//! gRPC. Faults strike by kind of request, and requests are counted by kind, as they are billed.

mod http;
mod routes;
mod state;

pub use state::{GcsFault, GcsRequest};

use bytes::Bytes;
use parking_lot::Mutex;
use state::State;
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Bytes of objects that a fake holds unless told otherwise. Beyond it uploads are answered with 429.
pub const MEMORY: usize = 1 << 30;

/// The fake. It lives as long as this value.
#[derive(Debug)]
pub struct GcsFake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl GcsFake {
    /// Starts on a free loopback port, without buckets.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn start() -> Self {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), MEMORY).await.expect("a free loopback port")
    }

    /// Starts on `address` and holds at most `memory` bytes of objects.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn listen(address: SocketAddr, memory: usize) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::new(memory)));
        let task = tokio::spawn(http::accept(listener, address, Arc::clone(&state)));
        Ok(Self { address, state, task })
    }

    /// The address to give to a client as its endpoint.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes a bucket; one that is there stays as it is.
    pub fn create_bucket(&self, name: &str) {
        self.state.lock().buckets.entry(name.to_owned()).or_default();
    }

    /// The objects of a bucket by name.
    #[must_use]
    pub fn objects(&self, bucket: &str) -> BTreeMap<String, Bytes> {
        let state = self.state.lock();
        let objects = state.buckets.get(bucket).into_iter().flatten();
        objects.map(|(name, object)| (name.clone(), object.bytes.clone())).collect()
    }

    /// The metadata that was uploaded with an object; the content type and, if it has one, the content encoding are
    /// among it under `content-type` and `content-encoding`.
    #[must_use]
    pub fn metadata(&self, bucket: &str, name: &str) -> BTreeMap<String, String> {
        let state = self.state.lock();
        let Some(object) = state.buckets.get(bucket).and_then(|objects| objects.get(name)) else {
            return BTreeMap::new();
        };
        let mut metadata = object.metadata.clone();
        metadata.insert("content-type".to_owned(), object.content_type.clone());
        if let Some(encoding) = &object.content_encoding {
            metadata.insert("content-encoding".to_owned(), encoding.clone());
        }
        metadata
    }

    /// Puts an object there, as if somebody else had uploaded it.
    pub fn put(&self, bucket: &str, name: &str, bytes: impl Into<Bytes>) {
        self.state.lock().put(bucket, name, bytes.into());
    }

    /// The next requests of `kind` meet these faults, or none, one by one; afterwards none.
    pub fn fault(&self, kind: GcsRequest, faults: impl IntoIterator<Item = Option<GcsFault>>) {
        self.state.lock().faults.insert(kind, faults.into_iter().collect());
    }

    /// From now on every request of `kind` meets this fault; `None` ends that.
    pub fn fault_always(&self, kind: GcsRequest, fault: Option<GcsFault>) {
        let mut state = self.state.lock();
        match fault {
            Some(fault) => state.lasting.insert(kind, fault),
            None => state.lasting.remove(&kind),
        };
    }

    /// How many requests of `kind` came, those that met a fault included.
    #[must_use]
    pub fn requests(&self, kind: GcsRequest) -> u64 {
        self.state.lock().requests.get(&kind).copied().unwrap_or(0)
    }
}

impl Drop for GcsFake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

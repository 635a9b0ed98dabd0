//! A proxy before one of Google's services that counts requests by method.

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use tokio::net::{TcpListener, TcpStream};

/// Bytes that a stream may send ahead; more than anybody here has under way.
const WINDOW: u32 = 16 << 20;
/// What stands before every message of gRPC: a flag and a length.
const PREFIX: usize = 5;

/// What was counted of one method.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    /// Messages of gRPC in requests: a stream has many.
    pub(crate) sent: u64,
    /// Their bytes.
    pub(crate) sent_bytes: u64,
    /// Messages of gRPC in answers.
    pub(crate) received: u64,
    /// Their bytes.
    pub(crate) received_bytes: u64,
}

type Shared = Arc<Mutex<BTreeMap<String, Counts>>>;

/// The proxy; it lives as long as the runtime.
pub(crate) struct Counting {
    address: String,
    counts: Shared,
}

impl Counting {
    /// Before a server at `target`, `HOST:PORT`, of gRPC without TLS, of HTTP/1.1 or, like Google's emulators, of both.
    pub(crate) async fn before(target: &str) -> Self {
        let target = target.trim_start_matches("http://").trim_end_matches('/').to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let counts = Shared::default();
        let shared = Arc::clone(&counts);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                client.set_nodelay(true).unwrap();
                tokio::spawn(serve(client, target.clone(), Arc::clone(&shared)));
            }
        });
        Self { address, counts }
    }

    /// `HOST:PORT`.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What came so far, by method.
    pub(crate) fn counts(&self) -> BTreeMap<String, Counts> {
        self.counts.lock().unwrap().clone()
    }
}

/// One connection; ends of either side are none of the bench's business.
async fn serve(client: TcpStream, target: String, counts: Shared) {
    // What HTTP/2 begins with, and no request of HTTP/1.1 does.
    let mut first = [0; 3];
    let is_grpc = client.peek(&mut first).await.is_ok() && first == *b"PRI";
    let server = TcpStream::connect(&target).await.unwrap();
    server.set_nodelay(true).unwrap();
    if is_grpc {
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let (sender, connection) = builder.handshake(TokioIo::new(server)).await.unwrap();
        tokio::spawn(connection);
        let pass = service_fn(move |request: Request<Incoming>| {
            let (mut sender, counts) = (sender.clone(), Arc::clone(&counts));
            async move {
                let method = request.uri().path().to_owned();
                let answer = sender.send_request(request.map(|body| enter(body, &method, &counts))).await?;
                Ok::<_, hyper::Error>(leave(answer, &method, &counts))
            }
        });
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
        let _ = builder.max_concurrent_streams(1_000).serve_connection(TokioIo::new(client), pass).await;
    } else {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(server)).await.unwrap();
        tokio::spawn(connection);
        let sender = Arc::new(tokio::sync::Mutex::new(sender));
        let pass = service_fn(move |request: Request<Incoming>| {
            let (sender, counts) = (Arc::clone(&sender), Arc::clone(&counts));
            async move {
                let method = format!("{} {}", request.method(), request.uri().path());
                let mut sender = sender.lock().await;
                sender.ready().await?;
                let answer = sender.send_request(request.map(|body| enter(body, &method, &counts))).await?;
                Ok::<_, hyper::Error>(leave(answer, &method, &counts))
            }
        });
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), pass).await;
    }
}

fn enter(body: Incoming, method: &str, counts: &Shared) -> Tallied {
    counts.lock().unwrap().entry(method.to_owned()).or_default().requests += 1;
    Tallied::new(body, method, counts, true)
}

fn leave(answer: Response<Incoming>, method: &str, counts: &Shared) -> Response<Tallied> {
    answer.map(|body| Tallied::new(body, method, counts, false))
}

/// A body whose bytes and messages are counted on their way.
struct Tallied {
    body: Incoming,
    method: String,
    counts: Shared,
    is_request: bool,
    prefix: Vec<u8>,
    /// Bytes of the message under way that are still to come.
    rest: usize,
}

impl Tallied {
    fn new(body: Incoming, method: &str, counts: &Shared, is_request: bool) -> Self {
        let (method, counts) = (method.to_owned(), Arc::clone(counts));
        Self { body, method, counts, is_request, prefix: Vec::new(), rest: 0 }
    }

    fn tally(&mut self, data: &Bytes) {
        let messages = self.messages(data);
        let mut counts = self.counts.lock().unwrap();
        let counts = counts.entry(self.method.clone()).or_default();
        let (count, bytes) = if self.is_request {
            (&mut counts.sent, &mut counts.sent_bytes)
        } else {
            (&mut counts.received, &mut counts.received_bytes)
        };
        *count += messages;
        *bytes += data.len() as u64;
    }

    /// How many messages begin in `data`.
    fn messages(&mut self, mut data: &[u8]) -> u64 {
        let mut begun = 0;
        while !data.is_empty() {
            let taken = self.rest.min(data.len());
            self.rest -= taken;
            data = &data[taken..];
            let taken = (PREFIX - self.prefix.len()).min(data.len());
            self.prefix.extend_from_slice(&data[..taken]);
            data = &data[taken..];
            if let [_, length @ ..] = &self.prefix[..]
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                self.rest = u32::from_be_bytes(length) as usize;
                self.prefix.clear();
                begun += 1;
            }
        }
        begun
    }
}

impl Body for Tallied {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.tally(data);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

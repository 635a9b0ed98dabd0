//! A server that answers every request that it cannot now: 503 over HTTP/1.1, `UNAVAILABLE` over gRPC.

use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use tokio::net::{TcpListener, TcpStream};

/// It lives as long as the runtime.
pub(crate) struct Unavailable {
    address: SocketAddr,
    answers: Arc<AtomicUsize>,
}

impl Unavailable {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&answers);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, Arc::clone(&counter)));
            }
        });
        Self { address, answers }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// How many requests were answered.
    pub(crate) fn answers(&self) -> usize {
        self.answers.load(Ordering::SeqCst)
    }
}

/// HTTP/2 begins with a preface; everything else is HTTP/1.1.
async fn serve(client: TcpStream, answers: Arc<AtomicUsize>) {
    let mut first = [0; 3];
    let is_http2 = matches!(client.peek(&mut first).await, Ok(3)) && &first == b"PRI";
    let answer = service_fn(move |_: Request<Incoming>| {
        answers.fetch_add(1, Ordering::SeqCst);
        let answer = Response::builder();
        let answer = match is_http2 {
            true => answer.header("content-type", "application/grpc").header("grpc-status", "14"),
            false => answer.status(503),
        };
        async move { Ok::<_, Infallible>(answer.body(Nothing).unwrap()) }
    });
    // What becomes of the connection is the client's business.
    if is_http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let _ = builder.serve_connection(TokioIo::new(client), answer).await;
    } else {
        let _ =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), answer).await;
    }
}

struct Nothing;

impl Body for Nothing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

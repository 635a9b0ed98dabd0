//! The socket of one connection with its two buffers. Waiting on it loses nothing when it is abandoned.

use super::budget::LEAST_READ_BYTES;
use bytes::{Buf, BytesMut};
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::server::TlsStream;

/// Bytes taken from a socket at once, at most.
pub(super) const READ_BYTES: usize = 64 * 1024;

thread_local! {
    /// Read into by all connections of a thread, so that an idle one owns no buffer. What was read is copied once
    /// into a block of its own size; a payload then keeps no more alive than what arrived with it.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// A byte stream from a client.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What happened on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Bytes arrived in [`Wire::input`].
    Read,
    /// The client closed its side.
    End,
    /// All of [`Wire::output`] is written.
    Written,
}

pub(super) struct Wire {
    stream: Stream,
    /// Bytes that are not decoded yet.
    pub(super) input: BytesMut,
    /// Bytes that are not written yet.
    pub(super) output: BytesMut,
    needs_flush: bool,
    /// Since when the client has not taken what we write.
    stalled_since: Option<Instant>,
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            needs_flush: false,
            stalled_since: None,
        }
    }

    /// Writes what is to be written and reads up to `most` bytes, none if that is 0; answers when either has happened.
    pub(super) async fn next(&mut self, most: usize) -> io::Result<Event> {
        self.next_within(|| most).await
    }

    /// The same, with a bound that is looked up when there is something to read: that may be long after this is called.
    pub(super) async fn next_within(&mut self, most: impl Fn() -> usize) -> io::Result<Event> {
        poll_fn(|cx| self.poll_next(cx, most())).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<Event>> {
        let has_output = !self.output.is_empty() || self.needs_flush;
        if has_output && let Poll::Ready(written) = self.poll_output(cx) {
            return Poll::Ready(written.map(|()| Event::Written));
        }
        if most > 0 { self.poll_input(cx, most) } else { Poll::Pending }
    }

    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() {
            let Poll::Ready(written) = self.stream.poll_write(cx, &self.output) else {
                self.stalled_since.get_or_insert_with(Instant::now);
                return Poll::Pending;
            };
            let count = written?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(count);
            self.needs_flush = true;
            self.stalled_since = None;
        }
        ready!(self.stream.poll_flush(cx))?;
        self.needs_flush = false;
        self.output = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    fn poll_input(&mut self, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<Event>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(&mut scratch[..most.min(READ_BYTES)]);
            ready!(self.stream.poll_read(cx, &mut buffer))?;
            let read = buffer.filled();
            if read.is_empty() {
                return Poll::Ready(Ok(Event::End));
            }
            self.input.extend_from_slice(read);
            Poll::Ready(Ok(Event::Read))
        })
    }

    /// For how long the client has not taken what we write.
    pub(super) fn stalled_for(&self) -> Duration {
        self.stalled_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Writes the rest, closes our side and waits until the client has closed its own, at most for `limit`. Closing
    /// at once would make the kernel throw away our last packets if the client is still sending.
    pub(super) async fn finish(mut self, limit: Duration) {
        // Whoever is kept waiting for its last words holds no more than they are.
        self.input = BytesMut::new();
        let goodbye = async {
            poll_fn(|cx| self.poll_output(cx)).await?;
            poll_fn(|cx| self.stream.poll_shutdown(cx)).await?;
            let mut discarded = 0;
            while discarded < DISCARD_BYTES && self.next(LEAST_READ_BYTES).await? == Event::Read {
                discarded += self.input.len();
                self.input = BytesMut::new();
            }
            io::Result::Ok(())
        };
        // Nothing depends on it: whoever did not get our last words sends again.
        let _ = timeout(limit, goodbye).await;
    }
}

/// How much a client may still send to a connection that we have ended.
const DISCARD_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::cell::Cell;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn how_much_is_read_is_asked_when_it_has_come() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut wire = Wire::new(Stream::Plain(listener.accept().await.unwrap().0));
        let most = Cell::new(READ_BYTES);
        let mut next = Box::pin(wire.next_within(|| most.get()));
        assert!(next.as_mut().now_or_never().is_none());
        most.set(10);
        client.write_all(&[0; 100]).await.unwrap();
        assert_eq!(next.await.unwrap(), Event::Read);
        assert_eq!(wire.input.len(), 10);
    }
}

//! A TCP proxy between programs and a server: connections that break, stall or lose what the server says.

use parking_lot::Mutex;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes read at a time.
const PIECE: usize = 64 * 1024;

/// How connections are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Both sides see the other one close.
    Closed,
    /// Both sides see a reset.
    Reset,
}

#[derive(Debug)]
struct Shared {
    /// `None` turns everybody away.
    target: Mutex<Option<String>>,
    /// What each piece waits in either direction, in milliseconds.
    delay: AtomicU64,
    /// Whether what the server says is dropped.
    mute: AtomicBool,
    /// Pieces of what the server said that were dropped.
    lost: AtomicU64,
    /// How the connections that are open are to end; a change ends them.
    end: watch::Sender<End>,
}

/// A proxy on a loopback port. It lives as long as this value.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

impl Proxy {
    /// Leads to `target`, a `host:port`.
    ///
    /// # Panics
    /// When no loopback port is free.
    pub async fn start(target: impl Into<String>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free loopback port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared {
            target: Mutex::new(Some(target.into())),
            delay: AtomicU64::new(0),
            mute: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            end: watch::Sender::new(End::Closed),
        });
        let listener = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, listener }
    }

    /// Where programs connect to, as `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// [`address`](Self::address) as a URL.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Closes all connections; answers how many there were. New ones are taken, and hear the server again.
    pub fn cut(&self) -> usize {
        self.end(End::Closed)
    }

    /// Resets all connections (RST); answers how many there were. New ones are taken, and hear the server again.
    pub fn reset(&self) -> usize {
        self.end(End::Reset)
    }

    /// Every piece that passes in either direction waits so long.
    pub fn delay(&self, delay: Duration) {
        let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.shared.delay.store(delay, Ordering::Relaxed);
    }

    /// From now on the server takes what it is sent, and what it says is lost, until [`cut`](Self::cut) or
    /// [`reset`](Self::reset).
    pub fn lose_replies(&self) {
        self.shared.mute.store(true, Ordering::SeqCst);
    }

    /// How many pieces of what the server said were lost until now.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// Closes all connections and every new one, until [`let_in`](Self::let_in).
    pub fn turn_away(&self) -> usize {
        *self.shared.target.lock() = None;
        self.cut()
    }

    /// Where connections lead.
    ///
    /// # Panics
    /// While everybody is turned away.
    #[must_use]
    pub fn target(&self) -> String {
        self.shared.target.lock().clone().expect("a target")
    }

    /// Takes connections, again or from now on to `target`.
    pub fn let_in(&self, target: impl Into<String>) {
        *self.shared.target.lock() = Some(target.into());
    }

    fn end(&self, how: End) -> usize {
        let open = self.shared.end.receiver_count();
        self.shared.end.send_replace(how);
        self.shared.mute.store(false, Ordering::SeqCst);
        open
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listener.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let Some(target) = shared.target.lock().clone() else { continue };
        let end = shared.end.subscribe();
        tokio::spawn(serve(client, target, Arc::clone(&shared), end));
    }
}

/// An error is the end of the connection, which both sides see.
async fn serve(mut client: TcpStream, target: String, shared: Arc<Shared>, mut end: watch::Receiver<End>) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    // Small pieces are passed on as they come.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let how = {
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        tokio::select! {
            how = async { end.changed().await.map(|()| *end.borrow()) } => how.unwrap_or(End::Closed),
            _ = async {
                let there = pass(from_client, to_server, &shared, false);
                tokio::try_join!(there, pass(from_server, to_client, &shared, true))
            } => return,
        }
    };
    if how == End::Reset {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    shared: &Shared,
    is_reply: bool,
) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    // What comes behind something lost makes no sense any more.
    let mut lost = false;
    loop {
        let count = from.read(&mut piece).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        let delay = Duration::from_millis(shared.delay.load(Ordering::Relaxed));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        lost |= is_reply && shared.mute.load(Ordering::SeqCst);
        if lost {
            shared.lost.fetch_add(1, Ordering::SeqCst);
        } else {
            to.write_all(&piece[..count]).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Echoes lines and counts the bytes that came.
    async fn server() -> (SocketAddr, Arc<AtomicU64>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (address, taken) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&taken);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let counter = Arc::clone(&counter);
                tokio::spawn(async move {
                    let mut piece = [0; 16];
                    while let Ok(count @ 1..) = stream.read(&mut piece).await {
                        counter.fetch_add(count as u64, Ordering::SeqCst);
                        let _ = stream.write_all(&piece[..count]).await;
                    }
                });
            }
        });
        (address, taken)
    }

    #[tokio::test]
    async fn connections_pass_bytes_lose_replies_break_and_are_turned_away() {
        let (address, taken) = server().await;
        let proxy = Proxy::start(address.to_string()).await;
        let connect = || TcpStream::connect(proxy.address);
        let (mut client, mut piece) = (connect().await.unwrap(), [0; 16]);
        client.write_all(b"one").await.unwrap();
        assert_eq!(client.read(&mut piece).await.unwrap(), 3);

        proxy.lose_replies();
        client.write_all(b"two").await.unwrap();
        while taken.load(Ordering::SeqCst) < 6 {
            tokio::task::yield_now().await;
        }
        while proxy.lost() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(proxy.reset(), 1);
        let error = client.read(&mut piece).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "the server had it, and its answer is lost");

        let mut client = connect().await.unwrap();
        client.write_all(b"three").await.unwrap();
        assert_eq!(client.read(&mut piece).await.unwrap(), 5);
        assert_eq!(proxy.turn_away(), 1);
        assert_eq!(client.read(&mut piece).await.unwrap(), 0, "closed");
        let mut client = connect().await.unwrap();
        assert!(matches!(client.read(&mut piece).await, Ok(0) | Err(_)));
        proxy.let_in(address.to_string());
        let mut client = connect().await.unwrap();
        client.write_all(b"four").await.unwrap();
        assert_eq!(client.read(&mut piece).await.unwrap(), 4);
    }
}

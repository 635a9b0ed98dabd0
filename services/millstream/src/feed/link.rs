//! A connection that stands: socket, buffers, keep-alive.

use super::network::Stream;
use super::options::FeedOptions;
use super::wire::{Grant, Incoming, Wire};
use super::{FeedError, Shared};
use bytes::BytesMut;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::{Instant, timeout};

/// For opening a connection, its CONNACK included.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// For saying good-bye.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// For what a broker said before it went away.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(1);

/// Seconds between packets after which a PINGREQ is sent; the broker may ask for another time.
const KEEP_ALIVE: u16 = 60;

const READ_SIZE: usize = 8 * 1024;

/// Encoded bytes at which no further message is encoded before they are written.
const WRITE_SIZE: usize = 128 * 1024;

/// How a connection came to an end.
#[derive(Debug)]
pub(super) enum Broken {
    /// Another one may do better.
    Passing(String),
    /// TLS says no. While connecting, [`Link::open`] makes a lasting error of it.
    Untrusted(String),
    /// It would not.
    Lasting(FeedError),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        // How rustls wraps its own errors and the other side's alerts.
        if error.kind() == io::ErrorKind::InvalidData {
            return Self::Untrusted(error.to_string());
        }
        Self::Passing(error.to_string())
    }
}

pub(super) struct Link {
    pub(super) reader: ReadHalf<Box<dyn Stream>>,
    pub(super) writer: WriteHalf<Box<dyn Stream>>,
    pub(super) inbox: BytesMut,
    pub(super) out: BytesMut,
    pub(super) wire: Wire,
    keep_alive: Duration,
    heard: Instant,
    said: Instant,
    checked: Instant,
}

impl Link {
    /// Opens a connection and waits for its CONNACK.
    pub(super) async fn open(shared: &Shared, client_id: &str) -> Result<(Self, Grant), Broken> {
        let opening = async {
            let stream = shared.target.open().await?;
            let (reader, writer) = tokio::io::split(stream);
            let now = Instant::now();
            let mut link = Self {
                reader,
                writer,
                inbox: BytesMut::with_capacity(READ_SIZE),
                out: BytesMut::with_capacity(WRITE_SIZE),
                wire: Wire::new(&shared.options),
                keep_alive: Duration::from_secs(KEEP_ALIVE.into()),
                heard: now,
                said: now,
                checked: now,
            };
            let grant = link.handshake(shared, client_id).await?;
            Ok((link, grant))
        };
        match timeout(CONNECT_DEADLINE, opening).await {
            Ok(Err(Broken::Untrusted(reason))) => {
                let address = shared.options.broker.to_string();
                Err(Broken::Lasting(FeedError::Handshake { address, reason }))
            }
            Ok(opened) => opened,
            Err(_) => Err(Broken::Passing(format!("no answer within {} s", CONNECT_DEADLINE.as_secs()))),
        }
    }

    async fn handshake(&mut self, shared: &Shared, client_id: &str) -> Result<Grant, Broken> {
        let options = &shared.options;
        let refused = |reason| {
            let address = options.broker.to_string();
            Broken::Lasting(FeedError::Refused { address, client_id: client_id.to_owned(), reason })
        };
        self.wire.connect(options, client_id, KEEP_ALIVE, &mut self.out).map_err(refused)?;
        self.writer.write_all_buf(&mut self.out).await?;
        loop {
            match self.wire.decode(&mut self.inbox).map_err(Broken::Passing)? {
                Some(Incoming::Connected(grant)) => {
                    self.granted(&grant, options).map_err(refused)?;
                    return Ok(grant);
                }
                Some(Incoming::Refused { reason, lasting: true }) => return Err(refused(reason)),
                Some(Incoming::Refused { reason, .. }) => return Err(Broken::Passing(reason)),
                Some(_) => return Err(Broken::Passing("the first packet is no CONNACK".to_owned())),
                None => {
                    let read = self.reader.read_buf(&mut self.inbox).await;
                    self.received(read)?;
                }
            }
        }
    }

    fn granted(&mut self, grant: &Grant, options: &FeedOptions) -> Result<(), String> {
        if grant.max_qos < options.qos {
            return Err("it takes QoS 0 only; use --qos 0".to_owned());
        }
        if let Some(seconds) = grant.keep_alive {
            // 0 turns it off (MQTT 5, section 3.1.2.10); asking now and then does no harm.
            let seconds = if seconds == 0 { KEEP_ALIVE } else { seconds };
            self.keep_alive = Duration::from_secs(seconds.into());
        }
        self.wire.max_packet_size = grant.max_packet_size;
        Ok(())
    }

    /// Notes what a read brought; the end of the stream is an error.
    pub(super) fn received(&mut self, read: io::Result<usize>) -> Result<(), Broken> {
        if read? == 0 {
            return Err(Broken::Passing("the broker closed it".to_owned()));
        }
        self.heard = Instant::now();
        self.inbox.reserve(READ_SIZE);
        Ok(())
    }

    /// Notes what a write took.
    pub(super) fn written(&mut self, written: io::Result<usize>) -> Result<(), Broken> {
        if written? == 0 {
            return Err(Broken::Passing("the broker takes no more data".to_owned()));
        }
        self.said = Instant::now();
        Ok(())
    }

    /// Reads what the broker said before it went away: its acknowledgements count although nothing can be written.
    pub(super) async fn read_last_words(&mut self) {
        let reading =
            async { while self.reader.read_buf(&mut self.inbox).await.is_ok_and(|read| read > 0) {} };
        // Late words are lost; the messages are then sent again.
        let _ = timeout(LAST_WORDS_DEADLINE, reading).await;
    }

    /// Whether another message may be encoded.
    pub(super) fn has_room(&self) -> bool {
        self.out.len() < WRITE_SIZE
    }

    /// When [`Link::keep_alive`] wants to be called.
    pub(super) fn next_check(&self) -> Instant {
        self.checked + self.keep_alive / 2
    }

    /// Sends a PINGREQ where it is time, and gives the connection up when nothing was heard for long.
    pub(super) fn keep_alive(&mut self) -> Result<(), Broken> {
        let now = Instant::now();
        // A broker that lets messages wait for its disk may also be slow to answer this.
        if now - self.heard >= self.keep_alive * 2 {
            return Err(Broken::Passing(format!("nothing heard for {} s", (now - self.heard).as_secs())));
        }
        self.checked = now;
        let quiet = now - self.said.min(self.heard) >= self.keep_alive / 2;
        if quiet && self.out.is_empty() {
            Wire::ping(&mut self.out);
        }
        Ok(())
    }

    /// Says good-bye and waits until the broker has read all.
    pub(super) async fn close(mut self) {
        self.wire.disconnect(&mut self.out);
        let closing = async {
            self.writer.write_all_buf(&mut self.out).await?;
            self.writer.shutdown().await?;
            while self.reader.read_buf(&mut self.inbox).await? > 0 {
                self.inbox.clear();
            }
            io::Result::Ok(())
        };
        // All is acknowledged; how the connection ends changes nothing.
        let _ = timeout(CLOSE_DEADLINE, closing).await;
    }
}

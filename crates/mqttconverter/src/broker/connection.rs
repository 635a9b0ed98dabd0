//! One connection to the broker: from CONNECT to the end.

use super::client::{Client, ConnAck, Incoming, Publish};
use super::network::{Shared, Subscriber};
use super::options::{Address, BrokerOptions};
use super::{BrokerError, Subscription};
use bytes::BytesMut;
use rustls_pki_types::ServerName;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Room made in the read buffer before each read.
const READ_BYTES: usize = 16 << 10;
/// With this much unwritten nothing more is read: a broker that does not read our PUBACKs gets no new ones to read.
const WRITE_BYTES: usize = 64 << 10;
/// How long a broker may take to close once it has our last words. Those that are well close at once; a stop must not
/// last until its own deadline, and fail then, for one that never does.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where to connect and what to say.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) options: Arc<BrokerOptions>,
    pub(super) address: Address,
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) client: Client,
}

impl Target {
    /// Connects within the options' deadline, which covers TCP, TLS and CONNACK.
    pub(super) async fn connect(&self) -> Result<(Connection, ConnAck), BrokerError> {
        let limit = self.options.connect_timeout;
        timeout(limit, self.connect_now()).await.map_err(|_| BrokerError::ConnectTimeout(limit))?
    }

    async fn connect_now(&self) -> Result<(Connection, ConnAck), BrokerError> {
        let tcp = TcpStream::connect((self.address.host.as_str(), self.address.port)).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some((connector, name)) => Box::new(connector.connect(name.clone(), tcp).await?),
        };
        let mut connection = Connection::new(stream, self.client, self.options.keep_alive);
        self.client.connect(&self.options, &mut connection.output)?;
        let ack = connection.handshake().await?;
        if let Some(seconds) = ack.keep_alive.filter(|seconds| *seconds > 0) {
            connection.keep_alive = Duration::from_secs(seconds.into());
        }
        match ack.refusal {
            Some(refusal) => Err(BrokerError::Refused { reason: refusal.reason, lasting: refusal.lasting }),
            None => Ok((connection, ack)),
        }
    }
}

/// When something must happen on the connection although no packet comes.
struct Timers {
    ping: Instant,
    /// Since when an answer is owed while we read.
    unanswered: Option<Instant>,
    /// Since when the broker takes no data.
    unwritten: Option<Instant>,
}

pub(super) struct Connection {
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    input: BytesMut,
    output: BytesMut,
    /// Whether something was written since the last flush.
    unflushed: bool,
    client: Client,
    keep_alive: Duration,
}

impl Connection {
    fn new(stream: Box<dyn Stream>, client: Client, keep_alive: Duration) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (input, output) = (BytesMut::new(), BytesMut::new());
        Self { reader, writer, input, output, unflushed: false, client, keep_alive }
    }

    async fn handshake(&mut self) -> Result<ConnAck, BrokerError> {
        self.writer.write_all_buf(&mut self.output).await?;
        self.writer.flush().await?;
        loop {
            match self.client.read(&mut self.input) {
                Ok(Some(Incoming::ConnAck(ack))) => return Ok(ack),
                Ok(Some(_)) => {
                    return Err(BrokerError::Protocol("the first packet is not CONNACK".to_owned()));
                }
                Ok(None) => {}
                Err(error) => return Err(hint_at_version(error)),
            }
            self.input.reserve(READ_BYTES);
            if self.reader.read_buf(&mut self.input).await? == 0 {
                return Err(BrokerError::Closed(Some("before CONNACK".to_owned())));
            }
        }
    }

    /// Moves packets until the connection ends or `closing` is cancelled; only the latter is `Ok`.
    pub(super) async fn serve(
        mut self,
        shared: &Shared,
        subscriber: &mut Subscriber,
        closing: &CancellationToken,
    ) -> Result<(), BrokerError> {
        let now = Instant::now();
        let mut timers = Timers { ping: now + self.keep_alive / 2, unanswered: None, unwritten: None };
        let mut packet_ids = Vec::new();
        let (mut reads, mut has_read) = (true, false);
        loop {
            // First the verdicts: they make room.
            self.put_acks(shared, &mut packet_ids);
            let has_room = self.take_in(shared, subscriber)?;
            // A message that takes long to arrive is no silence either.
            if !reads || (has_read && !self.input.is_empty()) {
                subscriber.wait_on(Instant::now());
            }
            has_read = false;
            if let Some(topics) = subscriber.due(Instant::now())? {
                self.put_subscribe(&topics)?;
            }
            reads = has_room && self.output.len() < WRITE_BYTES;
            let deadline = self.check_alive(&mut timers, reads)?;
            let deadline = subscriber.next_due().map_or(deadline, |due| due.min(deadline));
            let writes = self.has_output();
            self.input.reserve(if reads { READ_BYTES } else { 0 });
            tokio::select! {
                read = self.reader.read_buf(&mut self.input), if reads => {
                    if read? == 0 {
                        return Err(BrokerError::Closed(None));
                    }
                    timers.unanswered = None;
                    has_read = true;
                }
                written = write_some(&mut self.writer, &mut self.output, &mut self.unflushed), if writes => {
                    written?;
                    timers.unwritten = None;
                }
                () = shared.network.notified() => {}
                () = sleep_until(deadline) => {}
                () = closing.cancelled() => return self.finish(shared).await,
            }
        }
    }

    /// Decodes what is in the buffer as far as the window allows. Answers whether the window has room for more.
    fn take_in(&mut self, shared: &Shared, subscriber: &mut Subscriber) -> Result<bool, BrokerError> {
        loop {
            let (mut messages, mut bytes) = shared.room();
            let mut publishes: Vec<Publish> = Vec::new();
            let mut drained = false;
            let mut outcome = Ok(());
            while messages > 0 && bytes > 0 {
                match self.client.read(&mut self.input) {
                    Ok(None) => {
                        drained = true;
                        break;
                    }
                    Ok(Some(Incoming::Publish(publish))) => {
                        messages -= 1;
                        bytes = bytes.saturating_sub(publish.payload.len() + publish.topic.len());
                        publishes.push(publish);
                    }
                    Ok(Some(other)) => outcome = control(other, subscriber),
                    Err(error) => outcome = Err(error),
                }
                if outcome.is_err() {
                    break;
                }
            }
            // What came before an error came, and is kept.
            let took = !publishes.is_empty();
            shared.receive(publishes)?;
            outcome?;
            if took {
                subscriber.wait_on(Instant::now());
            }
            if drained || !took {
                return Ok(drained);
            }
        }
    }

    fn put_acks(&mut self, shared: &Shared, packet_ids: &mut Vec<u16>) {
        packet_ids.clear();
        shared.session.lock().take_acks(packet_ids);
        for packet_id in packet_ids.drain(..) {
            Client::puback(packet_id, &mut self.output);
        }
    }

    fn put_subscribe(&mut self, topics: &[Subscription]) -> Result<(), BrokerError> {
        // Nothing else of ours has a packet id, and only one SUBSCRIBE is under way at a time.
        const PACKET_ID: u16 = 1;
        self.client.subscribe(PACKET_ID, topics, &mut self.output)
    }

    /// Sends PINGREQ when due, and finds out whether the broker is gone. While it is we who do not read, silence says
    /// nothing about the broker.
    fn check_alive(&mut self, timers: &mut Timers, reads: bool) -> Result<Instant, BrokerError> {
        let now = Instant::now();
        if now >= timers.ping {
            timers.ping = now + self.keep_alive / 2;
            Client::pingreq(&mut self.output);
            timers.unanswered = timers.unanswered.or(Some(now));
        }
        if !reads {
            timers.unanswered = None;
        }
        timers.unwritten = if self.has_output() { timers.unwritten.or(Some(now)) } else { None };
        let silent = timers.unanswered.map(|since| since + self.keep_alive);
        if silent.is_some_and(|limit| now >= limit) {
            return Err(BrokerError::Silent(self.keep_alive));
        }
        let stalled = timers.unwritten.map(|since| since + self.keep_alive);
        if stalled.is_some_and(|limit| now >= limit) {
            return Err(BrokerError::WriteStalled(self.keep_alive));
        }
        let limits = [silent, stalled].into_iter().flatten();
        Ok(limits.fold(timers.ping, Instant::min))
    }

    fn has_output(&self) -> bool {
        !self.output.is_empty() || self.unflushed
    }

    /// Writes every PUBACK there is, says goodbye and waits until the broker has closed: it has read everything then. One
    /// that does not close may not have, which matters if there was something to acknowledge.
    async fn finish(mut self, shared: &Shared) -> Result<(), BrokerError> {
        let mut packet_ids = Vec::new();
        shared.session.lock().take_all_acks(&mut packet_ids);
        for packet_id in &packet_ids {
            Client::puback(*packet_id, &mut self.output);
        }
        Client::disconnect(&mut self.output);
        let said = Notify::new();
        let say = async {
            let written = timeout(self.keep_alive, write_last(&mut self.writer, &mut self.output)).await;
            said.notify_one();
            written.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
        };
        let (written, closed) = tokio::join!(say, wait_for_close(&mut self.reader, &said));
        if written.and(closed).is_err() && !packet_ids.is_empty() {
            return Err(BrokerError::AcksLost(packet_ids.len()));
        }
        Ok(())
    }
}

async fn write_last(writer: &mut WriteHalf<Box<dyn Stream>>, output: &mut BytesMut) -> io::Result<()> {
    writer.write_all_buf(output).await?;
    writer.flush().await?;
    writer.shutdown().await
}

/// Waits until the other side closes, after `said` for no longer than the patience.
async fn wait_for_close(reader: &mut ReadHalf<Box<dyn Stream>>, said: &Notify) -> io::Result<()> {
    let too_late = async {
        said.notified().await;
        sleep(CLOSE_PATIENCE).await;
    };
    tokio::select! {
        closed = drain(reader) => closed,
        () = too_late => Err(ErrorKind::TimedOut.into()),
    }
}

/// Reads and forgets until the other side closes. Many brokers end TLS without a word, which is fine here.
async fn drain(reader: &mut ReadHalf<Box<dyn Stream>>) -> io::Result<()> {
    let mut scratch = [0; 4096];
    loop {
        match reader.read(&mut scratch).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// One step of writing. Cancel-safe: what was written has left `output`.
async fn write_some(
    writer: &mut WriteHalf<Box<dyn Stream>>,
    output: &mut BytesMut,
    unflushed: &mut bool,
) -> io::Result<()> {
    if output.is_empty() {
        writer.flush().await?;
        *unflushed = false;
    } else {
        *unflushed = true;
        writer.write_buf(output).await?;
    }
    Ok(())
}

fn control(packet: Incoming, subscriber: &mut Subscriber) -> Result<(), BrokerError> {
    match packet {
        Incoming::SubAck(grants) => subscriber.granted(&grants, Instant::now()),
        Incoming::Disconnect(reason) => Err(BrokerError::Closed(Some(reason))),
        Incoming::ConnAck(_) => Err(BrokerError::Protocol("a second CONNACK".to_owned())),
        Incoming::Publish(_) | Incoming::Alive => Ok(()),
    }
}

/// A broker that speaks only MQTT 3.1.1 answers an MQTT 5 CONNECT in its own format.
fn hint_at_version(error: BrokerError) -> BrokerError {
    match error {
        BrokerError::Protocol(text) => BrokerError::Protocol(format!(
            "{text}, in answer to CONNECT; is it an MQTT broker, and does it speak the configured protocol version?"
        )),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Protocol;
    use super::super::session::{Arrival, Limits, Session};
    use super::*;
    use messagepipeline::{IdGenerator, Message, Settlement, SystemClock, Timestamp, Verdict};
    use parking_lot::Mutex;
    use std::sync::atomic::AtomicBool;

    fn shared() -> Shared {
        Shared {
            session: Mutex::new(Session::new(Limits { messages: 4, bytes: 1 << 20 })),
            network: Notify::new(),
            consumer: Notify::new(),
            is_gone: AtomicBool::new(false),
            ids: Arc::new(IdGenerator::default()),
            clock: Arc::new(SystemClock),
        }
    }

    /// A message that the pipeline has acknowledged and the broker does not know of yet.
    fn owe_puback(session: &mut Session, packet_id: u16) {
        let message = Message::new(IdGenerator::default().next_id(), "x", Timestamp::default());
        session.receive(Arrival { packet_id, dup: false, message });
        let token = session.take(Instant::now(), 1)[0].token;
        session.settle(&[Settlement { token, verdict: Verdict::Ack }], Instant::now());
    }

    /// Ends a connection whose broker takes everything and does not close. Answers what it took, too.
    async fn finish_with_stubborn_broker(shared: &Shared) -> (Result<(), BrokerError>, Vec<u8>) {
        let (ours, mut theirs) = tokio::io::duplex(1_024);
        let client = Client { protocol: Protocol::V311, max_packet_size: 1_024 };
        let connection = Connection::new(Box::new(ours), client, Duration::from_secs(30));
        let patience = CLOSE_PATIENCE + Duration::from_secs(1);
        let finished = timeout(patience, connection.finish(shared)).await.expect("the stop goes on");
        let mut taken = Vec::new();
        theirs.read_to_end(&mut taken).await.unwrap();
        (finished, taken)
    }

    #[tokio::test(start_paused = true)]
    async fn a_broker_that_does_not_close_holds_up_no_stop_and_pubacks_that_it_may_not_have_read_are_told() {
        let shared = shared();
        let (finished, taken) = finish_with_stubborn_broker(&shared).await;
        assert!(finished.is_ok(), "{finished:?}");
        assert_eq!(taken, [0xE0, 0]);
        owe_puback(&mut shared.session.lock(), 7);
        let (finished, taken) = finish_with_stubborn_broker(&shared).await;
        assert!(matches!(finished, Err(BrokerError::AcksLost(1))), "{finished:?}");
        assert_eq!(taken, [0x40, 2, 0, 7, 0xE0, 0]);
    }
}

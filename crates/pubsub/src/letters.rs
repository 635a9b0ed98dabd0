//! What lies on a dead letter topic: looked at, and taken away record by record.

use crate::client::{Client, Resource, StreamLimits};
use crate::error::PubSubError;
use crate::patience::Patience;
use crate::pump::from_vendor;
use crate::reach::Reach;
use crate::records::{Record, RecordKey, read, read_torn};
use crate::wire::{Decoder, Part, Received};
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use google_cloud_pubsub::Error as VendorError;
use google_cloud_pubsub::model::Message as VendorMessage;
use google_cloud_pubsub::subscriber::ShutdownToken;
use google_cloud_pubsub::subscriber::handler::Handler;
use messagepipeline::{Clock, SystemClock};
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

/// Messages between the task that reads and the caller.
const AHEAD: usize = 256;
/// How long giving everything back may take, and confirming what is taken away.
const SETTLING: Duration = Duration::from_secs(10);
/// Bytes of parts of letters that wait for the others.
const MAX_OPEN: usize = 256 << 20;

/// How a listing went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Records shown.
    pub records: usize,
    /// Copies of records that were shown already.
    pub copies: usize,
    /// Whether all that was there has come; `false` when the bound was reached first.
    pub is_complete: bool,
}

/// Reads a subscription of a dead letter topic; see [`crate::Client::letters`].
///
/// It takes deliveries, shows them, and gives back what was not settled. Another reader sees nothing of it meanwhile, and
/// the service counts a delivery for each.
#[derive(Clone, Debug)]
pub struct LetterReader {
    client: Client,
    subscription: Resource,
}

impl LetterReader {
    pub(crate) fn new(client: Client, subscription: Resource) -> Self {
        Self { client, subscription }
    }

    /// Begins to read; at most `max` messages are held.
    ///
    /// # Errors
    /// When the client cannot be set up, or the service does not answer. A subscription that is missing shows with the
    /// first record.
    pub async fn open(&self, max: usize) -> Result<LetterSession, PubSubError> {
        let limits = StreamLimits {
            messages: i64::try_from(max).unwrap_or(i64::MAX).max(1),
            bytes: 0,
            extension: Duration::from_secs(10),
            lease: Duration::from_secs(3_600),
        };
        let reach = Reach::new(self.client.clone(), self.subscription.clone());
        // A stream that cannot connect says nothing, and neither does one that has nothing to send.
        reach.ask().await?;
        let patience = Patience::new(SystemClock.now());
        let mut stream = self.client.open_stream(&self.subscription, limits).await?;
        let token = stream.shutdown_token();
        let (sender, incoming) = mpsc::channel(AHEAD);
        // Its call must not be dropped while it is open, so it has a task of its own.
        let reader = tokio::spawn(async move {
            while let Some(item) = stream.next().await {
                if sender.send(item).await.is_err() {
                    return;
                }
            }
        });
        Ok(LetterSession {
            subscription: self.subscription.full().to_owned(),
            reach,
            incoming,
            reader,
            token,
            decoder: Decoder::default(),
            held: HashMap::new(),
            messages: HashSet::new(),
            max,
            open: HashMap::new(),
            open_bytes: 0,
            patience,
            end: None,
            is_quiet_confirmed: false,
            copies: 0,
        })
    }

    /// Shows every record once to `show`, of at most `max` messages, until all that was there has come (see
    /// [`LetterSession::next`]), and gives all back.
    ///
    /// # Errors
    /// When the subscription cannot be read.
    pub async fn list(
        &self,
        max: usize,
        quiet: Duration,
        mut show: impl FnMut(Record),
    ) -> Result<Listing, PubSubError> {
        let mut session = self.open(max).await?;
        let mut records = 0;
        let ended = loop {
            match session.next(quiet).await {
                Ok(Some(record)) => {
                    records += 1;
                    show(record);
                }
                Ok(None) => break Ok(session.is_complete()),
                Err(error) => break Err(error),
            }
        };
        let copies = session.copies;
        // Without an answer to what was given back the leases run out by themselves.
        let _ = session.close().await;
        ended.map(|is_complete| Listing { records, copies, is_complete })
    }
}

/// Records that are held by a lease until the session is closed; see [`LetterReader::open`]. Whoever drops it, or dies,
/// leaves everything where it was but for what was settled.
#[derive(Debug)]
pub struct LetterSession {
    subscription: String,
    reach: Reach,
    incoming: mpsc::Receiver<Result<(VendorMessage, Handler), VendorError>>,
    reader: JoinHandle<()>,
    token: ShutdownToken,
    decoder: Decoder,
    held: HashMap<RecordKey, Held>,
    /// Pub/Sub's ids of the messages that are held; the service sends no more than `max`.
    messages: HashSet<String>,
    max: usize,
    /// Letters of which parts are missing.
    open: HashMap<RecordKey, Parts>,
    open_bytes: usize,
    patience: Patience,
    end: Option<End>,
    is_quiet_confirmed: bool,
    copies: usize,
}

/// Why a session looks for nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing of what was there has come for a while.
    Quiet,
    /// It holds as many messages as it may.
    Full,
}

/// The deliveries of a record and its copies.
#[derive(Default)]
struct Held {
    leases: Vec<Lease>,
    /// Pub/Sub's ids of what was settled; the same may come again.
    settled: HashSet<String>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").field("leases", &self.leases.len()).finish_non_exhaustive()
    }
}

/// Pub/Sub's id of a delivery and what settles it.
type Lease = (String, Handler);

impl LetterSession {
    /// The next record, each once; `None` when nothing that was published before the session was opened has come for
    /// `quiet` (a few seconds: the service does not say that it has nothing more), or when as many messages are held as
    /// may be, which [`Self::is_complete`] tells. What is published meanwhile is shown if it comes before that end. Letters
    /// whose other parts have not come then come last, marked as not whole.
    ///
    /// # Errors
    /// When the subscription cannot be read, or the service answers no more.
    pub async fn next(&mut self, quiet: Duration) -> Result<Option<Record>, PubSubError> {
        while self.end.is_none() {
            let left = self.patience.left(quiet);
            if self.messages.len() >= self.max {
                self.end = Some(End::Full);
            } else if left.is_zero() {
                self.end = Some(End::Quiet);
            } else if let Some(record) = self.receive(left).await? {
                return Ok(Some(record));
            }
        }
        if self.end == Some(End::Quiet) && !self.is_quiet_confirmed {
            // Silence means that there is nothing more only where the service still answers.
            self.reach.ask().await?;
            self.is_quiet_confirmed = true;
        }
        if self.end == Some(End::Full) {
            // The other parts of what is open may lie beyond the bound.
            return Ok(None);
        }
        // The other parts of what is new are on their way.
        let torn = self.open.iter().find(|(_, parts)| !parts.is_new).map(|(key, _)| key.clone());
        Ok(torn.and_then(|key| self.give_up_on(&key)))
    }

    /// Whether all that was there when the session was opened has come; `false` when it holds as many messages as it may,
    /// so that there may be more. Asked for when [`Self::next`] has said `None`.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.end == Some(End::Quiet)
    }

    /// What comes within `left`, if it is a record that was not shown.
    async fn receive(&mut self, left: Duration) -> Result<Option<Record>, PubSubError> {
        let begun = Instant::now();
        match timeout(left, self.incoming.recv()).await {
            Err(_) => {
                self.end = Some(End::Quiet);
                Ok(None)
            }
            Ok(Some(Ok((message, handler)))) => {
                let received = from_vendor(message);
                let is_new = self.patience.heard(received.publish_time, begun.elapsed());
                Ok(self.take(received, handler, is_new))
            }
            Ok(Some(Err(error))) => Err(PubSubError::from_vendor(&self.subscription, &error)),
            Ok(None) => Err(PubSubError::Closed),
        }
    }

    /// Takes the records of `keys` away, with all their copies that have come.
    ///
    /// # Errors
    /// When the service did not confirm it, which it does only on subscriptions with exactly-once delivery: those records
    /// may come again.
    pub async fn settle(&mut self, keys: &[RecordKey]) -> Result<(), PubSubError> {
        let mut confirmations = Vec::new();
        for key in keys {
            let Some(held) = self.held.get_mut(key) else { continue };
            for (id, handler) in held.leases.drain(..) {
                self.messages.remove(&id);
                held.settled.insert(id);
                match handler {
                    Handler::ExactlyOnce(handler) => confirmations.push(handler.confirmed_ack()),
                    handler => handler.ack(),
                }
            }
        }
        let count = confirmations.len();
        let answers = timeout(SETTLING, join_all(confirmations)).await.unwrap_or_default();
        let confirmed = answers.iter().filter(|answer| answer.is_ok()).count();
        match count - confirmed {
            0 => Ok(()),
            lost => Err(PubSubError::VerdictsLost(format!(
                "{} did not confirm that {lost} letters were taken away",
                self.subscription
            ))),
        }
    }

    /// Gives back what was not settled, and waits until the rest has reached the service.
    ///
    /// # Errors
    /// When it did not in time; what was settled may come again.
    pub async fn close(self) -> Result<(), PubSubError> {
        let Self { subscription, incoming, reader, token, held, open, .. } = self;
        let until = Instant::now() + SETTLING;
        // The stream ends first: what is given back must not come to it again.
        reader.abort();
        let _ = timeout_at(until, reader).await;
        drop((incoming, held, open));
        let late = |_| PubSubError::VerdictsLost(format!("{subscription} did not take all verdicts in time"));
        timeout_at(until, token.shutdown()).await.map_err(late)
    }

    /// A record that is new, whole and was not shown.
    fn take(&mut self, mut received: Received, handler: Handler, is_new: bool) -> Option<Record> {
        let part = Part::take(&mut received);
        let lease = (received.message_id.clone(), handler);
        self.messages.insert(received.message_id.clone());
        if let Some(part) = part
            && let Some(key) = RecordKey::of_letter(&received)
        {
            return self.take_part(key, (part, is_new), received, lease);
        }
        let record = read(&mut self.decoder, received);
        self.hold(record.key(), vec![lease]).then_some(record)
    }

    fn take_part(
        &mut self,
        key: RecordKey,
        (part, is_new): (Part, bool),
        received: Received,
        lease: Lease,
    ) -> Option<Record> {
        if self.held.contains_key(&key) {
            self.hold(key, vec![lease]);
            return None;
        }
        let bytes = received.data.len();
        let parts = self.open.entry(key.clone()).or_insert_with(|| Parts::new(part.of, received.clone()));
        parts.leases.push(lease);
        parts.is_new |= is_new;
        if parts.add(part, received.data) {
            self.open_bytes += bytes;
        }
        if parts.is_whole() {
            let parts = self.close_parts(&key)?;
            let record = read(&mut self.decoder, parts.joined());
            self.hold(key, parts.leases);
            return Some(record);
        }
        if self.open_bytes > MAX_OPEN { self.give_up_on(&key) } else { None }
    }

    fn close_parts(&mut self, key: &RecordKey) -> Option<Parts> {
        let parts = self.open.remove(key)?;
        self.open_bytes = self.open_bytes.saturating_sub(parts.bytes());
        Some(parts)
    }

    /// The letter `key` as far as it has come.
    fn give_up_on(&mut self, key: &RecordKey) -> Option<Record> {
        let parts = self.close_parts(key)?;
        let record = read_torn(&mut self.decoder, parts.head);
        self.hold(key.clone(), parts.leases);
        Some(record)
    }

    /// Keeps deliveries until the end; whether they are the first ones of their record. What was settled and comes once
    /// more is settled once more; what is put there anew is not.
    fn hold(&mut self, key: RecordKey, leases: Vec<Lease>) -> bool {
        let is_first = !self.held.contains_key(&key);
        self.copies += usize::from(!is_first);
        let held = self.held.entry(key).or_default();
        for (id, handler) in leases {
            if held.settled.contains(&id) {
                self.messages.remove(&id);
                handler.ack();
            } else {
                held.leases.push((id, handler));
            }
        }
        is_first
    }
}

/// The parts of a letter that have come.
struct Parts {
    /// One of them, for its attributes.
    head: Received,
    bodies: Vec<Option<Bytes>>,
    leases: Vec<Lease>,
    /// Whether one of them was published after the session was opened.
    is_new: bool,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("of", &self.bodies.len()).finish_non_exhaustive()
    }
}

impl Parts {
    fn new(of: usize, head: Received) -> Self {
        let head = Received { data: Bytes::new(), ..head };
        Self { head, bodies: vec![None; of], leases: Vec::new(), is_new: false }
    }

    /// Whether `body` was missing.
    fn add(&mut self, part: Part, body: Bytes) -> bool {
        let missing = (self.bodies.len() == part.of)
            .then(|| self.bodies.get_mut(part.number - 1))
            .flatten()
            .filter(|place| place.is_none());
        missing.is_some_and(|place| {
            *place = Some(body);
            true
        })
    }

    fn bytes(&self) -> usize {
        self.bodies.iter().flatten().map(Bytes::len).sum()
    }

    fn is_whole(&self) -> bool {
        self.bodies.iter().all(Option::is_some)
    }

    /// The letter as it would be in one piece.
    fn joined(&self) -> Received {
        let mut data = BytesMut::with_capacity(self.bytes());
        self.bodies.iter().flatten().for_each(|body| data.extend_from_slice(body));
        Received { data: data.freeze(), ..self.head.clone() }
    }
}

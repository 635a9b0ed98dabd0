//! A bus and a dead-letter store in memory. They keep the contracts of the durable ones, and what is durable there
//! survives a restart that a test plays. They use no thread and tokio's time alone, so tests run them on paused time.

use futures_util::future::BoxFuture;
use messagepipeline::{
    BatchOutcome, Bytes, Chunk, Consumer, DeadLetter, DeadLetters, Delivery, ID_CONFLICT, Message, MessageId,
    Publisher, Settle, Settlement, Skipped, StageError, Token, Verdict,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Returns of one message to the front of the queue; a further one goes to its end, so that others get a turn.
const RETURNS_TO_FRONT: u32 = 3;

/// How much a [`MemoryConsumer`] hands out.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerLimits {
    /// Messages in one chunk, at most.
    pub chunk: usize,
    /// Distance, in messages, between the newest message handed out and the oldest without a verdict, at most.
    pub outstanding: usize,
    /// The same distance in bytes; one message is always handed out, whatever its size.
    pub outstanding_bytes: usize,
}

impl Default for ConsumerLimits {
    fn default() -> Self {
        Self { chunk: 256, outstanding: 32_768, outstanding_bytes: 64 << 20 }
    }
}

/// When a message comes again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delays {
    /// After this time a message without a verdict comes again, its attempt unchanged; `None`: never.
    pub lease: Option<Duration>,
    /// How long after a nack.
    pub nack: Duration,
}

/// Topics and subscriptions in memory. Cloning shares them.
#[derive(Clone, Default)]
pub struct MemoryBus(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    delays: Delays,
    topics: BTreeMap<String, Topic>,
    subscriptions: BTreeMap<String, Subscription>,
}

#[derive(Default)]
struct Topic {
    messages: Vec<Message>,
    payloads: HashMap<MessageId, Bytes>,
}

struct Subscription {
    topic: String,
    ready: VecDeque<Message>,
    /// Nacked messages and when they come again, in that order.
    delayed: VecDeque<(Instant, Message)>,
    returns: HashMap<MessageId, u32>,
    acked: Vec<MessageId>,
    changed: Arc<Notify>,
}

impl Subscription {
    fn give_back(&mut self, message: Message) {
        let returns = self.returns.entry(message.id).or_default();
        *returns += 1;
        if *returns > RETURNS_TO_FRONT {
            self.ready.push_back(message)
        } else {
            self.ready.push_front(message)
        }
    }

    fn nack(&mut self, mut message: Message, delay: Duration) {
        message.attempt += 1;
        if delay.is_zero() {
            self.ready.push_back(message);
        } else {
            self.delayed.push_back((Instant::now() + delay, message));
        }
    }

    fn release_delayed(&mut self, now: Instant) {
        while let Some((_, message)) = self.delayed.pop_front_if(|(due, _)| *due <= now) {
            self.ready.push_back(message);
        }
    }
}

impl MemoryBus {
    /// A bus without topics; its leases do not end, and a nacked message comes again at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A bus without topics.
    #[must_use]
    pub fn with_delays(delays: Delays) -> Self {
        Self(Arc::new(Mutex::new(State { delays, ..State::default() })))
    }

    /// Adds `topic`, if it is not there yet.
    pub fn create_topic(&self, topic: &str) {
        self.0.lock().topics.entry(topic.to_owned()).or_default();
    }

    /// Adds `subscription` to `topic`, which is added as well; it receives everything the topic holds and will hold.
    pub fn subscribe(&self, topic: &str, subscription: &str) {
        let mut state = self.0.lock();
        let ready = state.topics.entry(topic.to_owned()).or_default().messages.iter().cloned().collect();
        state.subscriptions.entry(subscription.to_owned()).or_insert_with(|| Subscription {
            topic: topic.to_owned(),
            ready,
            delayed: VecDeque::new(),
            returns: HashMap::new(),
            acked: Vec::new(),
            changed: Arc::new(Notify::new()),
        });
    }

    /// A publisher to `topic`.
    #[must_use]
    pub fn publisher(&self, topic: &str) -> MemoryPublisher {
        self.create_topic(topic);
        MemoryPublisher { bus: self.clone(), topic: topic.to_owned() }
    }

    /// A consumer of `subscription`. Several consumers of one subscription share its messages.
    ///
    /// # Panics
    /// When there is no such subscription.
    #[must_use]
    pub fn consumer(&self, subscription: &str, limits: ConsumerLimits) -> MemoryConsumer {
        let state = self.0.lock();
        let changed = state.subscriptions.get(subscription).map(|s| Arc::clone(&s.changed));
        let changed = changed.unwrap_or_else(|| panic!("no subscription {subscription:?}"));
        let session = Session {
            bus: self.clone(),
            subscription: subscription.to_owned(),
            changed,
            window: Mutex::default(),
        };
        MemoryConsumer { session: Arc::new(session), limits }
    }

    /// The messages of `topic` in their order.
    #[must_use]
    pub fn messages(&self, topic: &str) -> Vec<Message> {
        self.0.lock().topics.get(topic).map(|t| t.messages.clone()).unwrap_or_default()
    }

    /// The ids acknowledged by `subscription`, in the order of their acknowledgement.
    #[must_use]
    pub fn acked(&self, subscription: &str) -> Vec<MessageId> {
        self.0.lock().subscriptions.get(subscription).map(|s| s.acked.clone()).unwrap_or_default()
    }

    /// Messages of `subscription` that wait for delivery.
    #[must_use]
    pub fn waiting(&self, subscription: &str) -> usize {
        self.0.lock().subscriptions.get(subscription).map_or(0, |s| s.ready.len() + s.delayed.len())
    }

    /// Messages of its topic that `subscription` has not acknowledged.
    #[must_use]
    pub fn unsettled(&self, subscription: &str) -> usize {
        let state = self.0.lock();
        let Some(subscription) = state.subscriptions.get(subscription) else { return 0 };
        let published = state.topics.get(&subscription.topic).map_or(0, |topic| topic.messages.len());
        published - subscription.acked.len()
    }

    /// Whether `topic` holds `id`.
    #[must_use]
    pub fn holds(&self, topic: &str, id: MessageId) -> bool {
        self.0.lock().topics.get(topic).is_some_and(|t| t.payloads.contains_key(&id))
    }

    fn put(&self, topic: &str, messages: Vec<Message>) -> Vec<Result<(), StageError>> {
        let mut state = self.0.lock();
        let State { topics, subscriptions, .. } = &mut *state;
        let store = topics.entry(topic.to_owned()).or_default();
        let mut results = Vec::with_capacity(messages.len());
        for mut message in messages {
            if let Some(payload) = store.payloads.get(&message.id) {
                results.push(same_payload(message.id, payload, &message.payload));
                continue;
            }
            message.attempt = 1;
            store.payloads.insert(message.id, message.payload.clone());
            for subscription in subscriptions.values_mut().filter(|s| s.topic == topic) {
                subscription.ready.push_back(message.clone());
            }
            store.messages.push(message);
            results.push(Ok(()));
        }
        for subscription in subscriptions.values().filter(|s| s.topic == topic) {
            subscription.changed.notify_waiters();
        }
        results
    }
}

fn same_payload(id: MessageId, stored: &Bytes, given: &Bytes) -> Result<(), StageError> {
    if stored == given {
        return Ok(());
    }
    Err(StageError::permanent(ID_CONFLICT, format!("id {id} already stands for another payload")))
}

/// Publishes to one topic of a [`MemoryBus`].
#[derive(Clone)]
pub struct MemoryPublisher {
    bus: MemoryBus,
    topic: String,
}

impl MemoryPublisher {
    /// Publishes one message, at once.
    ///
    /// # Errors
    /// When its id stands for another payload.
    pub fn put(&self, message: Message) -> Result<(), StageError> {
        self.bus.put(&self.topic, vec![message]).into_iter().collect()
    }
}

impl Publisher for MemoryPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        Box::pin(async move {
            let results = self.bus.put(&self.topic, messages);
            if results.iter().all(Result::is_ok) { BatchOutcome::Done } else { BatchOutcome::Each(results) }
        })
    }
}

/// Consumes one subscription of a [`MemoryBus`].
///
/// A nacked message goes to the end of the queue, after the bus's delay, a returned one to its front, at
/// its fourth return to the end.
pub struct MemoryConsumer {
    session: Arc<Session>,
    limits: ConsumerLimits,
}

struct Session {
    bus: MemoryBus,
    subscription: String,
    changed: Arc<Notify>,
    window: Mutex<Window>,
}

/// What was handed out, from the oldest message without a verdict on. A token is a place in it.
#[derive(Default)]
struct Window {
    first: u64,
    places: VecDeque<Place>,
    bytes: usize,
    closed: bool,
}

struct Place {
    weight: usize,
    /// When the lease ends.
    until: Option<Instant>,
    message: Option<Message>,
}

impl Window {
    fn has_room(&self, limits: &ConsumerLimits) -> bool {
        self.places.is_empty()
            || (self.places.len() < limits.outstanding && self.bytes < limits.outstanding_bytes)
    }

    fn hand_out(&mut self, message: Message, until: Option<Instant>) -> Delivery {
        let token = Token(self.first + self.places.len() as u64);
        let weight = message.weight();
        self.bytes += weight;
        self.places.push_back(Place { weight, until, message: Some(message.clone()) });
        Delivery { message, token }
    }

    fn take(&mut self, token: Token) -> Option<Message> {
        let index = usize::try_from(token.0.checked_sub(self.first)?).ok()?;
        let message = self.places.get_mut(index)?.message.take();
        self.advance();
        message
    }

    fn advance(&mut self) {
        while self.places.front().is_some_and(|place| place.message.is_none()) {
            self.bytes -= self.places.pop_front().map_or(0, |place| place.weight);
            self.first += 1;
        }
    }

    /// Takes back what was handed out and had no verdict until its lease ended.
    fn expire(&mut self, now: Instant) -> Vec<Message> {
        let over = self.places.iter_mut().take_while(|place| place.until.is_some_and(|until| until <= now));
        let expired = over.filter_map(|place| place.message.take()).collect();
        self.advance();
        expired
    }
}

impl Session {
    fn hand_out(&self, limits: &ConsumerLimits) -> Vec<Delivery> {
        let mut window = self.window.lock();
        let mut state = self.bus.0.lock();
        let (now, lease) = (Instant::now(), state.delays.lease);
        let Some(subscription) = state.subscriptions.get_mut(&self.subscription) else { return Vec::new() };
        subscription.ready.extend(window.expire(now));
        subscription.release_delayed(now);
        let mut deliveries = Vec::with_capacity(limits.chunk.min(subscription.ready.len()));
        while deliveries.len() < limits.chunk && window.has_room(limits) {
            let Some(message) = subscription.ready.pop_front() else { break };
            deliveries.push(window.hand_out(message, lease.map(|lease| now + lease)));
        }
        deliveries
    }

    /// Waits until a lease ends or a nacked message is due.
    async fn next_event(&self) {
        let lease = self.window.lock().places.front().and_then(|place| place.until);
        let nacked = |s: &Subscription| s.delayed.front().map(|(due, _)| *due);
        let nacked = self.bus.0.lock().subscriptions.get(&self.subscription).and_then(nacked);
        match lease.into_iter().chain(nacked).min() {
            Some(event) => sleep_until(event).await,
            None => std::future::pending().await,
        }
    }

    fn close(&self) {
        let mut window = self.window.lock();
        window.closed = true;
        let mut state = self.bus.0.lock();
        if let Some(subscription) = state.subscriptions.get_mut(&self.subscription) {
            for message in window.places.drain(..).rev().filter_map(|place| place.message) {
                subscription.ready.push_front(message);
            }
        }
        self.changed.notify_waiters();
    }
}

impl Settle for Session {
    fn settle(&self, settlements: &[Settlement]) {
        let mut window = self.window.lock();
        if window.closed {
            return;
        }
        let mut state = self.bus.0.lock();
        let nack_delay = state.delays.nack;
        let Some(subscription) = state.subscriptions.get_mut(&self.subscription) else { return };
        subscription.ready.extend(window.expire(Instant::now()));
        for settlement in settlements {
            let Some(message) = window.take(settlement.token) else { continue };
            match settlement.verdict {
                Verdict::Ack => subscription.acked.push(message.id),
                Verdict::Return => subscription.give_back(message),
                Verdict::Nack => subscription.nack(message, nack_delay),
            }
        }
        self.changed.notify_waiters();
    }
}

impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        loop {
            let changed = Arc::clone(&self.session.changed);
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            let deliveries = self.session.hand_out(&self.limits);
            if !deliveries.is_empty() {
                return Ok(Some(Chunk::new(Arc::clone(&self.session) as Arc<dyn Settle>, deliveries)));
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = self.session.next_event() => {}
            }
        }
    }

    async fn close(&mut self) -> Result<(), StageError> {
        self.session.close();
        Ok(())
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.session.close();
    }
}

/// Keeps dead letters and skips in memory. Cloning shares them.
#[derive(Clone, Default)]
pub struct MemoryDeadLetters(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    letters: Vec<DeadLetter>,
    skips: Vec<Skipped>,
}

impl MemoryDeadLetters {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The dead letters in the order in which they came.
    #[must_use]
    pub fn letters(&self) -> Vec<DeadLetter> {
        self.0.lock().letters.clone()
    }

    /// The skips in the order in which they came.
    #[must_use]
    pub fn skips(&self) -> Vec<Skipped> {
        self.0.lock().skips.clone()
    }
}

impl DeadLetters for MemoryDeadLetters {
    fn put(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            let mut kept = self.0.lock();
            for letter in letters {
                let known = |l: &DeadLetter| l.stage == letter.stage && l.message.id == letter.message.id;
                if !kept.letters.iter().any(known) {
                    kept.letters.push(letter);
                }
            }
            Ok(())
        })
    }

    fn record_skips(&self, skips: Vec<Skipped>) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(async move {
            let mut kept = self.0.lock();
            for skip in skips {
                if !kept.skips.iter().any(|s| s.stage == skip.stage && s.id == skip.id) {
                    kept.skips.push(skip);
                }
            }
            Ok(())
        })
    }
}

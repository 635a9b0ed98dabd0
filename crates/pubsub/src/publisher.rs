//! The publisher: room first, then the wire, then an answer for every message.

use crate::budget::{Budget, Share};
use crate::client::{Client, Resource};
use crate::error::PubSubError;
use crate::options::{Ordering, PublisherOptions, Wire};
use crate::ordered::{OrderedSender, publish_in_order};
use crate::unsure::Unsure;
use crate::wire::{Encoded, Fact, MAX_MESSAGE, PART, Part, RETRIED_FOR, encode};
use futures_util::future::BoxFuture;
use google_cloud_pubsub::client::Publisher as VendorPublisher;
use google_cloud_pubsub::error::PublishError;
use google_cloud_pubsub::model::Message as VendorMessage;
use google_cloud_pubsub::publisher::PublishFuture;
use messagepipeline::metric_names::BUS_PUBLISHED;
use messagepipeline::{BatchOutcome, ErrorClass, Message, Publisher, StageError};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

/// How much longer than its own deadline the client may take before its connection is given up.
const GRACE: Duration = Duration::from_secs(5);

/// Publishes to one topic; see [`crate::Client::publisher`]. Cloning shares window and connection.
///
/// Pub/Sub knows no ids: what is published twice is delivered twice, with the same message id. A message that Pub/Sub
/// refuses fails alone; while topic or rights are missing, all fail as a mistake of configuration. One that is published
/// again after no answer came, or while an earlier call with it goes on, is marked as delivered before.
///
/// With ordering keys the calls of all clones take turns.
#[derive(Clone)]
pub struct PubSubPublisher(Arc<Inner>);

struct Inner {
    client: Client,
    topic: Resource,
    options: PublisherOptions,
    budget: Budget,
    /// One permit: calls take turns when messages are ordered.
    turn: Arc<Semaphore>,
    unsure: Mutex<Unsure>,
    /// Fills requests.
    shared: Lazy,
    /// Sends every message in a request of its own.
    alone: Lazy,
    published: metrics::Counter,
}

/// A connection that is made when it is first used.
#[derive(Default)]
struct Lazy(Mutex<Option<Arc<VendorPublisher>>>);

impl Lazy {
    fn current(&self) -> Option<Arc<VendorPublisher>> {
        self.0.lock().clone()
    }

    /// The next use connects anew, unless another connection has taken the place of `dead` already.
    fn give_up(&self, dead: &Arc<VendorPublisher>) {
        let mut current = self.0.lock();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, dead)) {
            *current = None;
        }
    }
}

/// What became of one message.
pub(crate) type Outcome = Result<(), PubSubError>;

impl PubSubPublisher {
    pub(crate) fn new(client: Client, topic: Resource, options: PublisherOptions) -> Self {
        let published = metrics::counter!(BUS_PUBLISHED, "topic" => topic.short().to_owned());
        Self(Arc::new(Inner {
            budget: Budget::new(options.max_outstanding_messages, options.max_outstanding_bytes),
            turn: Arc::new(Semaphore::new(1)),
            unsure: Mutex::new(Unsure::new(options.max_outstanding_messages)),
            shared: Lazy::default(),
            alone: Lazy::default(),
            client,
            topic,
            options,
            published,
        }))
    }

    /// Publishes `messages`, each with its facts. The work goes on when the future is dropped, because the client
    /// holds the messages until it has an answer; until then they keep their room.
    ///
    /// Its deadline counts from here, whatever it waits for: twice the deadline and a few seconds later at the most all
    /// is over, which must be before the caller's patience is.
    pub(crate) async fn publish_with(&self, messages: Vec<Entry>) -> BatchOutcome {
        let until = Instant::now() + self.0.options.deadline;
        let weight = messages.iter().map(Entry::weight).sum();
        let ordered = self.0.options.ordering != Ordering::None;
        let turn = if ordered { Arc::clone(&self.0.turn).acquire_owned().await.ok() } else { None };
        let Some(share) = self.0.budget.take(messages.len(), weight).await else {
            return BatchOutcome::Failed(PubSubError::Closed.into());
        };
        let inner = Arc::clone(&self.0);
        let work = tokio::spawn(async move {
            let outcome = inner.publish(messages, share, until).await;
            drop(turn);
            outcome
        });
        work.await.unwrap_or_else(|_| BatchOutcome::Failed(PubSubError::Closed.into()))
    }
}

/// A fact that a message carries beside its own: a name and its value.
pub(crate) type OwnedFact = (&'static str, String);

/// A message with its facts, or a part of it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) message: Message,
    pub(crate) facts: Vec<OwnedFact>,
    /// `None` for the whole message.
    pub(crate) part: Option<Part>,
}

impl Entry {
    pub(crate) fn new(message: Message, facts: Vec<OwnedFact>) -> Self {
        Self { message, facts, part: None }
    }

    /// As it goes over the wire.
    pub(crate) fn encoded(&self, wire: Wire) -> Encoded {
        let mut facts: Vec<Fact<'_>> =
            self.facts.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let Some(part) = self.part else { return encode(&self.message, wire, &facts) };
        let text = part.text();
        facts.push((PART, &text));
        let mut encoded = encode(&self.message, wire, &facts);
        encoded.data = part.of_body(&encoded.data);
        encoded
    }

    fn weight(&self) -> usize {
        self.message.weight() / self.part.map_or(1, |part| part.of)
    }
}

impl PubSubPublisher {
    /// Publishes again what `service` gave up: other consumers of the topic that know their service
    /// ([`crate::ConsumerOptions::service`]) acknowledge it unread, for they have had it.
    pub async fn publish_again(&self, messages: Vec<Message>, service: &str) -> BatchOutcome {
        let entry = |message| Entry::new(message, vec![(RETRIED_FOR, service.to_owned())]);
        self.publish_with(messages.into_iter().map(entry).collect()).await
    }
}

impl Publisher for PubSubPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        let messages = messages.into_iter().map(|message| Entry::new(message, Vec::new())).collect();
        Box::pin(self.publish_with(messages))
    }
}

impl std::fmt::Debug for PubSubPublisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PubSubPublisher").field("topic", &self.0.topic.full()).finish_non_exhaustive()
    }
}

impl Inner {
    async fn publish(&self, mut messages: Vec<Entry>, _share: Share, until: Instant) -> BatchOutcome {
        if Instant::now() >= until {
            return BatchOutcome::Failed(self.out_of_time().into());
        }
        let vendor = match self.connected(&self.shared, false).await {
            Ok(vendor) => vendor,
            Err(error) => return BatchOutcome::Failed(error.into()),
        };
        self.unsure.lock().begin(&mut messages);
        let sent = messages.iter().map(|entry| Ok(vendor.publish(self.encode(entry)?))).collect();
        let mut outcomes = self.answers(&self.shared, &vendor, sent).await;
        self.resume(&vendor, &messages, &outcomes);
        self.repeat_alone(&messages, &mut outcomes, until).await;
        self.unsure.lock().end(&messages, &outcomes);
        let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        self.published.increment(done as u64);
        summarise(messages.iter().map(|entry| &entry.message), outcomes)
    }

    /// The message as the client takes it.
    fn encode(&self, entry: &Entry) -> Result<VendorMessage, PubSubError> {
        let encoded = entry.encoded(self.options.wire);
        let bytes = encoded.size();
        if bytes > MAX_MESSAGE {
            return Err(PubSubError::TooLarge { bytes, limit: MAX_MESSAGE });
        }
        let mut made = VendorMessage::new().set_data(encoded.data);
        made.attributes = encoded.attributes;
        made.ordering_key = self.key(&entry.message).unwrap_or_default();
        Ok(made)
    }

    /// The ordering key of `message`, when messages are ordered.
    fn key(&self, message: &Message) -> Option<String> {
        let Ordering::ByDevice { keys } = self.options.ordering else { return None };
        let device = message.device_id().unwrap_or_default();
        Some(format!("k{}", farmhash::fingerprint64(device.as_bytes()) % u64::from(keys.max(1))))
    }

    /// Waits for the answers. When one does not come, the connection is given up: nothing else notices that it is dead.
    async fn answers(
        &self,
        lazy: &Lazy,
        vendor: &Arc<VendorPublisher>,
        sent: Vec<Result<PublishFuture, PubSubError>>,
    ) -> Vec<Outcome> {
        let until = Instant::now() + self.options.deadline + GRACE;
        let mut outcomes = Vec::with_capacity(sent.len());
        let mut is_dead = false;
        for answer in sent {
            let outcome = match answer {
                Err(error) => Err(error),
                Ok(answer) => match timeout_at(until, answer).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(error)) => {
                        is_dead |= is_timeout(&error);
                        Err(self.error(&error))
                    }
                    Err(_) => {
                        is_dead = true;
                        Err(PubSubError::Timeout {
                            resource: self.topic.full().to_owned(),
                            after: self.options.deadline,
                        })
                    }
                },
            };
            outcomes.push(outcome);
        }
        if is_dead {
            tracing::warn!(topic = self.topic.full(), "Pub/Sub does not answer; connecting anew");
            lazy.give_up(vendor);
        }
        outcomes
    }

    /// After a failure the client refuses a key until it is told to go on.
    fn resume(&self, vendor: &VendorPublisher, messages: &[Entry], outcomes: &[Outcome]) {
        let failed = messages.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_err());
        let keys: HashSet<_> = failed.filter_map(|(entry, _)| self.key(&entry.message)).collect();
        for key in keys {
            vendor.resume_publish(key);
        }
    }

    /// A request that the service refuses is refused as a whole. Each of its messages gets one of its own, so that only
    /// the one at fault fails.
    async fn repeat_alone(&self, messages: &[Entry], outcomes: &mut [Outcome], until: Instant) {
        let repeated = self.repeatable(messages, outcomes);
        if repeated.is_empty() {
            return;
        }
        if self.options.ordering != Ordering::None {
            let ordered: Vec<_> = repeated
                .iter()
                .map(|at| (*at, self.key(&messages[*at].message).unwrap_or_default()))
                .collect();
            let sender = Alone { publisher: self, messages };
            let answers = publish_in_order(&sender, &ordered, until).await;
            return repeated.iter().zip(answers).for_each(|(at, answer)| outcomes[*at] = answer);
        }
        for part in repeated.chunks(AT_ONCE) {
            let answers = if Instant::now() < until {
                self.send_alone(messages, part).await
            } else {
                vec![Err(self.out_of_time()); part.len()]
            };
            part.iter().zip(answers).for_each(|(at, answer)| outcomes[*at] = answer);
        }
    }

    /// Sends the messages at `places`, each in a request of its own; an answer each.
    async fn send_alone(&self, messages: &[Entry], places: &[usize]) -> Vec<Outcome> {
        match self.connected(&self.alone, true).await {
            Ok(vendor) => {
                let sent = places.iter().map(|at| Ok(vendor.publish(self.encode(&messages[*at])?))).collect();
                self.answers(&self.alone, &vendor, sent).await
            }
            // None of them may count as refused: most are not at fault.
            Err(error) => vec![Err(error); places.len()],
        }
    }

    /// That a message was not sent, because those before it took all the time.
    fn out_of_time(&self) -> PubSubError {
        let message = "what was published before it took all the time".to_owned();
        PubSubError::Unavailable { resource: self.topic.full().to_owned(), message }
    }

    /// The messages whose request was refused, and those behind them under the same key. What follows a message that
    /// failed for another reason under its key is left, or it would overtake it.
    fn repeatable(&self, messages: &[Entry], outcomes: &[Outcome]) -> Vec<usize> {
        let mut first_of_key = HashMap::new();
        let mut is_repeatable = |at: &usize| {
            let Err(error) = &outcomes[*at] else { return false };
            if matches!(error, PubSubError::TooLarge { .. }) {
                return false; // It was never sent, and so holds up none.
            }
            let this = matches!(error, PubSubError::Invalid { .. } | PubSubError::KeyPaused);
            let first =
                self.key(&messages[*at].message).map_or(this, |key| *first_of_key.entry(key).or_insert(this));
            this && first
        };
        (0..outcomes.len()).filter(|at| is_repeatable(at)).collect()
    }

    async fn connected(&self, lazy: &Lazy, alone: bool) -> Result<Arc<VendorPublisher>, PubSubError> {
        if let Some(vendor) = lazy.current() {
            return Ok(vendor);
        }
        let mut options = self.options.clone();
        if alone {
            options.batch_messages = 1;
        }
        let made = self.client.connect_publisher(&self.topic, &options).await?;
        Ok(lazy.0.lock().get_or_insert_with(|| Arc::new(made)).clone())
    }

    fn error(&self, error: &PublishError) -> PubSubError {
        match error {
            PublishError::Rpc(error) => PubSubError::from_vendor(self.topic.full(), error),
            PublishError::OrderingKeyPaused => PubSubError::KeyPaused,
            other => PubSubError::Unavailable {
                resource: self.topic.full().to_owned(),
                message: other.to_string(),
            },
        }
    }
}

/// Messages each in a request of its own.
struct Alone<'a> {
    publisher: &'a Inner,
    messages: &'a [Entry],
}

impl OrderedSender for Alone<'_> {
    async fn send(&self, at: usize) -> Outcome {
        let mut answers = self.publisher.send_alone(self.messages, &[at]).await;
        answers.pop().unwrap_or(Err(PubSubError::Closed))
    }

    fn resume(&self, key: &str) {
        if let Some(vendor) = self.publisher.alone.current() {
            vendor.resume_publish(key);
        }
    }
}

/// Requests of one message under way together.
const AT_ONCE: usize = 64;

/// Whether a request was never answered, as opposed to refused.
fn is_timeout(error: &PublishError) -> bool {
    matches!(error, PublishError::Rpc(error) if error.is_timeout() || error.is_exhausted() && error.status().is_none())
}

/// One outcome for all where they are alike, else one each.
fn summarise<'a>(messages: impl Iterator<Item = &'a Message>, outcomes: Vec<Outcome>) -> BatchOutcome {
    if outcomes.iter().all(Result::is_ok) {
        return BatchOutcome::Done;
    }
    let passing = |outcome: &Outcome| outcome.as_ref().is_err_and(|e| e.class() != ErrorClass::Permanent);
    let is_common = outcomes.iter().all(passing);
    let mut results = Vec::with_capacity(outcomes.len());
    for (message, outcome) in messages.zip(outcomes) {
        let result = outcome.map_err(|error| StageError::from(error.of(message.id)));
        match result {
            Err(error) if is_common => return BatchOutcome::Failed(error),
            result => results.push(result),
        }
    }
    BatchOutcome::Each(results)
}

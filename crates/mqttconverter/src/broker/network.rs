//! The network task: connects, serves, connects again.

use super::backoff::Backoff;
use super::client::{Grant, Properties, Publish};
use super::connection::{Connection, Target};
use super::session::{Arrival, Received, Session};
use super::{BrokerError, BrokerOptions, Subscription};
use crate::message::{self, PublishInfo};
use messagepipeline::{
    Clock, ErrorClass, IdGenerator, Message, Settle, Settlement, StageHealth, Verdict, metric_names,
};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// What the network task, the consumer and the settling pipeline share.
pub(super) struct Shared {
    pub(super) session: Mutex<Session>,
    /// Wakes the network task: there are verdicts.
    pub(super) network: Notify,
    /// Wakes the consumer: there are messages, or the task is gone.
    pub(super) consumer: Notify,
    /// The task is gone. Set before the consumer is woken, which tokio's own flag is not when the task panics.
    pub(super) is_gone: AtomicBool,
    pub(super) ids: Arc<IdGenerator>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Shared {
    pub(super) fn room(&self) -> (usize, usize) {
        self.session.lock().room()
    }

    /// Makes messages of `publishes` and puts them in flight.
    pub(super) fn receive(&self, publishes: Vec<Publish>) -> Result<(), BrokerError> {
        if publishes.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        let mut ids = Vec::with_capacity(publishes.len());
        self.ids.fill(publishes.len(), &mut ids);
        let mut counts = Counts::default();
        let mut arrivals = Vec::with_capacity(publishes.len());
        let mut outcome = Ok(());
        for (publish, id) in publishes.into_iter().zip(ids) {
            match arrival(publish, Message::new(id, bytes::Bytes::new(), now)) {
                Ok(arrival) => arrivals.push(arrival),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let mut session = self.session.lock();
        for arrival in arrivals {
            let at_least_once = arrival.packet_id != 0;
            counts.add(at_least_once, session.receive(arrival));
        }
        drop(session);
        counts.report();
        self.consumer.notify_one();
        outcome
    }
}

impl Settle for Shared {
    fn settle(&self, settlements: &[Settlement]) {
        self.session.lock().settle(settlements, Instant::now());
        self.network.notify_one();
        if settlements.iter().any(|settlement| settlement.verdict != Verdict::Ack) {
            self.consumer.notify_one();
        }
    }
}

/// Counts of one read, so that the metrics are touched once for all its messages.
#[derive(Default)]
struct Counts {
    at_most_once: u64,
    at_least_once: u64,
    redelivered: u64,
    repeated: u64,
}

impl Counts {
    fn add(&mut self, at_least_once: bool, received: Received) {
        match received {
            Received::Repeated => {
                self.repeated += 1;
                return;
            }
            Received::Redelivered => self.redelivered += 1,
            Received::New => {}
        }
        if at_least_once {
            self.at_least_once += 1;
        } else {
            self.at_most_once += 1;
        }
    }

    fn report(&self) {
        metrics::counter!(metric_names::MQTT_PUBLISHES, "qos" => "0").increment(self.at_most_once);
        metrics::counter!(metric_names::MQTT_PUBLISHES, "qos" => "1").increment(self.at_least_once);
        metrics::counter!(metric_names::MQTT_DUPLICATES).increment(self.repeated);
        metrics::counter!(metric_names::MQTT_BROKER_REDELIVERED).increment(self.redelivered);
    }
}

/// Fills `message` with what the PUBLISH carries.
fn arrival(publish: Publish, mut message: Message) -> Result<Arrival, BrokerError> {
    let topic = std::str::from_utf8(&publish.topic).unwrap_or_default();
    if topic.is_empty() {
        return Err(BrokerError::Protocol("a PUBLISH without a valid topic".to_owned()));
    }
    if publish.qos > 1 {
        let text = "a PUBLISH with QoS 2, to which this client never subscribes: the broker holds a session of another \
                    program under this client id; choose another client id";
        return Err(BrokerError::Protocol(text.to_owned()));
    }
    let properties = publish.properties.as_deref();
    let info = PublishInfo {
        topic,
        client_id: None,
        qos: publish.qos,
        packet_id: publish.packet_id,
        retain: publish.retain,
        dup: publish.dup,
        will: false,
        properties: properties.map(kept).unwrap_or_default(),
    };
    let user = properties.map_or(&[][..], |properties| &properties.user_properties);
    message.attributes = message::attributes(&info, user.iter().map(|(name, value)| (&**name, &**value)));
    message.payload = publish.payload;
    Ok(Arrival { packet_id: publish.packet_id, dup: publish.dup, message })
}

fn kept(properties: &Properties) -> message::Properties<'_> {
    message::Properties {
        payload_is_utf8: properties.payload_format_indicator == Some(1),
        message_expiry: properties.message_expiry_interval,
        content_type: properties.content_type.as_deref(),
        response_topic: properties.response_topic.as_deref(),
        correlation_data: properties.correlation_data.as_deref(),
    }
}

/// What is subscribed to, over all connections of this process.
pub(super) struct Subscriber {
    topics: Vec<Subscription>,
    health: StageHealth,
    /// Pause before a refused filter is tried again.
    retry: Duration,
    /// Filters that are not granted, and when to ask for them.
    missing: Vec<Subscription>,
    due: Option<Instant>,
    asked: Vec<Subscription>,
    /// How long the broker may take to answer.
    patience: Duration,
    /// When it has taken too long.
    overdue: Option<Instant>,
}

impl Subscriber {
    pub(super) fn new(options: &BrokerOptions, health: StageHealth) -> Self {
        Self {
            missing: options.topics.clone(),
            topics: options.topics.clone(),
            health,
            retry: options.reconnect_max,
            due: None,
            asked: Vec::new(),
            patience: options.connect_timeout,
            overdue: None,
        }
    }

    /// A connection stands. Without a session everything is asked for again; with one, what is not granted. That
    /// includes a first connection with the session of an earlier run, whose filters may have been others.
    fn connected(&mut self, session_present: bool, now: Instant) {
        if !session_present {
            self.missing.clone_from(&self.topics);
        }
        self.asked.clear();
        (self.due, self.overdue) = (None, None);
        if self.missing.is_empty() {
            self.health.ready();
        } else {
            self.due = Some(now);
            self.health.not_ready("connected; waiting for the broker to grant the subscriptions");
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        [self.due, self.overdue].into_iter().flatten().min()
    }

    /// The filters to subscribe to now.
    ///
    /// # Errors
    /// When the broker owes its answer to the last ones for too long. It answers PINGREQ all the while, so nothing else
    /// would notice that nothing comes.
    pub(super) fn due(&mut self, now: Instant) -> Result<Option<Vec<Subscription>>, BrokerError> {
        if self.overdue.is_some_and(|overdue| now >= overdue) {
            return Err(BrokerError::SubscribeTimeout(self.patience));
        }
        if self.due.is_none_or(|due| now < due) {
            return Ok(None);
        }
        self.due = None;
        self.overdue = Some(now + self.patience);
        self.asked.clone_from(&self.missing);
        Ok(Some(self.asked.clone()))
    }

    /// Nothing was read, or messages came, as they do before the answer when the broker has kept them: the answer may
    /// lie behind them.
    pub(super) fn wait_on(&mut self, now: Instant) {
        self.overdue = self.overdue.map(|_| now + self.patience);
    }

    /// The broker's answers. What it grants flows; what it refuses is reported and asked for again later, because the
    /// person who allows it does so at the broker.
    pub(super) fn granted(&mut self, grants: &[Grant], now: Instant) -> Result<(), BrokerError> {
        if grants.len() != self.asked.len() {
            return Err(BrokerError::Protocol("a SUBACK that does not fit the SUBSCRIBE".to_owned()));
        }
        self.overdue = None;
        let mut refused = Vec::new();
        for (subscription, grant) in self.asked.drain(..).zip(grants) {
            let filter = &subscription.filter;
            match grant {
                Ok(qos) if *qos >= subscription.qos => {}
                Ok(qos) => {
                    warn!(filter, asked = subscription.qos, granted = qos, "the broker grants a lower QoS")
                }
                Err(reason) => {
                    error!(filter, reason, "the broker refuses a subscription");
                    refused.push((subscription, reason.clone()));
                }
            }
        }
        if refused.is_empty() {
            self.missing.clear();
            self.health.ready();
            return Ok(());
        }
        let texts: Vec<_> = refused
            .iter()
            .map(|(subscription, reason)| format!("`{}` ({reason})", subscription.filter))
            .collect();
        self.health.not_ready(format!("the broker refuses the subscription to {}", texts.join(", ")));
        self.missing = refused.into_iter().map(|(subscription, _)| subscription).collect();
        self.due = Some(now + self.retry);
        Ok(())
    }
}

/// Everything the network task owns.
pub(super) struct Network {
    pub(super) target: Target,
    pub(super) shared: Arc<Shared>,
    pub(super) subscriber: Subscriber,
    pub(super) health: StageHealth,
    pub(super) backoff: Backoff,
    pub(super) closing: CancellationToken,
    /// Whether there was a connection in this process.
    pub(super) was_connected: bool,
}

impl Network {
    /// Runs until closed. Every ending of it wakes the consumer.
    ///
    /// # Errors
    /// When acknowledgements given before the close did not reach the broker.
    pub(super) async fn run(mut self) -> Result<(), BrokerError> {
        let shared = Arc::clone(&self.shared);
        let _wake = WakeOnDrop(&shared);
        let closing = self.closing.clone();
        metrics::gauge!(metric_names::MQTT_BROKER_CONNECTED).set(0.0);
        while !closing.is_cancelled() {
            let (ended, held) = self.connect_and_serve(&closing).await;
            match ended {
                Ok(()) => break,
                Err(error @ BrokerError::AcksLost(_)) => return Err(error),
                Err(error) => {
                    let pause = self.backoff.pause(held);
                    self.report(&error, pause);
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = closing.cancelled() => {}
                    }
                }
            }
        }
        self.health.not_ready("closed");
        match shared.session.lock().unwritten_acks() {
            0 => Ok(()),
            count => Err(BrokerError::AcksLost(count)),
        }
    }

    /// One connection from beginning to end, and for how long it held. `Ok` only when closed.
    async fn connect_and_serve(
        &mut self,
        closing: &CancellationToken,
    ) -> (Result<(), BrokerError>, Duration) {
        let connected = tokio::select! {
            connected = self.connect() => connected,
            () = closing.cancelled() => return (Ok(()), Duration::ZERO),
        };
        let connection = match connected {
            Ok(connection) => connection,
            Err(error) => return (Err(error), Duration::ZERO),
        };
        let start = Instant::now();
        let ended = connection.serve(&self.shared, &mut self.subscriber, closing).await;
        metrics::gauge!(metric_names::MQTT_BROKER_CONNECTED).set(0.0);
        self.shared.session.lock().disconnected();
        (ended, start.elapsed())
    }

    async fn connect(&mut self) -> Result<Connection, BrokerError> {
        let (connection, ack) = self.target.connect().await?;
        metrics::gauge!(metric_names::MQTT_BROKER_CONNECTED).set(1.0);
        metrics::counter!(metric_names::MQTT_BROKER_CONNECTS).increment(1);
        let orphans = self.shared.session.lock().connected(ack.session_present);
        if self.was_connected && !ack.session_present {
            metrics::counter!(metric_names::MQTT_BROKER_SESSIONS_LOST).increment(1);
            warn!(
                still_in_flight = orphans,
                "the broker has forgotten the session; what it had not delivered is lost there"
            );
        }
        let asked = self.target.options.session_expiry.as_secs();
        if let Some(given) = ack.session_expiry.filter(|given| u64::from(*given) < asked) {
            warn!(asked, given, "the broker keeps the session for fewer seconds than asked");
        }
        self.was_connected = true;
        self.subscriber.connected(ack.session_present, Instant::now());
        info!(url = %self.target.options.url, session_present = ack.session_present, "connected to the broker");
        Ok(connection)
    }

    fn report(&self, ending: &BrokerError, pause: Duration) {
        let url = &self.target.options.url;
        self.health.not_ready(format!("connecting to {url}: {ending}"));
        let pause = format!("{:.1} s", pause.as_secs_f64());
        if ending.class() == ErrorClass::Configuration {
            error!(url, pause, "no connection to the broker: {ending}");
        } else {
            warn!(url, pause, "no connection to the broker: {ending}");
        }
    }
}

struct WakeOnDrop<'a>(&'a Shared);

impl Drop for WakeOnDrop<'_> {
    fn drop(&mut self) {
        self.0.is_gone.store(true, Ordering::Release);
        self.0.consumer.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::Health;

    #[test]
    fn a_broker_that_never_answers_subscribe_is_left_but_not_while_nothing_is_read() {
        let topics = vec![Subscription { filter: "#".to_owned(), qos: 1 }];
        let options = BrokerOptions::new("mqtt://localhost", "millstream", topics);
        let mut subscriber = Subscriber::new(&options, Health::new().stage("broker"));
        let start = Instant::now();
        subscriber.connected(false, start);
        assert!(subscriber.due(start).unwrap().is_some());
        let limit = subscriber.next_due().unwrap();
        subscriber.wait_on(limit);
        assert!(subscriber.due(limit).unwrap().is_none(), "the answer may lie there unread");
        let limit = subscriber.next_due().unwrap();
        assert!(matches!(subscriber.due(limit), Err(BrokerError::SubscribeTimeout(_))));
        subscriber.connected(false, limit);
        assert!(subscriber.due(limit).unwrap().is_some());
        subscriber.granted(&[Ok(1)], limit).unwrap();
        assert_eq!(subscriber.next_due(), None);
    }
}

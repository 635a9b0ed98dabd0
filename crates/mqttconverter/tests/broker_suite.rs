//! The consumer conformance suite on the broker client, with mosquitto as the bus.
//!
//! MQTT carries neither our ids nor attributes nor times; so that the suite can compare them, they travel within the
//! payload. Ids are not mosquitto's matter: the two promises about repeated ids belong to the bus behind it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failing helper fails its test by panicking")]

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::future::BoxFuture;
use messagepipeline::{
    Attributes, BatchOutcome, Chunk, Consumer, Delivery, Enrichment, Health, IdGenerator, Message, MessageId,
    Publisher, StageError, SystemClock, Timestamp,
};
use mqttconverter::broker::{BrokerConsumer, BrokerOptions, BrokerParts, Subscription};
use rumqttc_v5::mqttbytes::QoS;
use rumqttc_v5::{AsyncClient, MqttOptions, PublishOptions};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use testkit::consumer_suite::{self, Bounds, BusUnderTest, Features};
use testkit::servers::Mosquitto;

/// Room for the suite's largest message.
const PACKET: u32 = 4 << 20;

/// mosquitto with a persistent session per subscription.
struct Broker {
    mosquitto: Mosquitto,
    topics: HashMap<String, String>,
    publishers: AtomicUsize,
}

impl Broker {
    fn start(test: &str) -> Option<Self> {
        let mosquitto = Mosquitto::start(test, &["max_queued_messages 0"])?;
        Some(Self { mosquitto, topics: HashMap::new(), publishers: AtomicUsize::new(0) })
    }

    fn consumer_of(&self, subscription: &str, bounds: Bounds) -> (Enveloped, Health) {
        let filter = self.topics[subscription].clone();
        let url = format!("mqtt://127.0.0.1:{}", self.mosquitto.port());
        let mut options = BrokerOptions::new(url, subscription, vec![Subscription { filter, qos: 1 }]);
        options.allow_anonymous = true;
        options.max_packet_size = PACKET;
        options.window_messages = u16::try_from(bounds.messages).unwrap();
        options.window_bytes = bounds.bytes;
        let health = Health::new();
        let ids = Arc::new(IdGenerator::default());
        let parts = BrokerParts { ids, clock: Arc::new(SystemClock), health: health.stage("mqtt"), seed: 1 };
        (Enveloped(BrokerConsumer::new(options, parts).unwrap()), health)
    }
}

impl BusUnderTest for Broker {
    type Consumer = Enveloped;

    fn features(&self) -> Features {
        Features {
            counts_attempts: true,
            ordered: true,
            knows_ids: false,
            reopens: true,
            silence: Duration::from_millis(300),
        }
    }

    async fn create(&mut self, topic: &str, subscriptions: &[&str]) {
        for subscription in subscriptions {
            self.topics.insert((*subscription).to_owned(), topic.to_owned());
            // A subscription begins with the first connection of its session.
            let (mut consumer, health) = self.consumer_of(subscription, Bounds::default());
            consumer.open().await.unwrap();
            while !health.is_ready() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            consumer.close().await.unwrap();
        }
    }

    async fn publisher(&mut self, topic: &str) -> Arc<dyn Publisher> {
        let number = self.publishers.fetch_add(1, Ordering::Relaxed);
        let mut options =
            MqttOptions::new(format!("publisher-{number}"), ("127.0.0.1", self.mosquitto.port()));
        options.set_max_packet_size(Some(PACKET));
        let (client, mut events) = AsyncClient::builder(options).capacity(16).build();
        tokio::spawn(async move { while events.poll().await.is_ok() {} });
        Arc::new(Envelopes { client, topic: topic.to_owned() })
    }

    async fn consumer(&mut self, subscription: &str, bounds: Bounds) -> Enveloped {
        self.consumer_of(subscription, bounds).0
    }

    async fn reopen(&mut self) {
        self.mosquitto.restart();
    }
}

/// Publishes messages with all they have in the payload.
struct Envelopes {
    client: AsyncClient,
    topic: String,
}

impl Publisher for Envelopes {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        Box::pin(async move {
            for message in messages {
                let options = PublishOptions::new(QoS::AtLeastOnce);
                let notice = self.client.publish_tracked(&self.topic, wrap(&message), options).await.unwrap();
                notice.wait_completion_async().await.unwrap();
            }
            BatchOutcome::Done
        })
    }
}

/// The broker client, with the messages taken out of their payloads.
struct Enveloped(BrokerConsumer);

impl Consumer for Enveloped {
    async fn open(&mut self) -> Result<(), StageError> {
        self.0.open().await
    }

    async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        let Some(chunk) = self.0.next().await? else { return Ok(None) };
        let (settle, deliveries) = chunk.into_parts();
        let unwrapped = deliveries.into_iter().map(|delivery| Delivery {
            message: unwrap(delivery.message.payload.clone(), delivery.message.attempt),
            token: delivery.token,
        });
        Ok(Some(Chunk::new(settle, unwrapped.collect())))
    }

    async fn close(&mut self) -> Result<(), StageError> {
        self.0.close().await
    }
}

fn wrap(message: &Message) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    bytes.put_slice(message.id.as_bytes());
    bytes.put_i64(message.publish_time.as_micros());
    for part in [message.attributes.as_bytes(), message.enrichment.text().unwrap_or_default().as_bytes()] {
        bytes.put_u32(u32::try_from(part.len()).unwrap());
        bytes.put_slice(part);
    }
    bytes.put_slice(&message.payload);
    bytes.to_vec()
}

fn unwrap(mut bytes: Bytes, attempt: u32) -> Message {
    let id = MessageId::from_bytes(bytes.split_to(16).as_ref().try_into().unwrap());
    let publish_time = Timestamp::from_micros(bytes.get_i64());
    let mut part = || {
        let length = bytes.get_u32() as usize;
        bytes.split_to(length)
    };
    let attributes = Attributes::from_bytes(part()).unwrap();
    let enrichment = match std::str::from_utf8(&part()).unwrap() {
        "" => Enrichment::none(),
        text => Enrichment::from_text(text).unwrap(),
    };
    Message { attributes, enrichment, attempt, ..Message::new(id, bytes, publish_time) }
}

macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let Some(mut broker) = Broker::start(stringify!($name)) else { return };
                consumer_suite::$name(&mut broker).await;
            }
        )*
    };
}

promises![
    every_message_comes_as_it_was_published,
    each_subscription_receives_all_by_itself,
    messages_of_one_publisher_keep_their_order,
    an_acknowledged_message_never_comes_again,
    a_nacked_message_comes_again_with_its_attempt_raised,
    a_returned_message_comes_again_with_the_same_attempt,
    a_dropped_chunk_comes_again,
    only_the_first_verdict_of_a_delivery_counts,
    next_loses_nothing_when_it_is_cancelled,
    what_is_handed_out_is_bounded_in_messages,
    what_is_handed_out_is_bounded_in_bytes,
    close_delivers_verdicts_and_gives_back_the_rest,
    a_consumer_dropped_without_close_gives_back_the_rest,
    a_reopened_bus_delivers_what_was_not_acknowledged,
];

//! The adapter against Google's emulator, which all tests share; each has a project of its own.
//!
//! The emulator is not the service: it ignores flow control, checks no rights and keeps messages in memory only.
//! docs/guarantees.md says what was tested where.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(clippy::disallowed_methods, reason = "tests learn from the environment how long they may take")]

mod conformance;
mod consuming;
mod faults;
mod letters;
mod publishing;
mod reach;

use google_cloud_auth::credentials::anonymous;
use messagepipeline::{
    Ack, Attributes, BatchOutcome, Consumer, IdGenerator, Message, Publisher, Timestamp, all_done,
};
use pubsub::{Client, ConsumerOptions, PubSubConsumer, PubSubOptions};
use std::time::Duration;
use testkit::servers::{PubSubEmulator, PubSubProject, SubscriptionSettings};

const TOPIC: &str = "raw";
const SUBSCRIPTION: &str = "raw-reader";
/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// A project with a topic and an ordinary subscription, and a client for it.
fn set_up(test: &str) -> Option<(PubSubProject, Client)> {
    set_up_with(test, &SubscriptionSettings::default())
}

fn set_up_with(test: &str, settings: &SubscriptionSettings) -> Option<(PubSubProject, Client)> {
    let emulator = PubSubEmulator::shared(test)?;
    let project = emulator.new_project();
    project.create_topic(TOPIC);
    project.create_subscription(SUBSCRIPTION, TOPIC, settings);
    let client = client(&emulator.endpoint(), &project);
    Some((project, client))
}

fn client(endpoint: &str, project: &PubSubProject) -> Client {
    // Administration goes over HTTP, whose client wants to know a TLS library even where it uses none.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new(PubSubOptions {
        project: project.name().to_owned(),
        endpoint: Some(endpoint.to_owned()),
        credentials: anonymous::Builder::new().build(),
    })
}

/// Short leases and one stream: see [`PubSubProject::end_streams`].
fn options() -> ConsumerOptions {
    ConsumerOptions { lease_extension: Duration::from_secs(10), streams: 1, ..ConsumerOptions::default() }
}

fn messages(count: usize) -> Vec<Message> {
    let ids = IdGenerator::default();
    let message = |n: usize| {
        let mut message = Message::new(
            ids.next_id(),
            format!("message {n}"),
            Timestamp::from_micros(1_750_000_000_000_000),
        );
        let device = format!("sensor-{:02}", n % 20);
        message.attributes =
            Attributes::from_iter([("device_id", device.as_str()), ("mqtt_topic", "devices/up")]);
        message
    };
    (0..count).map(message).collect()
}

async fn publish(publisher: &impl Publisher, messages: &[Message]) -> BatchOutcome {
    tokio::time::timeout(PATIENCE, publisher.publish(messages.to_vec())).await.expect("publishing ends")
}

async fn publish_all(client: &Client, messages: &[Message]) {
    let publisher = client.publisher(TOPIC, pubsub::PublisherOptions::default());
    for part in messages.chunks(1_000) {
        all_done(publish(&publisher, part).await).expect("publishing works");
    }
}

/// The next messages with their handles.
async fn next(consumer: &mut PubSubConsumer) -> Vec<(Message, Ack)> {
    let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("messages come");
    next.expect("receiving works").expect("the source goes on").into_acks()
}

/// Takes and acknowledges until `count` different messages have come.
async fn acknowledge(consumer: &mut PubSubConsumer, count: usize) -> Vec<Message> {
    let mut received: Vec<Message> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    while received.len() < count {
        for (message, ack) in next(consumer).await {
            ack.ack();
            if seen.insert(message.id) {
                received.push(message);
            }
        }
    }
    received
}

/// Publishes one more message and proves that it comes before anything else.
async fn only_a_new_message_comes(client: &Client, consumer: &mut PubSubConsumer) {
    let last = messages(1);
    publish_all(client, &last).await;
    let received = acknowledge(consumer, 1).await;
    assert_eq!(received[0].id, last[0].id, "a settled message came again");
}

fn ids(messages: &[Message]) -> Vec<messagepipeline::MessageId> {
    let mut ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    ids.sort_unstable();
    ids
}

//! Connections that break, and an emulator that dies.

use crate::{SUBSCRIPTION, TOPIC, client, ids, messages, next, options, publish};
use messagepipeline::{BatchOutcome, Consumer, ErrorClass, Message, Publisher, all_done};
use pubsub::{Client, ConsumerOptions, PublisherOptions};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use testkit::proxy::Proxy;
use testkit::servers::{PubSubEmulator, SubscriptionSettings};
use tokio::time::timeout;

/// Connections are cut whenever a further part of the messages has been acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_in_mid_stream_lose_nothing() {
    let test = "connections_cut_in_mid_stream_lose_nothing";
    let Some(emulator) = PubSubEmulator::start(test) else { return };
    let project = emulator.new_project();
    project.create_topic(TOPIC);
    project.create_subscription(SUBSCRIPTION, TOPIC, &SubscriptionSettings::default());
    let proxy = Proxy::start(emulator.address()).await;
    let client = client(&proxy.endpoint(), &project);
    let published = messages(3_000);
    let progress = Arc::new(AtomicUsize::new(0));
    let publishing = tokio::spawn(publish_until_done(client.clone(), published.clone()));
    let consuming = tokio::spawn(consume(client, published.len(), Arc::clone(&progress)));
    let mut cuts = 0;
    let mut next_cut = 400;
    while !consuming.is_finished() {
        if progress.load(Ordering::Relaxed) >= next_cut {
            cuts += usize::from(proxy.cut() > 0);
            project.end_streams(SUBSCRIPTION);
            next_cut += 800;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    timeout(Duration::from_secs(90), publishing).await.expect("publishing ends").unwrap();
    let received = consuming.await.unwrap();
    assert!(cuts >= 2, "only {cuts} cuts met open connections");
    assert_eq!(received, published.iter().map(|message| message.id).collect());
}

/// The emulator forgets everything when it ends, so topic and subscription are made again before publishing goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_dies_and_comes_back_is_found_again_by_both_sides() {
    let test = "a_service_that_dies_and_comes_back_is_found_again_by_both_sides";
    let Some(mut emulator) = PubSubEmulator::start(test) else { return };
    let project = emulator.new_project();
    let make = || {
        project.create_topic(TOPIC);
        project.create_subscription(SUBSCRIPTION, TOPIC, &SubscriptionSettings::default());
    };
    make();
    let client = client(&emulator.endpoint(), &project);
    let (first, second) = (messages(200), messages(200));
    let mut consumer = client.consumer(SUBSCRIPTION, options());
    let quick = PublisherOptions { deadline: Duration::from_secs(2), ..PublisherOptions::default() };
    let publisher = client.publisher(TOPIC, quick);
    all_done(publisher.publish(first.clone()).await).unwrap();
    assert_eq!(take(&mut consumer, first.len(), &AtomicUsize::new(0)).await.len(), first.len());
    emulator.kill();
    let BatchOutcome::Failed(error) = publisher.publish(second.clone()).await else {
        panic!("nobody is there")
    };
    assert_eq!(error.class(), ErrorClass::Transient);
    emulator.restart();
    make();
    all_done(publisher.publish(second.clone()).await).expect("it is found again");
    let mut received: Vec<_> =
        take(&mut consumer, second.len(), &AtomicUsize::new(0)).await.into_iter().collect();
    received.sort_unstable();
    assert_eq!(received, ids(&second));
}

/// The service took the message and nobody heard of it, so that a stage publishes it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_published_again_after_a_lost_answer_counts_as_delivered_before() {
    let test = "a_message_that_is_published_again_after_a_lost_answer_counts_as_delivered_before";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    project.create_topic(TOPIC);
    project.create_subscription(SUBSCRIPTION, TOPIC, &SubscriptionSettings::default());
    let proxy = Proxy::start(emulator.address()).await;
    let quick = PublisherOptions { deadline: Duration::from_secs(1), ..PublisherOptions::default() };
    let publisher = client(&proxy.endpoint(), &project).publisher(TOPIC, quick);
    let (before, message) = (messages(1), messages(1));
    all_done(publish(&publisher, &before).await).unwrap();
    proxy.lose_replies();
    let outcome = publish(&publisher, &message).await;
    assert!(matches!(outcome, BatchOutcome::Failed(error) if error.class() == ErrorClass::Transient));
    proxy.cut();
    all_done(publish(&publisher, &message).await).expect("it is published on a new connection");
    let mut consumer = client(&emulator.endpoint(), &project).consumer(SUBSCRIPTION, options());
    let mut attempts = Vec::new();
    while !attempts.contains(&(message[0].id, 2)) {
        for (message, ack) in next(&mut consumer).await {
            ack.ack();
            attempts.push((message.id, message.attempt));
        }
    }
    assert!(!attempts.contains(&(before[0].id, 2)), "{attempts:?}");
}

/// Connections that are made from now on lead to nobody who answers; the one that fills requests stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_connection_for_messages_sent_one_by_one_is_waited_for_once() {
    let test = "a_dead_connection_for_messages_sent_one_by_one_is_waited_for_once";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    let field = serde_json::json!({"name": "value", "type": "int"});
    let schema = serde_json::json!({"type": "record", "name": "Reading", "fields": [field]});
    project.create_topic_with_schema(TOPIC, &schema);
    project.create_subscription(SUBSCRIPTION, TOPIC, &SubscriptionSettings::default());
    let proxy = Proxy::start(emulator.address()).await;
    let quick = PublisherOptions { deadline: Duration::from_secs(1), ..PublisherOptions::default() };
    let publisher = client(&proxy.endpoint(), &project).publisher(TOPIC, quick);
    let numbers = |count| {
        let mut made = messages(count);
        made.iter_mut().for_each(|message| message.payload = "{\"value\":1}".into());
        made
    };
    all_done(publish(&publisher, &numbers(1)).await).unwrap();
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    proxy.let_in(nobody.local_addr().unwrap().to_string());
    let mut refused = numbers(1_000);
    refused[500].payload = "no document".into();
    let outcome = publish(&publisher, &refused).await;
    assert!(matches!(outcome, BatchOutcome::Failed(error) if error.class() == ErrorClass::Transient));
    proxy.let_in(emulator.address());
    let at_fault = refused[500].id;
    let mut left = refused;
    // What takes longer than the deadline is left for the next call.
    while left.len() > 1 {
        if let BatchOutcome::Each(results) = publish(&publisher, &left).await {
            let failed = left.into_iter().zip(results).filter(|(_, result)| result.is_err());
            left = failed.map(|(message, _)| message).collect();
        }
    }
    assert_eq!(ids(&left), [at_fault]);
}

/// As a stage does: what has failed for now is published again.
async fn publish_until_done(client: Client, messages: Vec<Message>) {
    let publisher = client.publisher(TOPIC, PublisherOptions::default());
    for part in messages.chunks(100) {
        let mut left = part.to_vec();
        while !left.is_empty() {
            left = match publisher.publish(left.clone()).await {
                BatchOutcome::Done => Vec::new(),
                BatchOutcome::Failed(_) => left,
                BatchOutcome::Each(results) => left
                    .into_iter()
                    .zip(results)
                    .filter(|(_, result)| result.is_err())
                    .map(|(m, _)| m)
                    .collect(),
            };
            if !left.is_empty() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    all_done(publisher.publish(Vec::new()).await).expect("nothing is done at once");
}

async fn consume(
    client: Client,
    count: usize,
    progress: Arc<AtomicUsize>,
) -> HashSet<messagepipeline::MessageId> {
    let mut consumer = client.consumer(SUBSCRIPTION, ConsumerOptions { streams: 2, ..options() });
    take(&mut consumer, count, &progress).await
}

async fn take(
    consumer: &mut pubsub::PubSubConsumer,
    count: usize,
    progress: &AtomicUsize,
) -> HashSet<messagepipeline::MessageId> {
    let mut received = HashSet::new();
    while received.len() < count {
        let next = timeout(Duration::from_secs(90), consumer.next()).await;
        let next = next.unwrap_or_else(|_| panic!("{} of {count} came", received.len()));
        let Ok(chunk) = next else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        for (message, ack) in chunk.expect("the source goes on").into_acks() {
            received.insert(message.id);
            ack.ack();
        }
        progress.store(received.len(), Ordering::Relaxed);
    }
    received
}

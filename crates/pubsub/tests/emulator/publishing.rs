//! What lies on the topic, and what a publish answers.

use crate::{
    PATIENCE, SUBSCRIPTION, TOPIC, client, ids, messages, next, options, publish, publish_all, set_up,
    set_up_with,
};
use messagepipeline::{BatchOutcome, Enrichment, ErrorClass, Message, all_done};
use pubsub::{Ordering, PublisherOptions, Wire};
use std::collections::HashMap;
use std::time::Duration;
use testkit::servers::{PubSubEmulator, SubscriptionSettings};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_body_is_the_payload_and_the_attributes_arrive() {
    let Some((project, client)) = set_up("the_body_is_the_payload_and_the_attributes_arrive") else { return };
    let mut published = messages(50);
    published[0].enrichment = Enrichment::from_text(r#"{"location":"harbour"}"#).unwrap();
    publish_all(&client, &published).await;
    let pulled = project.drain(SUBSCRIPTION, published.len(), PATIENCE);
    let by_id: HashMap<_, _> =
        pulled.iter().map(|pulled| (pulled.attributes["millstream_id"].clone(), pulled)).collect();
    for message in &published {
        let pulled = by_id[&message.id.to_string()];
        assert_eq!(pulled.data, message.payload);
        assert_eq!(Some(pulled.attributes["device_id"].as_str()), message.device_id());
        assert_eq!(pulled.attributes["millstream_time"], message.publish_time.to_string());
    }
    assert_eq!(
        by_id[&published[0].id.to_string()].attributes["millstream_enrichment"],
        r#"{"location":"harbour"}"#
    );
    let sum = |sizes: Vec<usize>| sizes.into_iter().sum::<usize>();
    let (sent, came) = (
        sum(published.iter().map(|message| message.payload.len()).collect()),
        sum(pulled.iter().map(|pulled| pulled.data.len()).collect()),
    );
    assert_eq!(came, sent, "bytes of data on Pub/Sub are those of the payloads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_json_form_is_one_document_beside_the_attributes() {
    let Some((project, client)) = set_up("the_json_form_is_one_document_beside_the_attributes") else {
        return;
    };
    let publisher =
        client.publisher(TOPIC, PublisherOptions { wire: Wire::Json, ..PublisherOptions::default() });
    let published = messages(1);
    all_done(publish(&publisher, &published).await).unwrap();
    let pulled = project.drain(SUBSCRIPTION, 1, PATIENCE).remove(0);
    let document: serde_json::Value = serde_json::from_slice(&pulled.data).unwrap();
    let fields: Vec<_> = document.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["id", "payload", "publishTime"]);
    assert_eq!(document["id"], published[0].id.to_string());
    assert_eq!(pulled.attributes["content-type"], "application/vnd.millstream.message+json");
    assert_eq!(pulled.attributes["device_id"], "sensor-00");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_shows_at_publish_as_a_mistake_of_configuration_and_is_waited_for() {
    let test = "a_missing_topic_shows_at_publish";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    let client = client(&emulator.endpoint(), &project);
    let publisher = client.publisher(TOPIC, PublisherOptions::default());
    let published = messages(3);
    let BatchOutcome::Failed(error) = publish(&publisher, &published).await else {
        panic!("there is no topic")
    };
    assert_eq!((error.class(), error.reason()), (ErrorClass::Configuration, "pubsub-not-found"));
    let text = format!("failed to publish message ID {}", published[0].id);
    assert!(error.detail().starts_with(&text), "{error}");
    assert!(!client.topic_exists(TOPIC).await.unwrap());
    assert!(client.create_topic(TOPIC).await.unwrap());
    assert!(!client.create_topic(TOPIC).await.unwrap(), "it is there already");
    assert!(client.topic_exists(TOPIC).await.unwrap());
    all_done(publish(&publisher, &published).await).expect("the topic is there");
    let bad = client.publisher("x", PublisherOptions::default());
    let BatchOutcome::Failed(error) = publish(&bad, &published).await else {
        panic!("no topic is called so")
    };
    assert_eq!(error.class(), ErrorClass::Configuration);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_too_large_fails_alone() {
    let Some((_, client)) = set_up("a_message_that_is_too_large_fails_alone") else { return };
    let publisher = client.publisher(TOPIC, PublisherOptions::default());
    let mut published = messages(3);
    published[1].payload = vec![b'x'; 10_000_000].into();
    let BatchOutcome::Each(results) = publish(&publisher, &published).await else {
        panic!("one answer each")
    };
    let error = results[1].as_ref().expect_err("it is too large");
    assert_eq!((error.class(), error.reason()), (ErrorClass::Permanent, "too-large-for-pubsub"));
    assert!(results[0].is_ok() && results[2].is_ok() && results.len() == 3);
    published[1].payload = vec![b'x'; 9_990_000].into();
    all_done(publish(&publisher, &published).await).expect("it fits");
}

/// The topic has a schema, so the emulator refuses a whole request for one message, as the service does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_the_service_refuses_fails_alone_and_its_neighbours_are_published_once() {
    let test = "a_message_that_the_service_refuses_fails_alone_and_its_neighbours_are_published_once";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    let field = serde_json::json!({"name": "value", "type": "int"});
    let schema = serde_json::json!({"type": "record", "name": "Reading", "fields": [field]});
    project.create_topic_with_schema(TOPIC, &schema);
    project.create_subscription(SUBSCRIPTION, TOPIC, &SubscriptionSettings::default());
    let client = client(&emulator.endpoint(), &project);
    for ordering in [Ordering::None, Ordering::ByDevice { keys: 2 }] {
        let publisher = client.publisher(TOPIC, PublisherOptions { ordering, ..PublisherOptions::default() });
        let mut published = messages(100);
        for (n, message) in published.iter_mut().enumerate() {
            message.payload = format!("{{\"value\":{n}}}").into();
        }
        published[40].payload = "no document".into();
        let BatchOutcome::Each(results) = publish(&publisher, &published).await else {
            panic!("one answer each")
        };
        for (n, result) in results.iter().enumerate() {
            let refusal = result.as_ref().err().map(|error| (error.class(), error.reason()));
            assert_eq!(
                refusal,
                (n == 40).then_some((ErrorClass::Permanent, "pubsub-refused")),
                "message {n}"
            );
        }
        let pulled = project.drain(SUBSCRIPTION, 100, Duration::from_secs(2));
        assert_eq!(pulled.len(), 99);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_a_device_keep_their_order_over_calls_under_few_keys() {
    let settings = SubscriptionSettings { ordering: true, ..SubscriptionSettings::default() };
    let test = "messages_of_a_device_keep_their_order_over_calls_under_few_keys";
    let Some((project, client)) = set_up_with(test, &settings) else { return };
    let ordering = Ordering::ByDevice { keys: 4 };
    let publisher = client.publisher(TOPIC, PublisherOptions { ordering, ..PublisherOptions::default() });
    let published = messages(600);
    let calls: Vec<_> = published.chunks(100).map(|part| publish(&publisher, part)).collect();
    for outcome in futures_util::future::join_all(calls).await {
        all_done(outcome).unwrap();
    }
    let mut consumer = client.consumer(SUBSCRIPTION, options());
    let mut received: Vec<Message> = Vec::new();
    while received.len() < published.len() {
        received.extend(next(&mut consumer).await.into_iter().map(|(message, ack)| (message, ack.ack()).0));
    }
    let of = |messages: &[Message], device: &str| -> Vec<_> {
        messages.iter().filter(|m| m.device_id() == Some(device)).map(|m| m.id).collect()
    };
    for n in 0..20 {
        let device = format!("sensor-{n:02}");
        assert_eq!(of(&received, &device), of(&published, &device), "{device}");
    }
    assert_eq!(ids(&received), ids(&published));
    drop(project);
}

/// The emulator is frozen: it takes requests and answers none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_does_not_answer_holds_the_window_and_fails_for_now() {
    let test = "a_service_that_does_not_answer_holds_the_window_and_fails_for_now";
    let Some(emulator) = PubSubEmulator::start(test) else { return };
    let project = emulator.new_project();
    project.create_topic(TOPIC);
    project.create_subscription(SUBSCRIPTION, TOPIC, &SubscriptionSettings::default());
    let client = client(&emulator.endpoint(), &project);
    let options = PublisherOptions {
        max_outstanding_messages: 10,
        deadline: Duration::from_secs(3),
        ..PublisherOptions::default()
    };
    let publisher = client.publisher(TOPIC, options);
    let published = messages(20);
    all_done(publish(&publisher, &published[..1]).await).unwrap();
    emulator.freeze();
    // Dropped at once: the work goes on, and so its messages keep their room.
    let waiting =
        tokio::time::timeout(Duration::from_millis(200), publish(&publisher, &published[..10])).await;
    assert!(waiting.is_err());
    let second =
        tokio::time::timeout(Duration::from_millis(500), publish(&publisher, &published[10..])).await;
    assert!(second.is_err(), "it passed the bound");
    let BatchOutcome::Failed(error) = publish(&publisher, &published).await else { panic!("nobody answers") };
    assert_eq!(error.class(), ErrorClass::Transient);
    emulator.thaw();
    all_done(publish(&publisher, &published).await).expect("it answers again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simple_publisher_returns_at_once_and_stop_sends_what_was_taken() {
    let test = "the_simple_publisher_returns_at_once_and_stop_sends_what_was_taken";
    let Some((project, client)) = set_up(test) else { return };
    let publisher = client.simple_publisher(TOPIC, 100);
    let taken =
        (0..1_000).filter(|n| publisher.publish(format!("{n}").into(), &[("kind", "test")]).is_ok()).count();
    assert!(taken >= 100, "only {taken} were taken");
    publisher.stop(Duration::from_secs(30)).await.expect("all are sent");
    let pulled = project.drain(SUBSCRIPTION, taken, PATIENCE);
    assert_eq!(pulled.len(), taken);
    assert!(pulled.iter().all(|pulled| pulled.attributes["kind"] == "test"));
    let lost = client.simple_publisher("no-such-topic", 10);
    lost.publish("x".into(), &[]).unwrap();
    assert!(lost.stop(Duration::from_secs(30)).await.is_err(), "it could not be sent");
}

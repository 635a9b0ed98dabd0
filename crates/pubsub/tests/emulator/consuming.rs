//! Leases, failures of the subscription, attempts and what others put on a topic.

use crate::{
    PATIENCE, SUBSCRIPTION, TOPIC, acknowledge, client, ids, messages, next, only_a_new_message_comes,
    options, publish_all, set_up, set_up_with,
};
use messagepipeline::{Consumer, ErrorClass};
use pubsub::ConsumerOptions;
use std::time::Duration;
use testkit::servers::{PubSubEmulator, SubscriptionSettings};

/// The subscription's deadline is 10 s, the least there is; `MILLSTREAM_LONG_WORK` is the seconds of work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_takes_longer_than_the_deadline_is_not_delivered_again() {
    let Some((_, client)) = set_up("work_that_takes_longer_than_the_deadline_is_not_delivered_again") else {
        return;
    };
    publish_all(&client, &messages(10)).await;
    let mut consumer = client.consumer(SUBSCRIPTION, options());
    let mut held = Vec::new();
    while held.len() < 10 {
        held.extend(next(&mut consumer).await);
    }
    let work = std::env::var("MILLSTREAM_LONG_WORK").ok().and_then(|text| text.parse().ok()).unwrap_or(13);
    let again = tokio::time::timeout(Duration::from_secs(work), consumer.next()).await;
    assert!(again.is_err(), "delivered again while it was worked on");
    held.into_iter().for_each(|(_, ack)| ack.ack());
    only_a_new_message_comes(&client, &mut consumer).await;
    consumer.close().await.expect("the verdicts reach the service");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_subscription_is_a_mistake_of_configuration_until_it_is_there() {
    let test = "a_missing_subscription_is_a_mistake_of_configuration_until_it_is_there";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    let client = client(&emulator.endpoint(), &project);
    let mut consumer = client.consumer(SUBSCRIPTION, options());
    consumer.open().await.expect("nothing is asked for at the start");
    for _ in 0..2 {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("it says so");
        let error = next.expect_err("there is no subscription");
        assert_eq!((error.class(), error.reason()), (ErrorClass::Configuration, "pubsub-not-found"));
        assert!(error.detail().contains(&project.subscription(SUBSCRIPTION)), "{error}");
    }
    project.create_topic(TOPIC);
    project.create_subscription(SUBSCRIPTION, TOPIC, &SubscriptionSettings::default());
    let published = messages(3);
    publish_all(&client, &published).await;
    let mut received = Vec::new();
    while received.len() < published.len() {
        match tokio::time::timeout(PATIENCE, consumer.next()).await.expect("it recovers") {
            Err(error) => assert_eq!(error.class(), ErrorClass::Configuration),
            Ok(chunk) => {
                let acks = chunk.expect("the source goes on").into_acks();
                received.extend(acks.into_iter().map(|(message, ack)| (message, ack.ack()).0));
            }
        }
    }
    assert_eq!(ids(&received), ids(&published));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_is_deleted_is_reported_and_its_consumer_recovers_when_it_is_made_again() {
    let test = "a_subscription_that_is_deleted_is_reported";
    let Some((project, client)) = set_up(test) else { return };
    publish_all(&client, &messages(5)).await;
    let mut consumer = client.consumer(SUBSCRIPTION, options());
    acknowledge(&mut consumer, 5).await;
    project.delete_subscription(SUBSCRIPTION);
    let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("it says so");
    assert_eq!(next.expect_err("there is no subscription").class(), ErrorClass::Configuration);
    project.create_subscription(SUBSCRIPTION, TOPIC, &SubscriptionSettings::default());
    let published = messages(5);
    publish_all(&client, &published).await;
    let mut count = 0;
    while count < published.len() {
        if let Ok(chunk) = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("it recovers") {
            let acks = chunk.expect("the source goes on").into_acks();
            count += acks.len();
            acks.into_iter().for_each(|(_, ack)| ack.ack());
        }
    }
    consumer.close().await.expect("the verdicts reach the service");
}

#[tokio::test]
async fn a_name_that_cannot_be_stops_the_start() {
    let Some((_, client)) = set_up("a_name_that_cannot_be_stops_the_start") else { return };
    let error = client.consumer("x", options()).open().await.expect_err("it has one character");
    assert_eq!((error.class(), error.reason()), (ErrorClass::Configuration, "pubsub-name"));
}

/// The service counts where the subscription has a dead letter policy, and forwards by itself in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_are_the_services_where_it_counts_and_what_it_gives_up_is_read_as_foreign() {
    let test = "attempts_are_the_services_where_it_counts";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    for topic in [TOPIC, "raw-dead"] {
        project.create_topic(topic);
    }
    let settings = SubscriptionSettings {
        dead_letters: Some(("raw-dead".to_owned(), 5)),
        ..SubscriptionSettings::default()
    };
    project.create_subscription(SUBSCRIPTION, TOPIC, &settings);
    project.create_subscription("raw-dead-reader", "raw-dead", &SubscriptionSettings::default());
    let client = client(&emulator.endpoint(), &project);
    let published = messages(1);
    publish_all(&client, &published).await;
    let mut consumer = client.consumer(SUBSCRIPTION, options());
    for attempt in 1..=5 {
        let (message, ack) = next(&mut consumer).await.remove(0);
        assert_eq!(message.attempt, attempt);
        // To the service a return is a delivery like any other.
        if attempt == 2 { ack.give_back() } else { ack.nack() }
    }
    let mut forwarded = client.consumer("raw-dead-reader", options());
    let received = acknowledge(&mut forwarded, 1).await;
    assert_eq!((received[0].id, &received[0].payload), (published[0].id, &published[0].payload));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_others_and_broken_ones_come_as_they_are() {
    let Some((project, client)) = set_up("messages_of_others_and_broken_ones_come_as_they_are") else {
        return;
    };
    let plain = br#"{"device_id":"d1","value":1}"#;
    let document = [("content-type", "application/vnd.millstream.message+json")];
    project.publish(TOPIC, &[(plain, &[]), (b"garbage", &document), (b"x", &[("kind", "test")])]);
    let mut consumer = client.consumer(SUBSCRIPTION, options());
    let mut received = acknowledge(&mut consumer, 3).await;
    received.sort_by_key(|message| message.payload.len());
    assert_eq!(received[2].payload, &plain[..]);
    assert!(received[2].attributes.is_empty());
    assert_eq!(received[1].payload, "garbage");
    assert_eq!(received[0].attributes.get("kind"), Some("test"));
    let second_subscription_sees = received[2].id;
    assert_eq!(second_subscription_sees.uuid().get_version_num(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_streams_share_a_subscription_and_close_in_mid_work_loses_nothing() {
    let test = "sixteen_streams_share_a_subscription_and_close_in_mid_work_loses_nothing";
    let Some((project, client)) = set_up(test) else { return };
    let published = messages(4_000);
    publish_all(&client, &published).await;
    let mut acknowledged = Vec::new();
    let mut consumer = client.consumer(
        SUBSCRIPTION,
        ConsumerOptions { streams: 16, max_outstanding_messages: 1_000, ..options() },
    );
    while acknowledged.len() < 1_500 {
        for (at, (message, ack)) in next(&mut consumer).await.into_iter().enumerate() {
            if at % 3 == 2 {
                ack.give_back();
            } else {
                ack.ack();
                acknowledged.push(message);
            }
        }
    }
    consumer.close().await.expect("the verdicts reach the service");
    let before = ids(&acknowledged);
    project.end_streams(SUBSCRIPTION);
    let mut again = client.consumer(SUBSCRIPTION, options());
    let rest = acknowledge(&mut again, published.len() - before.len()).await;
    assert!(
        rest.iter().all(|message| before.binary_search(&message.id).is_err()),
        "acknowledged and came again"
    );
    assert_eq!(ids(&[acknowledged, rest].concat()), ids(&published));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exactly_once_confirms_every_acknowledgement_before_close_returns() {
    let settings = SubscriptionSettings { exactly_once: true, ..SubscriptionSettings::default() };
    let Some((project, client)) = set_up_with("exactly_once_confirms_every_acknowledgement", &settings)
    else {
        return;
    };
    let published = messages(500);
    publish_all(&client, &published).await;
    // Confirmations keep their places: more messages come than the window holds.
    let narrow = ConsumerOptions { max_outstanding_messages: 100, ..options() };
    let mut consumer = client.consumer(SUBSCRIPTION, narrow);
    let received = acknowledge(&mut consumer, published.len()).await;
    assert_eq!(ids(&received), ids(&published));
    consumer.close().await.expect("all are confirmed");
    project.end_streams(SUBSCRIPTION);
    let mut again = client.consumer(SUBSCRIPTION, options());
    only_a_new_message_comes(&client, &mut again).await;
}

/// `close` is held in the middle by not being polled, while its tasks go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_while_close_runs_is_confirmed_and_what_comes_after_it_is_named() {
    let settings = SubscriptionSettings { exactly_once: true, ..SubscriptionSettings::default() };
    let test = "what_is_acknowledged_while_close_runs";
    let Some((project, client)) = set_up_with(test, &settings) else { return };
    let published = messages(20);
    publish_all(&client, &published).await;
    let mut consumer = client.consumer(SUBSCRIPTION, options());
    let mut held = Vec::new();
    while held.len() < published.len() {
        held.extend(next(&mut consumer).await);
    }
    let mut late = held.split_off(10);
    let mut open: Vec<_> = late.iter().map(|(message, _)| message.id).collect();
    open.sort_unstable();
    {
        let mut closing = std::pin::pin!(consumer.close());
        let first = futures_util::poll!(closing.as_mut());
        assert!(first.is_pending(), "closing takes a moment");
        // What ends with the first step of it has ended then.
        tokio::time::sleep(Duration::from_millis(500)).await;
        held.into_iter().for_each(|(_, ack)| ack.ack());
        closing.await.expect("all that was acknowledged is confirmed");
    }
    late.drain(..5).for_each(|(_, ack)| ack.ack());
    let error = consumer.close().await.expect_err("five acknowledgements were lost");
    assert!(error.detail().contains('5') && error.detail().contains("come again"), "{error}");
    drop((late, consumer));
    project.end_streams(SUBSCRIPTION);
    let mut again = client.consumer(SUBSCRIPTION, options());
    let received = acknowledge(&mut again, 10).await;
    assert_eq!(ids(&received), open, "exactly what was not confirmed comes again");
    only_a_new_message_comes(&client, &mut again).await;
}

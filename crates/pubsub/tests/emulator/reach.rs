//! A service that is not reached, which a stream without messages does not tell.

use super::*;
use messagepipeline::ErrorClass;
use testkit::proxy::Proxy;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_nobody_reaches_is_told_by_consumer_and_listing_and_both_work_when_it_is_back() {
    let test = "a_service_that_nobody_reaches_is_told_by_consumer_and_listing_and_both_work_when_it_is_back";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    project.create_topic(TOPIC);
    project.create_subscription(SUBSCRIPTION, TOPIC, &SubscriptionSettings::default());
    let direct = client(&emulator.endpoint(), &project);
    let proxy = Proxy::start(emulator.address()).await;
    proxy.turn_away();
    let client = client(&proxy.endpoint(), &project);
    let listing = client.letters(SUBSCRIPTION).list(10, Duration::from_secs(1), |_| ()).await;
    assert_eq!(listing.unwrap_err().class(), ErrorClass::Transient, "nothing read is not nothing there");
    let mut consumer = client.consumer(SUBSCRIPTION, options());
    let told = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("it is told");
    let error = told.map(drop).expect_err("nobody is reached");
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    proxy.let_in(emulator.address());
    publish_all(&direct, &messages(1)).await;
    let received = tokio::time::timeout(PATIENCE, async {
        loop {
            match consumer.next().await {
                Ok(chunk) => return chunk,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    assert!(received.await.expect("it comes").is_some());
    consumer.close().await.unwrap();
}

//! What the enricher makes of each message.

#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

mod doubles;

use cache::{Ages, Lru};
use doubles::{MemoryLot, delivery};
use enrichment::{Enricher, KeyExtractor, UnknownDevice};
use messagepipeline::names::{ENRICHED, ENRICHMENT_STATUS, NO_KEY, UNKNOWN_DEVICE};
use messagepipeline::{
    Delivery, Enrichment, ErrorClass, IdGenerator, ManualClock, Message, Outcome, Timestamp, Transformer,
};
use std::sync::Arc;
use std::time::Duration;
use testkit::cache_suite::{CountingSource, device};
use tokio::time::advance;

const AGES: Ages = Ages { max: Duration::from_secs(300), negative: Duration::from_secs(30) };

fn enricher(source: &Arc<CountingSource>, unknown: UnknownDevice) -> Enricher {
    let cache = Lru::new(10_000, AGES, Some(Arc::clone(source) as _)).unwrap();
    Enricher::new(KeyExtractor::default(), Arc::new(cache), unknown)
}

fn parking(lot: &Arc<MemoryLot>) -> UnknownDevice {
    UnknownDevice::Park {
        lot: Arc::clone(lot) as _,
        clock: Arc::new(ManualClock::new(Timestamp::from_micros(77))),
    }
}

fn chunk(devices: &[Option<&str>]) -> Vec<Delivery> {
    let ids = IdGenerator::default();
    devices.iter().zip(0..).map(|(device, n)| delivery(&ids, *device, n)).collect()
}

async fn transform(enricher: &Enricher, deliveries: &[Delivery]) -> Vec<Outcome<Message>> {
    let mut outcomes = Vec::new();
    enricher.transform(deliveries, &mut outcomes).await;
    assert_eq!(outcomes.len(), deliveries.len(), "one outcome per message");
    outcomes
}

/// The status and the data of each outcome, or the word for another ending.
fn told(outcomes: &[Outcome<Message>]) -> Vec<(String, Enrichment)> {
    let tell = |outcome: &Outcome<Message>| match outcome {
        Outcome::Emit(message) => {
            (message.attributes.get(ENRICHMENT_STATUS).unwrap().to_owned(), message.enrichment.clone())
        }
        Outcome::Held => ("held".to_owned(), Enrichment::none()),
        Outcome::Skip(rule) => (format!("skip {rule}"), Enrichment::none()),
        Outcome::Fail(error) => {
            (format!("{} {}", error.class().as_str(), error.reason()), Enrichment::none())
        }
    };
    outcomes.iter().map(tell).collect()
}

fn pair(status: &str, data: Enrichment) -> (String, Enrichment) {
    (status.to_owned(), data)
}

#[tokio::test]
async fn each_message_gets_its_own_devices_data_and_keeps_everything_else() {
    let source = CountingSource::with_keys(["a", "b"]);
    let deliveries = chunk(&[Some("b"), None, Some("a"), Some("x"), Some("b")]);
    let outcomes = transform(&enricher(&source, UnknownDevice::Pass), &deliveries).await;
    let none = Enrichment::none();
    assert_eq!(
        told(&outcomes),
        [
            pair(ENRICHED, device("b")),
            pair(NO_KEY, none.clone()),
            pair(ENRICHED, device("a")),
            pair(UNKNOWN_DEVICE, none),
            pair(ENRICHED, device("b")),
        ]
    );
    assert_eq!((source.calls(), source.keys_read()), (1, 3), "one look-up over the distinct keys");
    for (Delivery { message, .. }, outcome) in deliveries.iter().zip(outcomes) {
        let Outcome::Emit(emitted) = outcome else { unreachable!() };
        let mut attributes = emitted.attributes.edit();
        attributes.remove(ENRICHMENT_STATUS);
        let as_received =
            Message { attributes: attributes.build(), enrichment: Enrichment::none(), ..emitted };
        assert_eq!(&as_received, message);
    }
}

#[tokio::test]
async fn a_message_without_a_key_needs_no_source() {
    let source = CountingSource::with_keys([]);
    source.fail(Some(ErrorClass::Transient));
    let outcomes = transform(&enricher(&source, UnknownDevice::DeadLetter), &chunk(&[None, None])).await;
    assert!(told(&outcomes).iter().all(|(status, _)| status == NO_KEY));
    assert_eq!(source.calls(), 0);
}

#[tokio::test]
async fn fields_that_are_already_there_stay() {
    let source = CountingSource::with_keys(["a"]);
    let mut deliveries = chunk(&[Some("a")]);
    let own = r#"{"DeviceID":"a","category":"mine"}"#;
    deliveries[0].message.enrichment = Enrichment::from_text(own).unwrap();
    let outcomes = transform(&enricher(&source, UnknownDevice::Pass), &deliveries).await;
    let (_, data) = &told(&outcomes)[0];
    assert_eq!(data.get("category").unwrap(), "mine");
    assert_eq!(data.get("location_id").unwrap(), "hall-3");
    assert_eq!(data.get("DeviceID").unwrap(), "a");
}

#[tokio::test]
async fn an_outage_fails_exactly_the_messages_that_needed_the_source() {
    for (class, word) in [(ErrorClass::Transient, "transient"), (ErrorClass::Configuration, "configuration")]
    {
        let source = CountingSource::with_keys(["a", "b"]);
        for unknown in [UnknownDevice::Pass, UnknownDevice::DeadLetter, parking(&MemoryLot::with_room(9))] {
            let enricher = enricher(&source, unknown);
            transform(&enricher, &chunk(&[Some("a")])).await;
            source.fail(Some(class));
            let outcomes = transform(&enricher, &chunk(&[Some("a"), Some("b"), None, Some("x")])).await;
            source.fail(None);
            let failed = format!("{word} lookup-failed");
            let statuses: Vec<_> = told(&outcomes).into_iter().map(|(status, _)| status).collect();
            assert_eq!(statuses, [ENRICHED, &failed, NO_KEY, &failed]);
        }
    }
}

#[tokio::test]
async fn a_source_that_calls_its_outage_permanent_still_costs_no_message() {
    let source = CountingSource::with_keys([]);
    source.fail(Some(ErrorClass::Permanent));
    let outcomes = transform(&enricher(&source, UnknownDevice::Pass), &chunk(&[Some("a")])).await;
    assert_eq!(told(&outcomes)[0].0, "configuration lookup-failed");
}

#[tokio::test]
async fn an_unknown_device_becomes_a_dead_letter_where_that_is_the_rule() {
    let source = CountingSource::with_keys(["a"]);
    let enricher = enricher(&source, UnknownDevice::DeadLetter);
    let outcomes = transform(&enricher, &chunk(&[Some("a"), Some("x")])).await;
    let statuses: Vec<_> = told(&outcomes).into_iter().map(|(status, _)| status).collect();
    assert_eq!(statuses, [ENRICHED, "permanent unknown-device"]);
}

#[tokio::test]
async fn messages_of_unknown_devices_are_parked_until_the_lot_is_full_and_then_pass() {
    let source = CountingSource::with_keys(["a"]);
    let lot = MemoryLot::with_room(2);
    let enricher = enricher(&source, parking(&lot));
    let deliveries = chunk(&[Some("x"), Some("a"), Some("y"), Some("x")]);
    for _ in 0..2 {
        // The second time as after a lost acknowledgement: what is parked is held, not parked twice.
        let outcomes = transform(&enricher, &deliveries).await;
        let statuses: Vec<_> = told(&outcomes).into_iter().map(|(status, _)| status).collect();
        assert_eq!(statuses, ["held", ENRICHED, "held", UNKNOWN_DEVICE]);
    }
    let parked = lot.parked.lock();
    assert_eq!(parked.len(), 2);
    assert_eq!((&*parked[0].key, &parked[0].message), ("x", &deliveries[0].message));
    assert_eq!((&*parked[1].key, parked[1].since), ("y", Timestamp::from_micros(77)));
}

#[tokio::test]
async fn a_lot_that_fails_fails_the_messages_of_unknown_devices_alone() {
    let source = CountingSource::with_keys(["a"]);
    let lot = MemoryLot::with_room(2);
    *lot.failure.lock() = true;
    let enricher = enricher(&source, parking(&lot));
    let outcomes = transform(&enricher, &chunk(&[Some("x"), Some("a"), Some("y")])).await;
    let statuses: Vec<_> = told(&outcomes).into_iter().map(|(status, _)| status).collect();
    assert_eq!(statuses, ["transient parking-failed", ENRICHED, "transient parking-failed"]);
}

#[tokio::test]
async fn twenty_thousand_messages_of_a_hundred_devices_cost_a_hundred_source_reads() {
    let names: Vec<String> = (0..100).map(|n| format!("device-{n}")).collect();
    let source = CountingSource::with_keys(names.iter().map(String::as_str));
    let enricher = Arc::new(enricher(&source, UnknownDevice::Pass));
    let ids = Arc::new(IdGenerator::default());
    let workers = (0..16_usize).map(|worker| {
        let (enricher, ids, names) = (Arc::clone(&enricher), Arc::clone(&ids), names.clone());
        tokio::spawn(async move {
            for start in (0..1_250).step_by(125) {
                // Grouped by device for even workers, in turn for odd ones.
                let stride = if worker % 2 == 0 { 25 } else { 1 };
                let device = |n: usize| names[(n / stride + worker) % 100].as_str();
                let chunk: Vec<_> =
                    (start..start + 125).map(|n| delivery(&ids, Some(device(n)), n as u64)).collect();
                for outcome in transform(&enricher, &chunk).await {
                    assert!(matches!(outcome, Outcome::Emit(_)));
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    assert_eq!(source.keys_read(), 100);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_device_is_read_once_per_negative_age() {
    let source = CountingSource::with_keys([]);
    let enricher = enricher(&source, UnknownDevice::Pass);
    for seconds in 0..90 {
        transform(&enricher, &chunk(&[Some("x"), Some("x")])).await;
        assert_eq!(source.keys_read(), 1 + seconds / 30);
        advance(Duration::from_secs(1)).await;
    }
}

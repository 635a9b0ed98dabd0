//! How parked messages come back.

#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

mod doubles;

use cache::{Ages, Change, Fetcher, Lru, fetch_one};
use doubles::{MemoryDeadLetters, MemoryLot, MemoryTopic, delivery};
use enrichment::{
    Parked, ParkingLot, Released, Releaser, ReleaserSettings, any_change, invalidate_on_change,
};
use futures_util::stream::{self, StreamExt};
use messagepipeline::names::{ENRICHED, ENRICHMENT_STATUS, UNKNOWN_DEVICE};
use messagepipeline::{
    Clock, Enrichment, ErrorClass, IdGenerator, ManualClock, Message, Shutdown, Timestamp,
};
use std::sync::Arc;
use std::time::Duration;
use testkit::cache_suite::{CountingSource, device};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

const HOUR: Duration = Duration::from_secs(3600);
const AGES: Ages = Ages { max: HOUR, negative: HOUR };

struct Stage {
    source: Arc<CountingSource>,
    cache: Arc<Lru<Enrichment>>,
    lot: Arc<MemoryLot>,
    topic: Arc<MemoryTopic>,
    dead_letters: Arc<MemoryDeadLetters>,
    clock: ManualClock,
    releaser: Arc<Releaser>,
}

fn stage() -> Stage {
    let source = CountingSource::with_keys([]);
    let cache = Arc::new(Lru::new(100, AGES, Some(Arc::clone(&source) as _)).unwrap());
    let lot = MemoryLot::with_room(1_000);
    let topic = Arc::new(MemoryTopic::default());
    let dead_letters = Arc::new(MemoryDeadLetters::default());
    let clock = ManualClock::new(Timestamp::from_micros(0));
    let releaser = Arc::new(Releaser {
        lot: Arc::clone(&lot) as _,
        source: Arc::clone(&source) as _,
        cache: Arc::clone(&cache) as _,
        output: Arc::clone(&topic) as _,
        dead_letters: Arc::clone(&dead_letters) as _,
        clock: Arc::new(clock.clone()),
        settings: ReleaserSettings { interval: HOUR, max_age: 24 * HOUR, batch: 3 },
    });
    Stage { source, cache, lot, topic, dead_letters, clock, releaser }
}

impl Stage {
    /// Parks `count` messages of each of `devices`.
    async fn park(&self, devices: &[&str], count: u64) -> Vec<Message> {
        let ids = IdGenerator::default();
        let one = |device: &&str, n| delivery(&ids, Some(device), n).message;
        let messages: Vec<Message> = (0..count)
            .flat_map(|n| devices.iter().map(move |device| (device, n)))
            .map(|(d, n)| one(d, n))
            .collect();
        let parked = messages.iter().map(|message| Parked {
            key: message.device_id().unwrap().into(),
            message: message.clone(),
            since: self.clock.now(),
        });
        self.lot.park(parked.collect()).await.unwrap();
        messages
    }

    fn status_of(&self, message: &Message) -> Option<String> {
        let messages = self.topic.messages.lock();
        messages.get(&message.id)?.attributes.get(ENRICHMENT_STATUS).map(str::to_owned)
    }
}

#[tokio::test]
async fn messages_of_devices_that_appeared_leave_with_their_data_and_the_others_stay() {
    let stage = stage();
    let messages = stage.park(&["a", "b", "c", "d", "e", "f", "g"], 5).await;
    assert_eq!(fetch_one(&*stage.cache, "g").await.unwrap().value, None);
    for known in ["b", "g"] {
        stage.source.insert(known, device(known));
    }
    let released = stage.releaser.pass().await.unwrap();
    assert_eq!(released, Released { enriched: 10, ..Released::default() });
    for message in &messages {
        let key = message.device_id().unwrap();
        let topic = stage.topic.messages.lock();
        let found = topic.get(&message.id);
        assert_eq!(found.is_some(), ["b", "g"].contains(&key));
        if let Some(found) = found {
            assert_eq!(found.enrichment, device(key));
            assert_eq!(found.attributes.get(ENRICHMENT_STATUS), Some(ENRICHED));
            assert_eq!(found.payload, message.payload);
        }
    }
    assert_eq!(stage.lot.count().await.unwrap(), 25);
    assert_eq!(
        fetch_one(&*stage.cache, "g").await.unwrap().value,
        Some(device("g")),
        "the cache has forgotten"
    );
}

#[tokio::test]
async fn what_is_too_old_passes_with_the_marker() {
    let stage = stage();
    let old = stage.park(&["x", "y"], 4).await;
    stage.clock.advance(24 * HOUR);
    assert_eq!(stage.releaser.pass().await.unwrap(), Released::default(), "at its age it still waits");
    stage.clock.advance(Duration::from_micros(1));
    let young = stage.park(&["x"], 1).await;
    stage.source.insert("y", device("y"));
    let released = stage.releaser.pass().await.unwrap();
    assert_eq!(released, Released { enriched: 4, expired: 4, dead_lettered: 0 });
    assert_eq!(stage.status_of(&old[0]).as_deref(), Some(UNKNOWN_DEVICE));
    assert_eq!(stage.status_of(&old[1]).as_deref(), Some(ENRICHED), "known and too old: enriched");
    assert_eq!(stage.status_of(&young[0]), None);
}

#[tokio::test]
async fn nothing_leaves_while_the_source_or_the_topic_is_down() {
    let stage = stage();
    stage.park(&["a", "x"], 2).await;
    stage.clock.advance(25 * HOUR);
    stage.source.insert("a", device("a"));
    stage.source.fail(Some(ErrorClass::Transient));
    assert!(stage.releaser.pass().await.is_err());
    stage.source.fail(None);
    *stage.topic.failure.lock() = true;
    assert!(stage.releaser.pass().await.is_err());
    assert_eq!((stage.lot.count().await.unwrap(), stage.topic.messages.lock().len()), (4, 0));
    *stage.topic.failure.lock() = false;
    let released = stage.releaser.pass().await.unwrap();
    assert_eq!(released, Released { enriched: 2, expired: 2, dead_lettered: 0 });
}

#[tokio::test]
async fn a_crash_between_publish_and_removal_publishes_again_and_changes_nothing() {
    let stage = stage();
    let messages = stage.park(&["a"], 2).await;
    let before_crash: Vec<Parked> = stage.lot.parked.lock().clone();
    stage.source.insert("a", device("a"));
    stage.releaser.pass().await.unwrap();
    *stage.lot.parked.lock() = before_crash;
    stage.releaser.pass().await.unwrap();
    assert_eq!(*stage.topic.published.lock(), 4);
    assert_eq!(stage.topic.messages.lock().len(), messages.len());
    assert_eq!(stage.lot.count().await.unwrap(), 0);
}

#[tokio::test]
async fn a_message_the_topic_refuses_for_good_becomes_a_dead_letter_as_it_was_parked() {
    let stage = stage();
    let messages = stage.park(&["a"], 3).await;
    stage.source.insert("a", device("a"));
    *stage.topic.refuse.lock() = Some(messages[1].id);
    let released = stage.releaser.pass().await.unwrap();
    assert_eq!(released, Released { enriched: 2, expired: 0, dead_lettered: 1 });
    let letters = stage.dead_letters.0.lock();
    assert_eq!((&letters[0].message, &*letters[0].stage), (&messages[1], "enrichment"));
    assert_eq!(&*letters[0].reason, "id-conflict");
    assert_eq!(stage.lot.parked.lock().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_registry_releases_at_once_and_without_one_the_interval_does() {
    let stage = stage();
    let (announce, changes) = watch::channel(0);
    let shutdown = Shutdown::new();
    let (releaser, signal) = (Arc::clone(&stage.releaser), shutdown.clone());
    let running = tokio::spawn(async move { releaser.run(changes, signal).await });
    let empty = |stage: &Stage| stage.lot.parked.lock().is_empty();
    let wait_until_empty = async |stage: &Stage| {
        let start = Instant::now();
        while !empty(stage) {
            sleep(Duration::from_millis(100)).await;
        }
        start.elapsed()
    };
    sleep(Duration::from_secs(1)).await;

    stage.park(&["a"], 5).await;
    stage.source.insert("a", device("a"));
    announce.send_replace(1);
    assert!(wait_until_empty(&stage).await <= Duration::from_millis(100));
    // Looked up before the change, parked after the pass.
    stage.park(&["a"], 1).await;
    assert!(wait_until_empty(&stage).await <= Duration::from_secs(3));

    stage.park(&["b"], 5).await;
    stage.source.insert("b", device("b"));
    assert!(wait_until_empty(&stage).await > HOUR / 2);

    drop(announce);
    sleep(3 * HOUR).await;
    shutdown.begin();
    timeout(HOUR, running).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_registry_empties_the_cache() {
    let stage = stage();
    let (announce, changes) = watch::channel(0);
    let (cache, shutdown) = (Arc::clone(&stage.cache), Shutdown::new());
    let signal = shutdown.clone();
    let (forgotten, mut told) = watch::channel(0);
    let running = tokio::spawn(async move {
        invalidate_on_change(&*cache, any_change(changes), &forgotten, signal).await;
    });
    assert_eq!(stage.cache.fetch(&["a"]).await.pop().unwrap().unwrap().value, None);
    stage.source.insert("a", device("a"));
    announce.send_replace(1);
    told.changed().await.unwrap();
    assert_eq!(fetch_one(&*stage.cache, "a").await.unwrap().value, Some(device("a")));
    shutdown.begin();
    running.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_change_told_by_its_key_invalidates_that_key_alone() {
    let stage = stage();
    let keys = ["a", "b", "c"];
    keys.iter().for_each(|key| stage.source.insert(key, device(key)));
    stage.cache.fetch(&keys).await;
    let changes = ["a", "x", "b"].map(|key| Change::Key(key.to_owned()));
    let (forgotten, told) = watch::channel(0);
    invalidate_on_change(&*stage.cache, stream::iter(changes).boxed(), &forgotten, Shutdown::new()).await;
    assert!(told.has_changed().unwrap());
    stage.cache.fetch(&keys).await;
    assert_eq!(stage.source.keys_read(), 5, "two of three are looked up again");
}

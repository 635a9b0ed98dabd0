//! What the suite does not ask of every layer: order, ages, and what happens when calls fail or are abandoned.
#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use cache::{Ages, FetchError, Fetcher, Layered, Lru, MemoryPresence, PresenceCache, ZeroSize, fetch_one};
use futures_util::future::join_all;
use messagepipeline::{Enrichment, ErrorClass};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use testkit::cache_suite::{CountingSource, MemoryStore, device};
use tokio::time::advance;

const AGES: Ages = Ages { max: Duration::from_secs(300), negative: Duration::from_secs(30) };

fn lru(size: usize, source: &Arc<CountingSource>) -> Lru<Enrichment> {
    Lru::new(size, AGES, Some(Arc::clone(source) as _)).unwrap()
}

#[test]
fn a_cache_without_room_is_refused() {
    let refused = Lru::<Enrichment>::new(0, AGES, None).unwrap_err();
    assert_eq!(refused.to_string(), "maxSize must be greater than 0");
    assert_eq!(MemoryPresence::<u8>::new(0, Duration::MAX).unwrap_err(), ZeroSize);
}

#[tokio::test(start_paused = true)]
async fn the_least_recently_used_entry_leaves() {
    let source = CountingSource::with_keys(["1", "2", "3"]);
    let cache = lru(2, &source);
    for key in ["1", "2", "1", "3", "2", "1"] {
        fetch_one(&cache, key).await.unwrap();
    }
    assert_eq!(source.calls(), 5);
}

#[tokio::test]
async fn a_miss_without_a_fallback_says_what_is_missing() {
    for error in [
        fetch_one(&Lru::<Enrichment>::new(1, AGES, None).unwrap(), "a").await.unwrap_err(),
        fetch_one(&Layered::new(MemoryStore::default(), None), "a").await.unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(text.contains("not found") && text.contains("no fallback is configured"), "{text}");
        assert_eq!(error.class(), ErrorClass::Configuration);
    }
}

#[tokio::test(start_paused = true)]
async fn values_and_absences_are_asked_for_again_at_their_own_age() {
    let source = CountingSource::with_keys(["a"]);
    let cache = lru(10, &source);
    let mut reads = Vec::new();
    for wait in [0, 29, 1, 269, 1] {
        advance(Duration::from_secs(wait)).await;
        cache.fetch(&["a", "x"]).await.into_iter().for_each(|result| drop(result.unwrap()));
        reads.push(source.keys_read());
    }
    // At 0 s both; at 30 s the absence; at 299 s the absence; at 300 s the value.
    assert_eq!(reads, [2, 2, 3, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn an_entry_lives_no_longer_than_the_layer_below_allows() {
    let source = CountingSource::with_keys(["a"]);
    let below = lru(10, &source);
    fetch_one(&below, "a").await.unwrap();
    advance(Duration::from_secs(200)).await;
    let below: Arc<dyn Fetcher<Enrichment>> = Arc::new(below);
    let above = Lru::new(10, AGES, Some(below)).unwrap();
    assert_eq!(fetch_one(&above, "a").await.unwrap().fresh_for, Duration::from_secs(100));
    advance(Duration::from_secs(100)).await;
    fetch_one(&above, "a").await.unwrap();
    assert_eq!(source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_the_answer_for_all_who_wait_and_for_nobody_later() {
    let source = CountingSource::with_keys(["a"]);
    source.fail(Some(ErrorClass::Transient));
    source.close();
    let cache = lru(10, &source);
    let fetches = join_all((0..100).map(|_| fetch_one(&cache, "a")));
    let (results, ()) = tokio::join!(fetches, async { source.open(100) });
    assert!(results.iter().all(|result| matches!(result, Err(FetchError::Source(_)))));
    assert_eq!(source.calls(), 1);
    source.fail(None);
    assert_eq!(fetch_one(&cache, "a").await.unwrap().value, Some(device("a")));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_flight_is_taken_over_by_one_of_those_who_joined() {
    let source = CountingSource::with_keys(["a"]);
    source.close();
    let cache = Arc::new(lru(10, &source));
    let fetch = || {
        let cache = Arc::clone(&cache);
        tokio::spawn(async move { fetch_one(&*cache, "a").await })
    };
    let leader = fetch();
    tokio::task::yield_now().await;
    let others: Vec<_> = (0..10).map(|_| fetch()).collect();
    tokio::task::yield_now().await;
    leader.abort();
    assert!(leader.await.unwrap_err().is_cancelled());
    source.open(100);
    for other in join_all(others).await {
        assert_eq!(other.unwrap().unwrap().value, Some(device("a")));
    }
    assert_eq!(source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_invalidated_while_it_is_fetched_is_not_kept() {
    let source = CountingSource::with_keys(["a"]);
    source.close();
    let cache = lru(10, &source);
    let invalidate = async {
        cache.invalidate("a").await.unwrap();
        source.open(100);
    };
    let (first, ()) = tokio::join!(fetch_one(&cache, "a"), invalidate);
    assert_eq!(first.unwrap().value, Some(device("a")));
    fetch_one(&cache, "a").await.unwrap();
    assert_eq!(source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_invalidated_while_it_is_fetched_is_not_put_into_a_store() {
    for all in [false, true] {
        let source = CountingSource::with_keys(["a", "b"]);
        source.close();
        let layer = Layered::new(MemoryStore::default(), Some(Arc::clone(&source) as _));
        let invalidate = async {
            let forgotten = if all { layer.invalidate_all().await } else { layer.invalidate("a").await };
            forgotten.unwrap();
            source.open(100);
        };
        tokio::join!(layer.fetch(&["a", "b"]), invalidate);
        layer.fetch(&["a", "b"]).await;
        assert_eq!(
            source.keys_read(),
            if all { 4 } else { 3 },
            "the other key was kept unless all were forgotten"
        );
    }
}

#[tokio::test]
async fn a_store_that_is_down_is_skipped_and_used_again_when_it_is_back() {
    let (store, source) = (MemoryStore::default(), CountingSource::with_keys(["a"]));
    let layer = Layered::new(store.clone(), Some(Arc::clone(&source) as _));
    store.set_down(true);
    for _ in 0..2 {
        assert_eq!(fetch_one(&layer, "a").await.unwrap().value, Some(device("a")));
    }
    store.set_down(false);
    for _ in 0..2 {
        assert_eq!(fetch_one(&layer, "a").await.unwrap().value, Some(device("a")));
    }
    assert_eq!(source.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn presence_ends_with_its_age_unless_it_is_set_again() {
    let presence = MemoryPresence::new(10, Duration::from_secs(60)).unwrap();
    presence.set("a", 1).await.unwrap();
    advance(Duration::from_secs(59)).await;
    presence.set("a", 2).await.unwrap();
    advance(Duration::from_secs(59)).await;
    assert_eq!(presence.fetch("a").await.unwrap(), Some(2));
    advance(Duration::from_secs(1)).await;
    assert_eq!(presence.fetch("a").await.unwrap(), None);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a model that keeps keys in a plain list, most recently used last.
    #[test]
    fn the_order_is_exactly_least_recently_used(
        size in 1usize..6, chunks in proptest::collection::vec(proptest::collection::vec(0usize..8, 1..2), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let keys: Vec<String> = (0..8).map(|n| n.to_string()).collect();
        let source = CountingSource::with_keys(keys.iter().map(String::as_str));
        let cache = lru(size, &source);
        let (mut model, mut reads) = (Vec::new(), 0);
        for key in chunks.into_iter().flatten() {
            runtime.block_on(fetch_one(&cache, &keys[key])).unwrap();
            match model.iter().position(|known| *known == key) {
                Some(place) => drop(model.remove(place)),
                None => reads += 1,
            }
            model.push(key);
            if model.len() > size {
                model.remove(0);
            }
            prop_assert_eq!(source.keys_read(), reads);
        }
    }
}

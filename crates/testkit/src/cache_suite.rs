//! What every look-up layer and source must show, and the doubles that show it first.

use cache::{FetchError, FetchResult, Fetched, Fetcher, PresenceCache, Store, fetch_one};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all, ready};
use messagepipeline::{Enrichment, ErrorClass, StageError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;

/// A source of truth in memory that counts how it is asked and fails or waits on demand.
#[derive(Debug)]
pub struct CountingSource {
    values: Mutex<BTreeMap<String, Enrichment>>,
    failure: Mutex<Option<StageError>>,
    calls: AtomicUsize,
    keys: AtomicUsize,
    gate: Semaphore,
}

impl Default for CountingSource {
    fn default() -> Self {
        Self {
            values: Mutex::default(),
            failure: Mutex::new(None),
            calls: AtomicUsize::new(0),
            keys: AtomicUsize::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        }
    }
}

impl CountingSource {
    /// A source that knows `keys`, each with [`device`]'s value for it.
    #[must_use]
    pub fn with_keys<'a>(keys: impl IntoIterator<Item = &'a str>) -> Arc<Self> {
        let source = Self::default();
        for key in keys {
            source.insert(key, device(key));
        }
        Arc::new(source)
    }

    /// Adds or changes a value.
    pub fn insert(&self, key: &str, value: Enrichment) {
        self.values.lock().insert(key.to_owned(), value);
    }

    /// Removes a value.
    pub fn remove(&self, key: &str) {
        self.values.lock().remove(key);
    }

    /// From now on every call fails with an error of `class`; `None` ends that.
    pub fn fail(&self, class: Option<ErrorClass>) {
        *self.failure.lock() = class.map(|class| StageError::new(class, "source-down", "the source is down"));
    }

    /// From now on calls wait for [`open`](Self::open).
    pub fn close(&self) {
        self.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Lets `calls` waiting or coming calls through.
    pub fn open(&self, calls: usize) {
        self.gate.add_permits(calls);
    }

    /// How many calls came.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// How many keys were asked for, over all calls.
    #[must_use]
    pub fn keys_read(&self) -> usize {
        self.keys.load(Ordering::SeqCst)
    }

    async fn answer(&self, keys: &[&str]) -> Vec<FetchResult<Enrichment>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.keys.fetch_add(keys.len(), Ordering::SeqCst);
        if let Ok(permit) = self.gate.acquire().await {
            permit.forget();
        }
        // As with any real source, others run meanwhile.
        tokio::task::yield_now().await;
        let failure = self.failure.lock();
        let failure = failure.as_ref().map(|e| StageError::new(e.class(), e.reason().to_owned(), e.detail()));
        let failure = failure.map(FetchError::from);
        let values = self.values.lock();
        let answer = |key: &&str| match &failure {
            Some(error) => Err(error.clone()),
            None => Ok(Fetched::new(values.get(*key).cloned())),
        };
        keys.iter().map(answer).collect()
    }
}

impl Fetcher<Enrichment> for CountingSource {
    fn fetch<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Vec<FetchResult<Enrichment>>> {
        self.answer(keys).boxed()
    }
}

/// The value that [`CountingSource::with_keys`] gives to `key`.
#[must_use]
pub fn device(key: &str) -> Enrichment {
    let fields = [("client_id", key.into()), ("location_id", "hall-3".into()), ("category", "sensor".into())];
    Enrichment::from_fields(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A [`Store`] in memory that can be taken down. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<MemoryStoreState>);

#[derive(Debug, Default)]
struct MemoryStoreState {
    entries: Mutex<BTreeMap<Box<str>, Fetched<Enrichment>>>,
    down: std::sync::atomic::AtomicBool,
}

impl MemoryStore {
    /// Takes the store down or up.
    pub fn set_down(&self, down: bool) {
        self.0.down.store(down, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), FetchError> {
        if self.0.down.load(Ordering::SeqCst) {
            return Err(StageError::transient("store-down", "the store is down").into());
        }
        Ok(())
    }
}

impl Store<Enrichment> for MemoryStore {
    fn name(&self) -> &'static str {
        "memory-store"
    }

    fn get<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Vec<Option<Fetched<Enrichment>>>, FetchError>> {
        let entries = self.0.entries.lock();
        let found = self.check().map(|()| keys.iter().map(|key| entries.get(*key).cloned()).collect());
        ready(found).boxed()
    }

    fn put(&self, entries: Vec<(Box<str>, Fetched<Enrichment>)>) {
        if self.check().is_ok() {
            self.0.entries.lock().extend(entries);
        }
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        ready(self.check().map(|()| drop(self.0.entries.lock().remove(key)))).boxed()
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        ready(self.check().map(|()| self.0.entries.lock().clear())).boxed()
    }
}

/// What only some layers can do.
#[derive(Clone, Copy, Debug, Default)]
pub struct LayerFeatures {
    /// Concurrent misses for one key make one call to the next layer.
    pub single_flight: bool,
}

/// Everything a layer must show. `make` builds one, empty, over the source it is given.
pub async fn layer_suite<F, L>(make: F, features: LayerFeatures)
where
    F: Fn(Arc<dyn Fetcher<Enrichment>>) -> L,
    L: Fetcher<Enrichment>,
{
    answers_stand_in_the_order_of_the_keys(&make).await;
    a_value_is_fetched_once(&make).await;
    an_absent_key_is_remembered(&make).await;
    misses_of_one_call_make_one_call(&make).await;
    a_failure_fails_exactly_the_keys_that_needed_the_source(&make).await;
    an_invalidated_key_is_asked_for_again(&make).await;
    if features.single_flight {
        concurrent_misses_make_one_call(&make).await;
    }
}

/// Everything a source of truth must show. It knows `present` with [`device`]'s values, and not `absent`.
pub async fn source_suite(source: &dyn Fetcher<Enrichment>, present: &[&str], absent: &str) {
    let mut keys = present.to_vec();
    keys.insert(1, absent);
    keys.extend(present);
    let results = source.fetch(&keys).await;
    assert_eq!(results.len(), keys.len(), "one answer per key");
    for (key, result) in keys.iter().zip(results) {
        let expected = (*key != absent).then(|| device(key));
        assert_eq!(value(result), expected, "key {key}");
    }
    assert!(source.fetch(&[]).await.is_empty(), "no key, no answer");
    let many: Vec<String> = (0..5_000).map(|n| format!("{absent}-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(source.fetch(&many).await.into_iter().all(|result| value(result).is_none()), "5,000 absent keys");
}

/// Everything a presence cache must show; it is empty.
pub async fn presence_suite(presence: &dyn PresenceCache<Arc<str>>) {
    assert_eq!(presence.fetch("a").await.unwrap_or_else(|error| panic!("fetch: {error}")), None);
    presence.delete("a").await.unwrap_or_else(|error| panic!("deleting a missing key is fine: {error}"));
    presence.set("a", "1".into()).await.unwrap_or_else(|error| panic!("set: {error}"));
    presence.set("a", "2".into()).await.unwrap_or_else(|error| panic!("set: {error}"));
    let found = presence.fetch("a").await.unwrap_or_else(|error| panic!("fetch: {error}"));
    assert_eq!(found.as_deref(), Some("2"), "the last set wins");
    presence.delete("a").await.unwrap_or_else(|error| panic!("delete: {error}"));
    assert_eq!(presence.fetch("a").await.unwrap_or_else(|error| panic!("fetch: {error}")), None);
}

type Make<'a, L> = &'a dyn Fn(Arc<dyn Fetcher<Enrichment>>) -> L;

fn value(result: FetchResult<Enrichment>) -> Option<Enrichment> {
    result.unwrap_or_else(|error| panic!("a look-up failed: {error}")).value
}

async fn answers_stand_in_the_order_of_the_keys<L: Fetcher<Enrichment>>(make: Make<'_, L>) {
    let layer = make(CountingSource::with_keys(["a", "b"]));
    for _ in 0..2 {
        let found: Vec<_> = layer.fetch(&["b", "x", "a", "b"]).await.into_iter().map(value).collect();
        assert_eq!(found, [Some(device("b")), None, Some(device("a")), Some(device("b"))]);
    }
    assert!(layer.fetch(&[]).await.is_empty());
}

async fn a_value_is_fetched_once<L: Fetcher<Enrichment>>(make: Make<'_, L>) {
    let source = CountingSource::with_keys(["a"]);
    let layer = make(Arc::clone(&source) as _);
    for _ in 0..2 {
        assert_eq!(value(fetch_one(&layer, "a").await), Some(device("a")));
    }
    assert_eq!(source.calls(), 1, "two fetches, one call");
}

async fn an_absent_key_is_remembered<L: Fetcher<Enrichment>>(make: Make<'_, L>) {
    let source = CountingSource::with_keys([]);
    let layer = make(Arc::clone(&source) as _);
    for _ in 0..2 {
        assert_eq!(value(fetch_one(&layer, "x").await), None);
    }
    assert_eq!(source.calls(), 1, "two fetches of an absent key, one call");
}

async fn misses_of_one_call_make_one_call<L: Fetcher<Enrichment>>(make: Make<'_, L>) {
    let source = CountingSource::with_keys(["a", "b", "c", "d"]);
    let layer = make(Arc::clone(&source) as _);
    value(fetch_one(&layer, "a").await);
    layer.fetch(&["a", "b", "c", "d"]).await.into_iter().for_each(|result| drop(value(result)));
    assert_eq!((source.calls(), source.keys_read()), (2, 4), "one call, for the misses alone");
}

async fn a_failure_fails_exactly_the_keys_that_needed_the_source<L: Fetcher<Enrichment>>(make: Make<'_, L>) {
    for class in [ErrorClass::Transient, ErrorClass::Configuration] {
        let source = CountingSource::with_keys(["a", "b"]);
        let layer = make(Arc::clone(&source) as _);
        value(fetch_one(&layer, "a").await);
        source.fail(Some(class));
        let mut results = layer.fetch(&["a", "b"]).await.into_iter();
        assert_eq!(results.next().map(value), Some(Some(device("a"))), "what is cached needs no source");
        assert_eq!(results.next().and_then(|result| result.err()).map(|error| error.class()), Some(class));
        source.fail(None);
        assert_eq!(value(fetch_one(&layer, "b").await), Some(device("b")), "nothing is kept from an error");
    }
}

async fn an_invalidated_key_is_asked_for_again<L: Fetcher<Enrichment>>(make: Make<'_, L>) {
    let source = CountingSource::with_keys(["a", "b"]);
    let layer = make(Arc::clone(&source) as _);
    layer.fetch(&["a", "b", "x"]).await;
    source.insert("a", device("changed"));
    source.insert("x", device("x"));
    layer.invalidate("a").await.unwrap_or_else(|error| panic!("invalidate: {error}"));
    layer.fetch(&["a", "b"]).await;
    assert_eq!(source.keys_read(), 4, "the other key stays");
    assert_eq!(value(fetch_one(&layer, "a").await), Some(device("changed")));
    layer.invalidate_all().await.unwrap_or_else(|error| panic!("invalidate all: {error}"));
    assert_eq!(value(fetch_one(&layer, "x").await), Some(device("x")), "absent keys are forgotten too");
}

async fn concurrent_misses_make_one_call<L: Fetcher<Enrichment>>(make: Make<'_, L>) {
    let source = CountingSource::with_keys(["a"]);
    let layer = make(Arc::clone(&source) as _);
    source.close();
    let fetches = join_all((0..100).map(|_| fetch_one(&layer, "a")));
    let open = async { source.open(100) };
    let (results, ()) = tokio::join!(fetches, open);
    assert!(results.into_iter().all(|result| value(result) == Some(device("a"))));
    assert_eq!(source.calls(), 1, "100 concurrent fetches, one call");
}

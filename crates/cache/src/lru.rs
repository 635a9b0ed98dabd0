//! The layer in memory: exact LRU order, ages, negative entries and one source call per key.
//!
//! One lock guards entries and flights, and it is taken once per call, whatever the number of keys. A *flight* is
//! a call to the next layer that is under way; the keys it asks for stand in the flight table, and whoever wants
//! one of them meanwhile joins instead of asking again.

use crate::fetcher::{fetch_from, missing_answer};
use crate::lookups::Lookups;
use crate::{FetchError, FetchResult, Fetched, Fetcher, ZeroSize};
use futures_util::future::{BoxFuture, FutureExt};
use hashbrown::HashMap;
use lru::LruCache;
use parking_lot::Mutex;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

const LAYER: &str = "lru";
/// Stands for ages beyond what the clock can add.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long entries are used. Zero keeps nothing of that kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ages {
    /// Oldest value that is still an answer.
    pub max: Duration,
    /// Oldest "known to be absent" that is still an answer.
    pub negative: Duration,
}

/// A cache in memory over an optional next layer.
///
/// However many callers want a key that is not there, the next layer is asked for it once. When that call fails,
/// all who wait for it get its error (if each tried by itself, a source in trouble would be asked the more), and
/// nothing is kept: the next look-up asks again. When it is abandoned, one of those who wait takes it over.
pub struct Lru<V> {
    state: Mutex<State<V>>,
    ages: Ages,
    fallback: Option<Arc<dyn Fetcher<V>>>,
    lookups: Lookups,
}

struct State<V> {
    entries: LruCache<Box<str>, Entry<V>>,
    flights: HashMap<Box<str>, Flight<V>>,
    next_flight: u64,
}

struct Entry<V> {
    value: Option<V>,
    expires: Instant,
}

/// One key of a call that is under way.
struct Flight<V> {
    id: u64,
    position: usize,
    landing: Arc<Landing<V>>,
}

/// Where a flight's results arrive. Those who wait are woken in the order in which they came.
struct Landing<V> {
    results: OnceLock<Arc<[FetchResult<V>]>>,
    /// Never has a permit; closed when the flight is over.
    over: Semaphore,
}

impl<V> Landing<V> {
    /// The results; `None` when the call was abandoned.
    async fn wait(&self) -> Option<&Arc<[FetchResult<V>]>> {
        let _closed = self.over.acquire().await;
        self.results.get()
    }
}

/// What a look at the cache leaves to do.
struct Plan<'a, V> {
    /// The keys that nobody asks for yet.
    lead: Option<Lead<'a, V>>,
    /// The keys that others are asking for.
    joined: Vec<Joined<V>>,
}

struct Joined<V> {
    index: usize,
    position: usize,
    landing: Arc<Landing<V>>,
}

impl<V: Clone + Send + Sync + 'static> Lru<V> {
    /// A cache of at most `max_size` entries; the least recently used one leaves.
    ///
    /// # Errors
    /// When `max_size` is zero.
    pub fn new(max_size: usize, ages: Ages, fallback: Option<Arc<dyn Fetcher<V>>>) -> Result<Self, ZeroSize> {
        let max_size = NonZeroUsize::new(max_size).ok_or(ZeroSize)?;
        // Sparse: memory follows the entries that are there, not the bound.
        Ok(Self::over(LruCache::sparse(max_size), ages, fallback))
    }

    /// A cache that keeps every entry until its age, for tests and for key sets known to be small.
    #[must_use]
    pub fn unbounded(ages: Ages, fallback: Option<Arc<dyn Fetcher<V>>>) -> Self {
        Self::over(LruCache::unbounded(), ages, fallback)
    }

    fn over(
        entries: LruCache<Box<str>, Entry<V>>,
        ages: Ages,
        fallback: Option<Arc<dyn Fetcher<V>>>,
    ) -> Self {
        let state = State { entries, flights: HashMap::new(), next_flight: 0 };
        Self { state: Mutex::new(state), ages, fallback, lookups: Lookups::new(LAYER) }
    }

    async fn fetch_all(&self, keys: &[&str]) -> Vec<FetchResult<V>> {
        let mut answers: Vec<Option<FetchResult<V>>> = Vec::with_capacity(keys.len());
        answers.resize_with(keys.len(), || None);
        let mut plan = self.plan(keys, &mut answers);
        self.count(&answers);
        while plan.lead.is_some() || !plan.joined.is_empty() {
            if let Some(lead) = plan.lead {
                lead.fly(keys, &mut answers).await;
            }
            for joined in plan.joined {
                // No result: the call was abandoned, and the next look finds out who takes it over.
                answers[joined.index] =
                    joined.landing.wait().await.and_then(|results| results.get(joined.position).cloned());
            }
            plan = self.plan(keys, &mut answers);
        }
        answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(missing_answer()))).collect()
    }

    /// Answers what the cache holds, joins flights and takes the lead for the rest, all at one moment.
    fn plan(&self, keys: &[&str], answers: &mut [Option<FetchResult<V>>]) -> Plan<'_, V> {
        let mut plan = Plan { lead: None, joined: Vec::new() };
        let now = Instant::now();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        for (index, key) in keys.iter().enumerate() {
            if answers[index].is_some() {
                continue;
            }
            if let Some(found) = state.look(key, now) {
                answers[index] = Some(Ok(found));
            } else if let Some(flight) = state.flights.get(*key) {
                let (position, landing) = (flight.position, Arc::clone(&flight.landing));
                plan.joined.push(Joined { index, position, landing });
            } else {
                let lead = plan.lead.get_or_insert_with(|| Lead::new(self, &mut state.next_flight));
                let landing = Arc::clone(&lead.landing);
                let flight = Flight { id: lead.id, position: lead.indices.len(), landing };
                state.flights.insert(Box::from(*key), flight);
                lead.indices.push(index);
                lead.keys.push(Box::from(*key));
            }
        }
        plan
    }

    fn count(&self, answers: &[Option<FetchResult<V>>]) {
        let (mut hits, mut negatives) = (0, 0);
        for found in answers.iter().flatten().flatten() {
            if found.value.is_some() { hits += 1 } else { negatives += 1 }
        }
        self.lookups.hit.increment(hits);
        self.lookups.negative.increment(negatives);
        self.lookups.miss.increment(answers.len() as u64 - hits - negatives);
    }
}

impl<V: Clone> State<V> {
    fn look(&mut self, key: &str, now: Instant) -> Option<Fetched<V>> {
        let entry = self.entries.get(key)?;
        let fresh_for = entry.expires.saturating_duration_since(now);
        if fresh_for.is_zero() {
            self.entries.pop(key);
            return None;
        }
        Some(Fetched { value: entry.value.clone(), fresh_for })
    }

    fn keep(&mut self, key: Box<str>, fetched: &Fetched<V>, ages: Ages, now: Instant) {
        let age = if fetched.value.is_some() { ages.max } else { ages.negative };
        let age = age.min(fetched.fresh_for).min(FOR_EVER);
        if !age.is_zero() {
            self.entries.put(key, Entry { value: fetched.value.clone(), expires: now + age });
        }
    }
}

impl<V> State<V> {
    /// Ends the flight `id` for `key`; false when an invalidation has ended it before.
    fn land(&mut self, key: &str, id: u64) -> bool {
        let own = self.flights.get(key).is_some_and(|flight| flight.id == id);
        if own {
            self.flights.remove(key);
        }
        own
    }
}

/// A call to the next layer. Dropped before it has landed, it wakes those who joined, so that one of them takes over.
struct Lead<'a, V> {
    cache: &'a Lru<V>,
    id: u64,
    /// Where its keys stand in the caller's list.
    indices: Vec<usize>,
    /// Its keys, until it has landed.
    keys: Vec<Box<str>>,
    landing: Arc<Landing<V>>,
}

impl<'a, V> Lead<'a, V> {
    fn new(cache: &'a Lru<V>, next_flight: &mut u64) -> Self {
        *next_flight += 1;
        Self {
            cache,
            id: *next_flight,
            indices: Vec::new(),
            keys: Vec::new(),
            landing: Arc::new(Landing { results: OnceLock::new(), over: Semaphore::new(0) }),
        }
    }
}

impl<V: Clone> Lead<'_, V> {
    async fn fly(mut self, keys: &[&str], answers: &mut [Option<FetchResult<V>>]) {
        let wanted: Vec<&str> = self.indices.iter().map(|index| keys[*index]).collect();
        let results = fetch_from(self.cache.fallback.as_deref(), LAYER, &wanted).await;
        self.land(&results);
        for (index, result) in self.indices.iter().zip(&results) {
            answers[*index] = Some(result.clone());
        }
        // Nobody can join any more. The drop of this tells those who did.
        if Arc::strong_count(&self.landing) > 1 {
            let _ = self.landing.results.set(results.into());
        }
    }

    /// Ends the flight and keeps what it brought, unless it was invalidated meanwhile.
    fn land(&mut self, results: &[FetchResult<V>]) {
        let mut failures = 0;
        let now = Instant::now();
        let mut state = self.cache.state.lock();
        for (key, result) in self.keys.drain(..).zip(results) {
            let own = state.land(&key, self.id);
            match result {
                Ok(fetched) if own => state.keep(key, fetched, self.cache.ages, now),
                Ok(_) => {}
                Err(_) => failures += 1,
            }
        }
        drop(state);
        self.cache.lookups.error.increment(failures);
    }
}

impl<V> Drop for Lead<'_, V> {
    fn drop(&mut self) {
        if !self.keys.is_empty() {
            let mut state = self.cache.state.lock();
            for key in &self.keys {
                state.land(key, self.id);
            }
        }
        self.landing.over.close();
    }
}

impl<V: Clone + Send + Sync + 'static> Fetcher<V> for Lru<V> {
    fn fetch<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Vec<FetchResult<V>>> {
        self.fetch_all(keys).boxed()
    }

    fn invalidate<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        async move {
            // From below, so that nobody fills this layer again from one that still has the old value.
            let below = match &self.fallback {
                Some(fallback) => fallback.invalidate(key).await,
                None => Ok(()),
            };
            let mut state = self.state.lock();
            state.entries.pop(key);
            state.flights.remove(key);
            below
        }
        .boxed()
    }

    fn invalidate_all(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        async move {
            let below = match &self.fallback {
                Some(fallback) => fallback.invalidate_all().await,
                None => Ok(()),
            };
            let mut state = self.state.lock();
            state.entries.clear();
            state.flights.clear();
            below
        }
        .boxed()
    }
}

impl<V> fmt::Debug for Lru<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Lru")
            .field("entries", &state.entries.len())
            .field("flights", &state.flights.len())
            .field("ages", &self.ages)
            .finish_non_exhaustive()
    }
}

//! The seam for caches outside the process, and the layer over one that may be down.

use crate::fetcher::{fetch_from, missing_answer};
use crate::forgotten::Forgotten;
use crate::lookups::Lookups;
use crate::{FetchError, FetchResult, Fetched, Fetcher};
use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A store of look-up answers outside the process.
///
/// # Contract
/// - Keys are the callers' own; the store puts its namespace before them.
/// - `get` answers for every key, in order: `None` is a miss, an undecodable entry too. [`Fetched::fresh_for`] is
///   the time that the entry has left to live.
/// - `get` and the removals have a deadline of their own.
/// - `put` hands entries over and returns at once: writing must not delay an answer. A removal that is asked for
///   afterwards removes what was put before, written or not. What waits to be written is
///   bounded; beyond that, and while the store is down, entries are dropped. The store's own age applies, and
///   never more than an entry's `fresh_for`.
pub trait Store<V>: Send + Sync {
    /// Its name in metrics and log lines: `redis`.
    fn name(&self) -> &'static str;

    /// What it holds of `keys`.
    fn get<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Option<Fetched<V>>>, FetchError>>;

    /// Takes entries to be written.
    fn put(&self, entries: Vec<(Box<str>, Fetched<V>)>);

    /// Removes one entry; a key that is not there is fine.
    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>>;

    /// Removes all entries of its namespace.
    fn clear(&self) -> BoxFuture<'_, Result<(), FetchError>>;
}

impl<V, S: Store<V> + ?Sized> Store<V> for Arc<S> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn get<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Option<Fetched<V>>>, FetchError>> {
        (**self).get(keys)
    }

    fn put(&self, entries: Vec<(Box<str>, Fetched<V>)>) {
        (**self).put(entries);
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        (**self).remove(key)
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        (**self).clear()
    }
}

/// A layer over a [`Store`]. While the store fails, every look-up goes to the next layer; the log says when that
/// begins and when it ends. What is invalidated while it is fetched is not put into the store.
pub struct Layered<V, S> {
    store: S,
    fallback: Option<Arc<dyn Fetcher<V>>>,
    forgotten: Mutex<Forgotten>,
    down: AtomicBool,
    lookups: Lookups,
}

impl<V: Clone + Send + Sync, S: Store<V>> Layered<V, S> {
    /// A layer that asks `store` first and `fallback` for what is not there.
    #[must_use]
    pub fn new(store: S, fallback: Option<Arc<dyn Fetcher<V>>>) -> Self {
        let lookups = Lookups::new(store.name());
        Self { store, fallback, forgotten: Mutex::default(), down: AtomicBool::new(false), lookups }
    }

    async fn fetch_all(&self, keys: &[&str]) -> Vec<FetchResult<V>> {
        let found = self.look(keys).await;
        let missed: Vec<usize> = (0..keys.len()).filter(|index| found[*index].is_none()).collect();
        let mut results: Vec<_> = found.into_iter().map(|found| found.map(Ok)).collect();
        if !missed.is_empty() {
            let wanted: Vec<&str> = missed.iter().map(|index| keys[*index]).collect();
            let moment = self.forgotten.lock().moment();
            let fetched = fetch_from(self.fallback.as_deref(), self.store.name(), &wanted).await;
            let answered = wanted.iter().zip(&fetched);
            let fill: Vec<_> = answered
                .filter_map(|(key, result)| Some((Box::from(*key), result.as_ref().ok()?.clone())))
                .collect();
            self.fill(moment, fill);
            for (index, result) in missed.into_iter().zip(fetched) {
                results[index] = Some(result);
            }
        }
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(missing_answer()))).collect()
    }

    /// Puts what the next layer answered to a question asked at `moment`.
    fn fill(&self, moment: u64, mut entries: Vec<(Box<str>, Fetched<V>)>) {
        // Held while they are put: an invalidation comes before and they are left out, or it comes behind and the store
        // removes them again.
        let forgotten = self.forgotten.lock();
        forgotten.retain(moment, &mut entries);
        if !entries.is_empty() {
            self.store.put(entries);
        }
    }

    /// What the store holds, one place per key; nothing while it fails.
    async fn look(&self, keys: &[&str]) -> Vec<Option<Fetched<V>>> {
        match self.store.get(keys).await {
            Ok(mut found) => {
                if self.down.swap(false, Ordering::Relaxed) {
                    tracing::info!(layer = self.store.name(), "the cache layer answers again");
                }
                found.resize_with(keys.len(), || None);
                self.count(&found);
                found
            }
            Err(error) => {
                if !self.down.swap(true, Ordering::Relaxed) {
                    tracing::warn!(layer = self.store.name(), %error, "the cache layer fails and is skipped");
                }
                self.lookups.error.increment(keys.len() as u64);
                std::iter::repeat_with(|| None).take(keys.len()).collect()
            }
        }
    }

    fn count(&self, found: &[Option<Fetched<V>>]) {
        let (mut hits, mut negatives) = (0, 0);
        for found in found.iter().flatten() {
            if found.value.is_some() { hits += 1 } else { negatives += 1 }
        }
        self.lookups.hit.increment(hits);
        self.lookups.negative.increment(negatives);
        self.lookups.miss.increment(found.len() as u64 - hits - negatives);
    }
}

impl<V: Clone + Send + Sync, S: Store<V>> Fetcher<V> for Layered<V, S> {
    fn fetch<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Vec<FetchResult<V>>> {
        self.fetch_all(keys).boxed()
    }

    fn invalidate<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        async move {
            let below = match &self.fallback {
                Some(fallback) => fallback.invalidate(key).await,
                None => Ok(()),
            };
            self.forgotten.lock().record(Some(key));
            self.store.remove(key).await.and(below)
        }
        .boxed()
    }

    fn invalidate_all(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        async move {
            let below = match &self.fallback {
                Some(fallback) => fallback.invalidate_all().await,
                None => Ok(()),
            };
            self.forgotten.lock().record(None);
            self.store.clear().await.and(below)
        }
        .boxed()
    }
}

impl<V, S> fmt::Debug for Layered<V, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layered").field("down", &self.down).finish_non_exhaustive()
    }
}

//! Who is here now: values that are set and deleted by hand, with no source behind them.

use crate::{FetchError, ZeroSize};
use futures_util::future::{BoxFuture, FutureExt, ready};
use lru::LruCache;
use parking_lot::Mutex;
use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;
use tokio::time::Instant;

/// Values that exist only because somebody set them; nobody is asked for a missing one.
///
/// # Contract
/// - Deleting a key that is not there is fine.
/// - A value that is not set again within the store's age is gone.
/// - A store shared with look-up caches keeps presence under a namespace of its own.
pub trait PresenceCache<V>: Send + Sync {
    /// Sets `key` to `value`, in place of an earlier value, and starts its age anew.
    fn set<'a>(&'a self, key: &'a str, value: V) -> BoxFuture<'a, Result<(), FetchError>>;

    /// The value of `key`, if it is there.
    fn fetch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<V>, FetchError>>;

    /// Removes `key`.
    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>>;
}

/// The presence cache in memory. At its bound the least recently set or fetched key leaves.
pub struct MemoryPresence<V> {
    entries: Mutex<LruCache<Box<str>, (V, Instant)>>,
    max_age: Duration,
}

impl<V> MemoryPresence<V> {
    /// At most `max_size` keys, each for `max_age` after it was last set.
    ///
    /// # Errors
    /// When `max_size` is zero.
    pub fn new(max_size: usize, max_age: Duration) -> Result<Self, ZeroSize> {
        let max_size = NonZeroUsize::new(max_size).ok_or(ZeroSize)?;
        Ok(Self { entries: Mutex::new(LruCache::sparse(max_size)), max_age })
    }
}

impl<V: Clone + Send> MemoryPresence<V> {
    fn look(&self, key: &str) -> Option<V> {
        let mut entries = self.entries.lock();
        let (value, set) = entries.get(key)?;
        if set.elapsed() < self.max_age {
            return Some(value.clone());
        }
        entries.pop(key);
        None
    }
}

impl<V: Clone + Send> PresenceCache<V> for MemoryPresence<V> {
    fn set<'a>(&'a self, key: &'a str, value: V) -> BoxFuture<'a, Result<(), FetchError>> {
        self.entries.lock().put(Box::from(key), (value, Instant::now()));
        ready(Ok(())).boxed()
    }

    fn fetch<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<V>, FetchError>> {
        ready(Ok(self.look(key))).boxed()
    }

    fn delete<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        self.entries.lock().pop(key);
        ready(Ok(())).boxed()
    }
}

impl<V> fmt::Debug for MemoryPresence<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryPresence").field("max_age", &self.max_age).finish_non_exhaustive()
    }
}

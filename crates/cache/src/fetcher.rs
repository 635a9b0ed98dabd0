//! The one trait of all layers and sources.

use crate::FetchError;
use futures_util::future::{BoxFuture, FutureExt, ready};
use messagepipeline::StageError;
use std::time::Duration;

/// The answer for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched<V> {
    /// The value; `None` says that the key is known to be absent.
    pub value: Option<V>,
    /// How much longer the answer may be used; [`Duration::MAX`] when the source sets no limit. A cache above keeps
    /// it no longer, so ages of several layers do not add up.
    pub fresh_for: Duration,
}

impl<V> Fetched<V> {
    /// An answer straight from a source of truth.
    #[must_use]
    pub fn new(value: Option<V>) -> Self {
        Self { value, fresh_for: Duration::MAX }
    }
}

/// What a source of truth says about its changes, to those who keep its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This key was added, changed or removed.
    Key(String),
    /// Any key may have been.
    All,
}

/// What a fetcher says about one key.
pub type FetchResult<V> = Result<Fetched<V>, FetchError>;

/// Looks values up by key, many at a time.
///
/// # Contract
/// - `fetch` answers for every key, in order. A key may stand in `keys` more than once.
/// - An absent key is an answer without a value; an error says that this key's answer could not be found out.
/// - Whoever reaches outside the process has a deadline of its own: `fetch` always answers in bounded time.
/// - Nothing is kept from an error. Dropping the future abandons the look-up and harms nobody who waits for the
///   same keys.
/// - `V` is cheap to clone (shared, not copied).
pub trait Fetcher<V>: Send + Sync {
    /// Looks `keys` up.
    fn fetch<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Vec<FetchResult<V>>>;

    /// Forgets `key` in this layer and in every one below. A look-up that starts afterwards asks the source; one
    /// that is under way may still answer with the old value, but no layer keeps it.
    fn invalidate<'a>(&'a self, _key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        ready(Ok(())).boxed()
    }

    /// Forgets everything, in this layer and in every one below, as [`invalidate`](Self::invalidate) does.
    fn invalidate_all(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        ready(Ok(())).boxed()
    }
}

/// Looks one key up.
///
/// # Errors
/// When the answer could not be found out.
pub async fn fetch_one<V>(fetcher: &dyn Fetcher<V>, key: &str) -> FetchResult<V> {
    fetcher.fetch(&[key]).await.pop().unwrap_or_else(|| Err(missing_answer()))
}

/// Asks `next` for `keys`, with exactly one answer for each.
pub(crate) async fn fetch_from<V>(
    next: Option<&dyn Fetcher<V>>,
    layer: &'static str,
    keys: &[&str],
) -> Vec<FetchResult<V>> {
    let mut results = match next {
        Some(next) => next.fetch(keys).await,
        None => Vec::new(),
    };
    let absent = || match next {
        Some(_) => missing_answer(),
        None => FetchError::NoFallback { layer },
    };
    results.resize_with(keys.len(), || Err(absent()));
    results
}

/// Stands for an answer that a fetcher owed and did not give.
pub(crate) fn missing_answer() -> FetchError {
    StageError::transient("lookup-incomplete", "the source answered for fewer keys than it was asked for")
        .into()
}

//! Keeping a cache in step with a source of truth that says what changed.

use cache::{Change, FetchError, Fetcher};
use futures_util::future::join_all;
use futures_util::stream::{self, BoxStream, StreamExt};
use messagepipeline::{Enrichment, Shutdown};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Longest wait for the layers to forget.
const DEADLINE: Duration = Duration::from_secs(60);
/// Keys that are invalidated at the same time.
const TOGETHER: usize = 64;

/// Changes of a source that says only that something changed: each is [`Change::All`], because another process may have
/// made it.
#[must_use]
pub fn any_change(changes: watch::Receiver<u64>) -> BoxStream<'static, Change> {
    let next = |mut changes: watch::Receiver<u64>| async move {
        changes.changed().await.ok()?;
        Some((Change::All, changes))
    };
    stream::unfold(changes, next).boxed()
}

/// Makes `cache`, with all layers below it, forget what `changes` tell of, and then moves `forgotten`; until the
/// shutdown begins or no more changes can come.
///
/// Forgetting everything is cheap beside looking it up again: each device in use is asked for once more, in batches and
/// by one caller.
pub async fn invalidate_on_change(
    cache: &dyn Fetcher<Enrichment>,
    changes: BoxStream<'static, Change>,
    forgotten: &watch::Sender<u64>,
    shutdown: Shutdown,
) {
    let mut changes = changes.ready_chunks(TOGETHER);
    loop {
        let told = tokio::select! {
            biased;
            () = shutdown.begun() => return,
            told = changes.next() => told,
        };
        let Some(told) = told else { return };
        let invalidated = tokio::select! {
            biased;
            () = shutdown.begun() => return,
            invalidated = timeout(DEADLINE, invalidate(cache, &told)) => invalidated,
        };
        let error = match invalidated {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", DEADLINE.as_secs())),
        };
        if let Some(error) = error {
            tracing::warn!(%error, "a cache layer could not forget what changed in the registry: its entries stay until their age");
        }
        forgotten.send_modify(|count| *count += 1);
    }
}

async fn invalidate(cache: &dyn Fetcher<Enrichment>, changes: &[Change]) -> Result<(), FetchError> {
    let mut keys = Vec::with_capacity(changes.len());
    for change in changes {
        match change {
            Change::Key(key) => keys.push(key),
            Change::All => return cache.invalidate_all().await,
        }
    }
    join_all(keys.into_iter().map(|key| cache.invalidate(key))).await.into_iter().collect()
}

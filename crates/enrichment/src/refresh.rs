//! Keeping a cache in step with a registry that says when it changed.

use cache::Fetcher;
use messagepipeline::{Enrichment, Shutdown};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Longest wait for the layers to forget.
const DEADLINE: Duration = Duration::from_secs(60);

/// Empties `cache` whenever `changes` moves, until the shutdown begins or the registry is gone.
///
/// A change carries no keys, because another process may have made it. Emptying is cheap beside that: each device in
/// use is looked up once more, in batches.
pub async fn invalidate_on_change(
    cache: &dyn Fetcher<Enrichment>,
    mut changes: watch::Receiver<u64>,
    shutdown: Shutdown,
) {
    loop {
        tokio::select! {
            biased;
            () = shutdown.begun() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        let emptied = tokio::select! {
            biased;
            () = shutdown.begun() => return,
            emptied = timeout(DEADLINE, cache.invalidate_all()) => emptied,
        };
        let error = match emptied {
            Ok(Ok(())) => continue,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", DEADLINE.as_secs()),
        };
        tracing::warn!(%error, "a cache layer could not be emptied after a change of the registry: entries stay until their age");
    }
}

//! Keeping a cache in step with a registry that says when it changed.

use cache::Fetcher;
use messagepipeline::{Enrichment, Shutdown};
use tokio::sync::watch;

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
        if let Err(error) = cache.invalidate_all().await {
            tracing::warn!(%error, "a cache layer could not be emptied after a change of the registry: entries stay until their age");
        }
    }
}

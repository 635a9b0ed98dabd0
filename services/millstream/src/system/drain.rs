//! Waiting until everything that came in has arrived.

use super::open::Stores;
use crate::check::RAW;
use connectors::ConnectError;
use embedded::bus::Backlog;
use messagepipeline::{Health, Shutdown};
use std::time::Duration;

/// How often the backlog is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often the log says what is still open.
const SAY: Duration = Duration::from_secs(5);

/// Why the wait ended early.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// Somebody stopped the program, or a task failed.
    #[error("stopped before everything had arrived; the rest comes at the next start")]
    Stopped,
    /// The bus cannot be read.
    #[error(transparent)]
    Bus(#[from] ConnectError),
}

/// Waits until no subscription has unsettled messages. Once nothing is left to enrich, the sinks are asked to write what
/// they have grouped, instead of waiting for their groups' age. `observe` sees every look.
///
/// # Errors
/// When the shutdown begins before that, or the bus cannot be read.
pub async fn drained(
    stores: &Stores,
    health: &Health,
    shutdown: &Shutdown,
    mut observe: impl FnMut(&Backlog),
) -> Result<(), DrainError> {
    let mut said = tokio::time::Instant::now();
    loop {
        let backlog = stores.bus.backlog().await?;
        observe(&backlog);
        if backlog.subscriptions.iter().all(|subscription| subscription.unsettled == 0) {
            return Ok(());
        }
        if backlog
            .subscriptions
            .iter()
            .all(|subscription| subscription.topic != RAW || subscription.unsettled == 0)
        {
            stores.flush.ask();
        }
        if said.elapsed() >= SAY {
            said = tokio::time::Instant::now();
            say(&backlog, health);
        }
        tokio::select! {
            biased;
            () = shutdown.begun() => return Err(DrainError::Stopped),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

fn say(backlog: &Backlog, health: &Health) {
    let open: Vec<_> = backlog
        .subscriptions
        .iter()
        .filter(|subscription| subscription.unsettled > 0)
        .map(|subscription| format!("{}: {}", subscription.name, subscription.unsettled))
        .collect();
    let trouble: Vec<_> = health
        .stages()
        .into_iter()
        .filter_map(|(stage, reason)| Some(format!("{stage}: {}", reason?)))
        .collect();
    tracing::info!(
        open = open.join(", "),
        trouble = trouble.join("; "),
        "waiting until everything has arrived"
    );
}

//! Waiting until everything that came in has arrived.

use super::open::Stores;
use crate::check::RAW;
use connectors::ConnectError;
use embedded::bus::Backlog;
use messagepipeline::{Health, Shutdown};
use std::time::Duration;
use tokio::time::Instant;

/// How often the backlog is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// How often the log says what is still open.
const SAY: Duration = Duration::from_secs(5);
/// How long nothing may be settled or published while a stage cannot work. What mends itself (a lock, a lease that runs
/// out) takes less; a damaged file stays for ever.
const PATIENCE: Duration = Duration::from_secs(180);

/// Why the wait ended early.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// Somebody stopped the program, or a task failed.
    #[error("stopped before everything had arrived; the rest comes at the next start")]
    Stopped,
    /// Nothing moves, and a stage says why.
    #[error(
        "nothing has moved for {} s ({trouble}); mend that, and the next `up` goes on with what is left",
        PATIENCE.as_secs()
    )]
    Stuck {
        /// The stages that are not ready, with their reasons.
        trouble: String,
    },
    /// The bus cannot be read.
    #[error(transparent)]
    Bus(#[from] ConnectError),
}

/// Waits until no subscription has unsettled messages. Once nothing is left to enrich, the sinks are asked to write what
/// they have grouped, instead of waiting for their groups' age. `observe` sees every look.
///
/// # Errors
/// When the shutdown begins before that, nothing moves while a stage is not ready, or the bus cannot be read.
pub async fn drained(
    stores: &Stores,
    health: &Health,
    shutdown: &Shutdown,
    mut observe: impl FnMut(&Backlog),
) -> Result<(), DrainError> {
    let mut said = Instant::now();
    let mut standstill = Standstill::default();
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
            said = Instant::now();
            say(&backlog, health);
        }
        if standstill.lasts_too_long(position(&backlog), !health.is_ready()) {
            return Err(DrainError::Stuck { trouble: trouble(health) });
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
    tracing::info!(open = open.join(", "), trouble = trouble(health), "waiting until everything has arrived");
}

fn trouble(health: &Health) -> String {
    let stages = health.stages().into_iter();
    let told: Vec<_> = stages.filter_map(|(stage, reason)| Some(format!("{stage}: {}", reason?))).collect();
    told.join("; ")
}

/// What changes when a message moves: what was published and what is open.
fn position(backlog: &Backlog) -> Vec<u64> {
    let published = backlog.topics.iter().map(|topic| topic.published.count);
    published.chain(backlog.subscriptions.iter().map(|subscription| subscription.unsettled)).collect()
}

/// For how long nothing has moved and some stage could not work.
#[derive(Default)]
struct Standstill {
    position: Vec<u64>,
    since: Option<Instant>,
}

impl Standstill {
    fn lasts_too_long(&mut self, position: Vec<u64>, is_troubled: bool) -> bool {
        if !is_troubled || position != self.position {
            *self = Self { position, since: None };
            return false;
        }
        self.since.get_or_insert_with(Instant::now).elapsed() >= PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_standstill_with_a_troubled_stage_all_the_while_ends_the_wait() {
        let mut standstill = Standstill::default();
        assert!(!standstill.lasts_too_long(vec![5], true));
        for (position, is_troubled) in [(vec![5], false), (vec![4], true), (vec![4], true)] {
            assert!(!standstill.lasts_too_long(position, is_troubled));
            tokio::time::advance(PATIENCE).await;
        }
        assert!(standstill.lasts_too_long(vec![4], true));
    }
}

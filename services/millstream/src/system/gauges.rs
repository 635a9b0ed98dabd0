//! Backlog figures for whoever watches.

use connectors::Bus;
use messagepipeline::Shutdown;
use messagepipeline::metric_names::{BUS_BACKLOG, BUS_OLDEST_SECONDS};
use std::time::Duration;

/// How often the figures are read. A scrape every 15 s then never sees one older than that.
const INTERVAL: Duration = Duration::from_secs(5);

/// Keeps the backlog gauges up to date until the shutdown begins.
pub(super) async fn keep(bus: Bus, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut failing = false;
    loop {
        tokio::select! {
            biased;
            () = shutdown.begun() => return,
            _ = ticks.tick() => {}
        }
        match bus.backlog().await {
            Ok(backlog) => {
                failing = false;
                for subscription in backlog.subscriptions {
                    let age = subscription.oldest.unwrap_or_default().as_secs_f64();
                    #[expect(clippy::cast_precision_loss, reason = "gauges are floating point")]
                    metrics::gauge!(BUS_BACKLOG, "subscription" => subscription.name.clone())
                        .set(subscription.unsettled as f64);
                    metrics::gauge!(BUS_OLDEST_SECONDS, "subscription" => subscription.name).set(age);
                }
            }
            // An outage may last, and the stages say what it is.
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(%error, "the backlog cannot be read; trying again all the time");
            }
            Err(_) => {}
        }
    }
}

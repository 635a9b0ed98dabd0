//! What the endpoint tells: metrics, and log lines that a hostile client cannot flood.

use super::reason::Reason;
use messagepipeline::metric_names as names;
use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// Lines per [`LOG_PERIOD`] about what clients did wrong.
const LOG_LINES: u32 = 20;
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// Handles of the metrics, looked up once.
pub(super) struct Telemetry {
    pub(super) connections: Gauge,
    pub(super) publishes: [Counter; 3],
    pub(super) duplicates: Counter,
    pub(super) identifiers_reused: Counter,
    log: Mutex<LogGate>,
}

struct LogGate {
    since: Instant,
    lines: u32,
}

impl Telemetry {
    pub(super) fn new() -> Self {
        Self {
            connections: metrics::gauge!(names::MQTT_CONNECTIONS),
            publishes: ["0", "1", "2"].map(|qos| metrics::counter!(names::MQTT_PUBLISHES, "qos" => qos)),
            duplicates: metrics::counter!(names::MQTT_DUPLICATES),
            identifiers_reused: metrics::counter!(names::MQTT_IDENTIFIERS_REUSED),
            log: Mutex::new(LogGate { since: Instant::now(), lines: 0 }),
        }
    }

    /// Counts a refusal and answers whether a line about it may be written.
    pub(super) fn refused(&self, reason: Reason) -> bool {
        self.refused_for(reason.word())
    }

    /// As [`Telemetry::refused`], for what has no reason code.
    pub(super) fn refused_for(&self, word: &'static str) -> bool {
        metrics::counter!(names::MQTT_REFUSED, "reason" => word).increment(1);
        self.may_log()
    }

    pub(super) fn may_log(&self) -> bool {
        let now = Instant::now();
        let mut gate = self.log.lock();
        if now.duration_since(gate.since) >= LOG_PERIOD {
            let suppressed = gate.lines.saturating_sub(LOG_LINES);
            *gate = LogGate { since: now, lines: 0 };
            if suppressed > 0 {
                tracing::warn!(suppressed, "further MQTT refusals were not logged one by one");
            }
        }
        gate.lines = gate.lines.saturating_add(1);
        gate.lines <= LOG_LINES
    }
}

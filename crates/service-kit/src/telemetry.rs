//! Logs on standard error and metrics for Prometheus.

use messagepipeline::{ErrorClass, StageError};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::task::AbortOnDropHandle;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Gauge, always 1: which program runs. Labels `service`, `version`.
pub const BUILD_INFO: &str = "millstream_build_info";

/// Bounds of the buckets of every histogram of seconds: from a write that meets a cached page to a stalled disk.
const SECONDS_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// How often histograms are folded into their buckets. Between two times their samples are kept one by one.
const UPKEEP: Duration = Duration::from_secs(5);

/// Logging, as a section of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// Form of the log lines. Without it: text on a terminal, JSON elsewhere.
    pub format: Option<LogFormat>,
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// Levels of single parts by module name, such as `mqttconverter: debug`.
    pub targets: BTreeMap<String, LogLevel>,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line: `timestamp`, `level`, `target`, `message` and the fields.
    Json,
}

/// Severity of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// What needs a person.
    Error,
    /// What may need one.
    Warn,
    /// What the program does, in rough steps.
    #[default]
    Info,
    /// For finding out why.
    Debug,
    /// Everything.
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

/// What the command line says about logs: how often `-v` and `-q` were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verbosity {
    /// `-v`: each takes one more level in.
    pub verbose: u8,
    /// `-q`: each leaves one level out; below `error` nothing is logged.
    pub quiet: u8,
}

impl Verbosity {
    /// The level that results from the configured one.
    #[must_use]
    pub fn apply(self, level: LogLevel) -> LevelFilter {
        const LEVELS: [LevelFilter; 6] = [
            LevelFilter::OFF,
            LevelFilter::ERROR,
            LevelFilter::WARN,
            LevelFilter::INFO,
            LevelFilter::DEBUG,
            LevelFilter::TRACE,
        ];
        let configured = LEVELS.iter().position(|filter| *filter == LevelFilter::from(level)).unwrap_or(3);
        let wanted =
            configured.saturating_add(usize::from(self.verbose)).saturating_sub(usize::from(self.quiet));
        LEVELS[wanted.min(LEVELS.len() - 1)]
    }
}

/// Telemetry that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// This process already has a logger.
    #[error("the log was already started in this process: {0}")]
    Log(#[from] tracing_subscriber::util::TryInitError),
    /// This process already has a metrics recorder.
    #[error("metrics were already started in this process")]
    Recorder,
    /// The exporter refused its settings.
    #[error("metrics cannot be started: {0}")]
    Exporter(#[from] BuildError),
}

impl TelemetryError {
    /// `permanent`: it fails every time in this process.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Permanent
    }
}

impl From<TelemetryError> for StageError {
    fn from(error: TelemetryError) -> Self {
        Self::new(error.class(), "telemetry", error.to_string()).with_source(error)
    }
}

/// Starts logs on standard error and metrics for the whole process. Colours only on a terminal.
///
/// # Errors
/// When either was already started.
pub fn init(settings: &LogSettings, verbosity: Verbosity) -> Result<Metrics, TelemetryError> {
    let terminal = std::io::stderr().is_terminal();
    init_with_writer(settings, verbosity, terminal, std::io::stderr)
}

/// As [`init`], with another place for the log: a program that draws progress bars writes around them.
/// `terminal` decides about colours and the default format.
///
/// # Errors
/// When either was already started.
pub fn init_with_writer(
    settings: &LogSettings,
    verbosity: Verbosity,
    terminal: bool,
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
) -> Result<Metrics, TelemetryError> {
    subscriber(settings, verbosity, terminal, writer).try_init()?;
    let (recorder, metrics) = recorder()?;
    metrics::set_global_recorder(recorder).map_err(|_| TelemetryError::Recorder)?;
    Ok(metrics)
}

/// Client libraries that write what devices sent into their log lines. Whoever calls them tells of their errors.
const SILENT: [&str; 3] = ["bigquery", "firestore", "gcloud_sdk"];

fn subscriber(
    settings: &LogSettings,
    verbosity: Verbosity,
    terminal: bool,
    writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static,
) -> impl tracing::Subscriber + Send + Sync {
    let level = verbosity.apply(settings.level);
    let silent = SILENT.map(|target| (target, LevelFilter::OFF));
    let ours = [("bigquery_service", level)];
    let levels = Targets::new().with_default(level).with_targets(silent).with_targets(ours).with_targets(
        settings.targets.iter().map(|(target, level)| (target.clone(), LevelFilter::from(*level))),
    );
    let format = settings.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(terminal).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).with_ansi(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(levels))
}

/// Says which program runs, as the metric [`BUILD_INFO`].
pub fn record_build(service: &'static str, version: &'static str) {
    metrics::gauge!(BUILD_INFO, "service" => service, "version" => version).set(1.0);
}

/// What has been measured in this process. Cloning shares it.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// All metrics in the Prometheus text format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps the memory of histograms bounded while nobody reads the metrics, until the answer is dropped.
    /// Needs a tokio runtime.
    pub fn start_upkeep(&self) -> Upkeep {
        let handle = self.0.clone();
        Upkeep(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                handle.run_upkeep();
            }
        })))
    }
}

/// Upkeep of metrics that goes on until this is dropped.
#[derive(Debug)]
#[must_use = "upkeep ends when this is dropped"]
pub struct Upkeep(#[expect(dead_code, reason = "held for its drop")] AbortOnDropHandle<()>);

/// A recorder that is not the process's own yet; tests use it through `metrics::with_local_recorder`.
///
/// # Errors
/// When the exporter refuses its settings.
pub fn recorder() -> Result<(PrometheusRecorder, Metrics), TelemetryError> {
    let seconds = Matcher::Suffix("_seconds".to_owned());
    let recorder =
        PrometheusBuilder::new().set_buckets_for_metric(seconds, &SECONDS_BUCKETS)?.build_recorder();
    let metrics = Metrics(recorder.handle());
    Ok((recorder, metrics))
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(settings: &LogSettings, verbosity: Verbosity, terminal: bool) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = subscriber(settings, verbosity, terminal, move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(stage = "bigquery", rows = 3, "rows stored");
            tracing::debug!("details");
            tracing::info!(target: "noisy::part", "chatter");
        });
        String::from_utf8(captured.0.lock().clone()).unwrap()
    }

    #[test]
    fn a_json_line_has_time_level_target_message_and_fields() {
        let lines = logged(&LogSettings::default(), Verbosity::default(), false);
        let line: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
        for (key, value) in [("level", "INFO"), ("message", "rows stored"), ("stage", "bigquery")] {
            assert_eq!(line[key], value, "{line}");
        }
        assert_eq!(line["rows"], 3);
        assert!(line["target"].as_str().unwrap().starts_with("service_kit"));
        assert!(line["timestamp"].as_str().unwrap().parse::<messagepipeline::Timestamp>().is_ok());
    }

    #[test]
    fn levels_come_from_the_configuration_its_targets_and_the_command_line() {
        let quiet_part =
            LogSettings { targets: [("noisy".to_owned(), LogLevel::Warn)].into(), ..LogSettings::default() };
        let lines = logged(&quiet_part, Verbosity { verbose: 1, quiet: 0 }, false);
        assert!(lines.contains("details") && !lines.contains("chatter"), "{lines}");
        assert_eq!(logged(&LogSettings::default(), Verbosity { verbose: 0, quiet: 1 }, false), "");
        assert_eq!(Verbosity { verbose: 0, quiet: 200 }.apply(LogLevel::Trace), LevelFilter::OFF);
        assert_eq!(Verbosity { verbose: 200, quiet: 0 }.apply(LogLevel::Error), LevelFilter::TRACE);
    }

    #[test]
    fn text_has_colours_only_on_a_terminal() {
        let text = LogSettings { format: Some(LogFormat::Text), ..LogSettings::default() };
        assert!(!logged(&text, Verbosity::default(), false).contains('\u{1b}'));
        assert!(logged(&LogSettings::default(), Verbosity::default(), true).contains('\u{1b}'));
    }

    #[test]
    fn seconds_have_buckets_and_the_build_is_told() {
        let (recorder, rendered) = recorder().unwrap();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("millstream_commit_seconds").record(0.003);
            record_build("ingestion", "1.2.3");
        });
        let text = rendered.render();
        assert!(text.contains("millstream_commit_seconds_bucket{le=\"0.005\"} 1"), "{text}");
        assert!(text.contains("millstream_build_info{service=\"ingestion\",version=\"1.2.3\"} 1"), "{text}");
    }
}

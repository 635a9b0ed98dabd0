//! The configuration: one YAML file, a section per service and the shared ones.

use crate::check::check;
use crate::cli::{Common, LogFormat};
use bigquery_service::WarehouseConfig;
use connectors::{BusConfig, GoogleConfig};
use enrichment_service::EnrichmentConfig;
use icestore_service::ArchiveConfig;
use ingestion_service::IngestionConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::config::{ConfigErrors, Duration, Loaded, Override, Partial, Source, load_or_partial};
use service_kit::telemetry::LogSettings;
use service_kit::{HttpConfig, ShutdownConfig};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The file that is read when none is named.
const DEFAULT_FILE: &str = "millstream.yaml";

/// Millstream's configuration. Everything has a default; the empty file is a working one.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Millstream")]
pub struct Config {
    /// Data folder: bus, warehouse, device registry and archive lie below it.
    pub data: PathBuf,
    /// Log lines, on standard error.
    pub log: LogSettings,
    /// The admin server: `/healthz`, `/readyz`, `/metrics`.
    pub http: HttpConfig,
    /// How the program stops.
    pub shutdown: ShutdownConfig,
    /// Google Cloud, for the parts that stand there.
    pub google: GoogleConfig,
    /// The bus between the services.
    pub bus: BusConfig,
    /// MQTT in.
    pub ingestion: IngestionConfig,
    /// Device data added.
    pub enrichment: EnrichmentConfig,
    /// The warehouse.
    pub bigquery: WarehouseConfig,
    /// The archive.
    pub icestore: ArchiveConfig,
    /// How long what is finished is kept.
    pub retention: RetentionConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::from("millstream-data"),
            log: LogSettings::default(),
            http: HttpConfig::default(),
            shutdown: ShutdownConfig::default(),
            google: GoogleConfig::default(),
            bus: BusConfig::default(),
            ingestion: IngestionConfig::default(),
            enrichment: EnrichmentConfig::default(),
            bigquery: WarehouseConfig::default(),
            icestore: ArchiveConfig::default(),
            retention: RetentionConfig::default(),
        }
    }
}

/// How long what is finished is kept. `null` keeps it for ever. A message is finished when every destination has its
/// outcome; what is on its way, parked or a dead letter is kept whatever its age.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// Ids of finished messages: so long a message sent again is recognised by its id, and so long `books`
    /// names a message that is missing by its id. Older ones count in sums. At least twice `bus.lease`, which
    /// in turn is at least twice `icestore.batch.age` and `bigquery.batch.age`; with `ingestion.message_id`
    /// also at least as long as a session lasts (24h at the endpoint, with a broker
    /// `ingestion.broker.session_expiry`).
    pub ids: Option<Duration>,
    /// Rows of the warehouse. Not shorter than `ids`.
    pub warehouse: Option<Duration>,
    /// Objects of the archive, from the receipt of their last message. Not shorter than `ids`.
    pub archive: Option<Duration>,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self { ids: Some(Duration::from_hours(30 * 24)), warehouse: None, archive: None }
    }
}

/// The built-in defaults with `overrides`, whatever file there is.
///
/// # Errors
/// When an override is wrong.
pub fn built_in(common: &Common, overrides: Vec<Override>) -> Result<Loaded<Config>, ConfigErrors> {
    load_from(&Source::none(), common, overrides)
}

/// Reads the file, the environment's values in it, and what flags and environment variables override.
///
/// # Errors
/// Every mistake with its place.
pub fn read(common: &Common, overrides: Vec<Override>) -> Result<Loaded<Config>, ConfigErrors> {
    let source = match &common.config {
        Some(path) => Source::file(path)?,
        None if Path::new(DEFAULT_FILE).is_file() => Source::file(DEFAULT_FILE)?,
        None => Source::none(),
    };
    load_from(&source, common, overrides)
}

fn load_from(
    source: &Source,
    common: &Common,
    mut overrides: Vec<Override>,
) -> Result<Loaded<Config>, ConfigErrors> {
    if let Some(data) = &common.data {
        overrides.push(Override::new("/data", data.to_string_lossy(), "--data"));
    }
    if let Some(format) = common.log_format {
        let word = match format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        overrides.push(Override::new("/log/format", word, "--log-format"));
    }
    let environment: HashMap<String, String> = std::env::vars().collect();
    let loaded = load_all(source, &environment, &overrides)?;
    if loaded.value.ingestion.broker.is_none() {
        return Ok(loaded);
    }
    overrides.extend(broker_overrides(&environment));
    let loaded = load_all(source, &environment, &overrides)?;
    if environment.get(SKIP_VERIFY).is_some_and(|value| value == "true") {
        let mut check = loaded.check();
        let message = format!(
            "{SKIP_VERIFY}=true is not followed: the broker's certificate is always verified; name its authority in tls.ca"
        );
        check.error("/ingestion/broker/tls", message);
        check.finish()?;
    }
    Ok(loaded)
}

/// A section whose values have the wrong types does not keep the others from being checked to the end.
fn load_all(
    source: &Source,
    environment: &HashMap<String, String>,
    overrides: &[Override],
) -> Result<Loaded<Config>, ConfigErrors> {
    load_or_partial(source, environment, overrides).map_err(|partial| {
        let Partial { errors, rest } = *partial;
        match rest.map(|rest| check(&rest)) {
            Some(Err(more)) => errors.and_of_other_sections(more),
            _ => errors,
        }
    })
}

/// Variables that set-ups around an outside broker know, with the key each of them sets, in seconds.
const BROKER_VARIABLES: [(&str, &str); 2] = [
    ("MQTT_KEEP_ALIVE_SECONDS", "/ingestion/broker/keep_alive"),
    ("MQTT_CONNECT_TIMEOUT_SECONDS", "/ingestion/broker/connect_timeout"),
];
/// Asks to trust whoever answers.
const SKIP_VERIFY: &str = "MQTT_INSECURE_SKIP_VERIFY";

fn broker_overrides(environment: &HashMap<String, String>) -> Vec<Override> {
    let set = BROKER_VARIABLES.iter().filter_map(|(name, pointer)| {
        let value = environment.get(*name)?.trim();
        // A value that is no number is passed on as it is, to be refused under the variable's name.
        let seconds = value.parse::<u32>().map_or_else(|_| value.to_owned(), |seconds| format!("{seconds}s"));
        Some(Override::new(*pointer, seconds, *name))
    });
    set.collect()
}

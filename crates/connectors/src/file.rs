//! The one configuration file, as a service that is a process of its own reads it.

use crate::{BusConfig, GoogleConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use service_kit::program::Sections;
use service_kit::telemetry::LogSettings;
use service_kit::{HttpConfig, OtherSection, ShutdownConfig};
use std::path::PathBuf;

/// The sections of the file: the shared ones, and of the services' those that the program reads. The others are left
/// to their programs; a key that no program knows is a mistake.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct File<I = OtherSection, E = OtherSection, B = OtherSection, A = OtherSection>
where
    I: Default,
    E: Default,
    B: Default,
    A: Default,
{
    /// Data folder: the spool and the ledger of ids lie below it.
    pub data: DataPath,
    /// Log lines, on standard error.
    pub log: LogSettings,
    /// The admin server: `/healthz`, `/readyz`, `/metrics`.
    pub http: HttpConfig,
    /// How the program stops.
    pub shutdown: ShutdownConfig,
    /// Google Cloud.
    pub google: GoogleConfig,
    /// The bus between the services.
    pub bus: BusConfig,
    /// MQTT in.
    pub ingestion: I,
    /// Device data added.
    pub enrichment: E,
    /// The warehouse.
    pub bigquery: B,
    /// The archive.
    pub icestore: A,
    /// How long what is finished is kept on one machine.
    pub retention: OtherSection,
}

/// The data folder; `millstream-data` by default.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct DataPath(pub PathBuf);

impl Default for DataPath {
    fn default() -> Self {
        Self(PathBuf::from("millstream-data"))
    }
}

impl<I, E, B, A> Sections for File<I, E, B, A>
where
    Self: serde::de::DeserializeOwned + Serialize + JsonSchema,
    I: Default,
    E: Default,
    B: Default,
    A: Default,
{
    fn log(&self) -> &LogSettings {
        &self.log
    }

    fn http(&self) -> &HttpConfig {
        &self.http
    }

    fn shutdown(&self) -> &ShutdownConfig {
        &self.shutdown
    }
}

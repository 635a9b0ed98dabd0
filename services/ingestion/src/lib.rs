//! The ingestion service: MQTT in, routes and device ids, the topics of the bus out.

mod app;
mod certificates;
mod config;
mod ingest;
mod ledger;
mod letters;
#[cfg(feature = "google")]
mod program;
mod run;
#[cfg(feature = "google")]
mod spool;

pub use app::{Ingestion, Parts, Plan, STAGE, broker_options, endpoint_options};
pub use certificates::check_certificates;
pub use config::{
    BrokerConfig, ClientTlsConfig, EndpointConfig, IngestionConfig, ServerTlsConfig, SpoolConfig, UserConfig,
};
pub use ingest::{Ingest, Ingested};
pub use ledger::{LEDGER_FOLDER, Ledger, LedgerOptions, Ledgers, Reached};
#[cfg(feature = "google")]
pub use program::IngestionProgram;
pub use run::run;

/// The stage that takes messages from the spool to the bus.
pub const FORWARD: &str = "forward";

//! The ingestion service: MQTT in, routes and device ids, the topics of the bus out.

mod app;
mod config;
mod ingest;
mod letters;

pub use app::{Ingestion, Parts, Plan, STAGE, broker_options, endpoint_options};
pub use config::{
    BrokerConfig, ClientTlsConfig, EndpointConfig, IngestionConfig, ServerTlsConfig, UserConfig,
};
pub use ingest::{Ingest, Ingested};

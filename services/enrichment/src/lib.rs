//! The enrichment service: the raw topic in, device data added, the enriched topic out.

mod app;
mod config;

pub use app::{Background, Enrichment, Parts, Plan, STAGE};
pub use config::{CacheConfig, EnrichmentConfig, FieldNames, ParkConfig, UnknownDevicePolicy};

//! The enrichment service: the raw topic in, device data added, the enriched topic out.

mod app;
mod check;
mod config;
#[cfg(feature = "google")]
pub mod google;
#[cfg(feature = "google")]
mod program;

pub use ::enrichment::any_change;
pub use app::{Background, Enrichment, Parts, Plan, STAGE};
pub use check::file_mistakes;
pub use config::{
    CacheConfig, EnrichmentConfig, FieldNames, ParkConfig, RedisConfig, SourceConfig, SourceKind,
    UnknownDevicePolicy,
};
#[cfg(feature = "google")]
pub use program::EnrichmentProgram;

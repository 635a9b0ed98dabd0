//! The archive service: the enriched topic in, objects by key out.

mod app;
mod config;

pub use app::{Archive, Parts, Plan, STAGE};
pub use config::{ArchiveBatchConfig, ArchiveConfig};

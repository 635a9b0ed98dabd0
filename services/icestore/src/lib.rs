//! The archive service: the enriched topic in, objects by key out.

mod app;
mod check;
mod config;
#[cfg(feature = "google")]
pub mod google;
#[cfg(feature = "google")]
mod program;

pub use app::{Archive, Parts, Plan, STAGE};
pub use config::{ArchiveBatchConfig, ArchiveConfig, ArchiveKind, CloudStorageConfig};
#[cfg(feature = "google")]
pub use program::IcestoreProgram;

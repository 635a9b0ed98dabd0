//! The warehouse service: the enriched topic in, rows out.

mod app;
mod check;
mod config;
#[cfg(feature = "google")]
pub mod google;
#[cfg(feature = "google")]
mod program;

pub use app::{Parts, Plan, STAGE, Warehouse};
pub use config::{BatchConfig, BigQueryConfig, DriftConfig, WarehouseConfig, WarehouseKind, WriteModeConfig};
#[cfg(feature = "google")]
pub use program::BigQueryProgram;

//! The warehouse service: the enriched topic in, rows out.

mod app;
mod config;

pub use app::{Parts, Plan, STAGE, Warehouse};
pub use config::{BatchConfig, WarehouseConfig};

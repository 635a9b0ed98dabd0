//! The whole path in one process.
//!
//! ```text
//!  endpoint or broker client ─► ingestion ─► raw ─► enrichment ─► enriched ─┬─► bigquery ─► warehouse.db
//!                                                      │                    └─► icestore ─► archive/
//!                                                  registry.db
//! ```

mod descriptors;
mod drain;
mod gauges;
mod open;
mod remote;
mod retention;
mod tasks;

pub use drain::{DrainError, drained};
pub use open::{OpenError, Services, Stores, System};
pub(crate) use remote::{asked_for, has_remote_sink};
pub(crate) use retention::{ARCHIVE, WAREHOUSE};

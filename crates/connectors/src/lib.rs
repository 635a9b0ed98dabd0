//! The one place that knows every adapter: a kind in the configuration becomes a consumer, publisher, look-up or sink.
//!
//! Services are written against the traits of the core, `cache`, `bqstore` and `icestore`; which store stands behind
//! them is decided here.

mod bus;
mod config;
mod error;
mod mqtt;
mod stores;

pub use bus::Bus;
pub use config::{BusConfig, BusKind, DeadLetterConfig, Window};
pub use error::ConnectError;
pub use mqtt::{broker, endpoint};
pub use stores::{archive, registry, warehouse};

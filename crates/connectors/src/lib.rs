//! The one place that knows every adapter: a kind in the configuration becomes a consumer, publisher, look-up or sink.
//!
//! Services are written against the traits of the core, `cache`, `bqstore` and `icestore`; which store stands behind
//! them is decided here.

mod bus;
mod config;
mod error;
#[cfg(feature = "google")]
mod file;
#[cfg(feature = "google")]
mod google;
mod mqtt;
#[cfg(feature = "google")]
mod pubsub;
mod stores;

pub use bus::Bus;
pub use config::{
    BusConfig, BusKind, DeadLetterConfig, ENRICHED, GoogleConfig, PubSubConfig, RAW, Window, WireForm,
};
pub use error::ConnectError;
#[cfg(feature = "google")]
pub use file::{DataPath, File, check_bus, check_pubsub};
#[cfg(feature = "google")]
pub use google::{Environment, Google};
pub use mqtt::{broker, endpoint};
#[cfg(feature = "google")]
pub use pubsub::PubSubBus;
pub use stores::{archive, registry, warehouse};

//! The one place that knows every adapter: a kind in the configuration becomes a consumer, publisher, look-up or sink.
//!
//! Services are written against the traits of the core, `cache`, `bqstore` and `icestore`; which store stands behind
//! them is decided here.

mod bus;
#[cfg(feature = "google")]
mod check;
mod config;
#[cfg(feature = "google")]
mod credentials_file;
mod error;
#[cfg(feature = "google")]
mod file;
#[cfg(feature = "google")]
mod google;
mod mqtt;
#[cfg(feature = "google")]
mod pubsub;
#[cfg(feature = "google")]
mod renewing;
mod stores;
#[cfg(feature = "google")]
mod topics;

pub use bus::Bus;
#[cfg(feature = "google")]
pub use check::{GooglePart, check_bus, check_google, check_pubsub, check_topic};
pub use config::{
    BusConfig, BusKind, DeadLetterConfig, ENRICHED, GoogleConfig, PubSubConfig, RAW, Window, WireForm,
};
pub use error::ConnectError;
#[cfg(feature = "google")]
pub use file::{DataPath, File};
#[cfg(feature = "google")]
pub use google::{Environment, Google};
pub use mqtt::{broker, endpoint};
#[cfg(feature = "google")]
pub use pubsub::PubSubBus;
pub use stores::{archive, registry, warehouse};

//! The one-machine adapters: durable bus, warehouse, device registry and archive folder on SQLite and plain files.

pub mod archive;
pub mod bus;
mod error;
pub mod folder;
pub mod registry;
mod sqlite;
pub mod warehouse;

pub use error::Error;
pub use sqlite::Snapshot;

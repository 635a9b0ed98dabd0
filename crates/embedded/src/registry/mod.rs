//! The device registry: what is known about each device, in `registry.db`.
//!
//! The pipeline only reads it ([`Registry`]); [`Importer`] writes it, usually from another process
//! (`millstream devices import` beside a running `up`). Both rely on SQLite's own locking: in WAL mode readers and
//! the one writer do not wait for each other, two imports take turns step by step, and the running pipeline sees
//! that something was committed in `PRAGMA data_version`, which it asks for once a second.

mod changes;
mod device;
mod import;
mod lines;
mod reader;
mod schema;

pub use device::{Device, InvalidDevice};
pub use import::{ImportReport, Importer, Refusal};
pub use reader::{Registry, RegistrySettings};

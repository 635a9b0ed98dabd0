//! Adds looked-up data to messages: key, fetch, apply.
//!
//! ```text
//!              KeyExtractor          Fetcher                    Enrichment::with
//!  chunk ───► distinct keys ───► one batched look-up ───► message + device's data + status attribute
//!                                     │
//!                                     ├─ absent: pass with a marker, dead letter, or parked ──► Releaser
//!                                     └─ failed: exactly these messages fail and are tried again
//! ```
//!
//! The data is renamed once per device, below the cache ([`FieldMapping::over`]), and shared by all messages of the
//! device. A source that fails never lets a message pass unenriched and never drops one.

mod enricher;
mod error;
mod key;
mod mapping;
mod park;
mod refresh;
mod releaser;
mod results;

pub use enricher::{Enricher, UnknownDevice};
pub use error::Error;
pub use key::{KeyExtractor, KeySource};
pub use mapping::FieldMapping;
pub use park::{Parked, ParkingLot, Placed};
pub use refresh::{any_change, invalidate_on_change};
pub use releaser::{Released, Releaser, ReleaserSettings};

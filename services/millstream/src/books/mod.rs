//! The books: what came in and what became of it, proved from the stored data alone.

#[cfg(feature = "google")]
mod cloud;
mod reconcile;
mod report;
mod stores;

#[cfg(feature = "google")]
pub use cloud::{CloudBooks, read_lines, read_rows};
pub use reconcile::Unaccounted;
pub(crate) use reconcile::{Membership, Set};
pub use report::Report;
pub use stores::{Books, Remote, RemoteSink};

//! The books: what came in and what became of it, proved from the stored data alone.

mod reconcile;
mod report;
mod stores;

pub use reconcile::Unaccounted;
pub(crate) use reconcile::{Membership, Set};
pub use report::Report;
pub use stores::Books;

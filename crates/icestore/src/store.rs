//! Where objects are stored.

use crate::ArchiveObject;
use futures_util::future::BoxFuture;
use messagepipeline::{MessageId, StageError};

/// What became of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// It is stored and its ids are recorded.
    Stored,
    /// Some of its ids were archived meanwhile, in another object. Nothing was stored: ask
    /// [`ObjectStore::known`] and put the others.
    Overlaps,
}

/// An archive of objects that knows the ids in them.
///
/// # Contract
/// - [`open`](ObjectStore::open) comes first and finishes what an earlier process left behind.
/// - `put` takes one complete object. When it has answered [`PutOutcome::Stored`], the object's lines and ids are
///   durable, and no later object with one of these ids is stored. That, with `known`, makes one line per message
///   of any number of deliveries.
/// - A reader of the archive sees an object under its name only when it is complete, and then never changed.
/// - An error from `put` leaves nothing that a reader could take for an object. Whether the ids are recorded is open
///   only after a transient error; `known` tells.
/// - Dropping the future of `put` leaves it open whether the object is stored; it is never stored in part.
/// - `close` comes last; what was answered before is durable without it.
pub trait ObjectStore: Send + Sync {
    /// Makes the archive ready.
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>>;

    /// For each id, in order, the fingerprint of the payload under which it is archived; `None` when it is not.
    fn known(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Option<u64>>, StageError>>;

    /// Stores one object.
    fn put(&self, object: ArchiveObject) -> BoxFuture<'_, Result<PutOutcome, StageError>>;

    /// Lets go of the archive.
    fn close(&self) -> BoxFuture<'_, Result<(), StageError>>;
}

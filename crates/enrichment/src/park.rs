//! Where messages of unknown devices wait until the device appears.

use futures_util::future::BoxFuture;
use messagepipeline::{Message, MessageId, StageError, Timestamp};

/// A message that waits for its device.
#[derive(Clone, Debug, PartialEq)]
pub struct Parked {
    /// The look-up key that the registry did not know.
    pub key: Box<str>,
    /// The message as the enrichment stage received it, without a marker.
    pub message: Message,
    /// When it was first parked; its age counts from here.
    pub since: Timestamp,
}

/// What became of a message that was to be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// The lot holds it durably; the original may be acknowledged.
    Held,
    /// The lot is at its bound and did not take it.
    Full,
}

/// A durable, bounded store of parked messages.
///
/// # Contract
/// - Every answer comes when its effect is durable.
/// - The store is bounded in the number of messages by its own configuration; at the bound it answers
///   [`Placed::Full`] for what it does not take and keeps what it has. The bound in age is kept by
///   [`Releaser`](crate::Releaser).
/// - Messages come back as they were parked: id, payload, attributes, publish time and enrichment.
/// - Dropping a future leaves it open whether its effect took place.
pub trait ParkingLot: Send + Sync {
    /// Parks `messages` and answers for each of them, in order.
    ///
    /// Idempotent by message id: an id that is already parked is [`Placed::Held`], also when the lot is full, and
    /// keeps its first [`Parked::since`].
    fn park(&self, messages: Vec<Parked>) -> BoxFuture<'_, Result<Vec<Placed>, StageError>>;

    /// The distinct keys that messages wait for, in ascending byte order, those greater than `after`, at most
    /// `limit`. Fewer than `limit` means there are no more.
    fn keys<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Box<str>>, StageError>>;

    /// Messages that wait for any of `keys`, those parked first in front, at most `limit`.
    fn of_keys(&self, keys: Vec<Box<str>>, limit: usize) -> BoxFuture<'_, Result<Vec<Parked>, StageError>>;

    /// Messages parked before `cutoff`, the oldest in front, at most `limit`.
    fn parked_before(
        &self,
        cutoff: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Parked>, StageError>>;

    /// Takes these messages out. An id that is not parked is ignored.
    fn remove(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<(), StageError>>;

    /// How many messages are parked.
    fn count(&self) -> BoxFuture<'_, Result<u64, StageError>>;
}

//! The terminal handlers of a service: one message at a time, or a batch.

use crate::{Message, StageError, Token};
use std::future::Future;

/// Handles one message.
///
/// # Contract
/// - `Ok` means the effect is durable; the service acknowledges.
/// - It must be safe to call again for the same message: the service retries transient errors, and a message whose
///   acknowledgement was lost comes again.
/// - Dropping the future abandons the call; the message is then given back.
pub trait StreamProcessor<T>: Send + Sync {
    /// Handles `message`, for which the transformer made `value`.
    fn process(&self, message: &Message, value: T) -> impl Future<Output = Result<(), StageError>> + Send;
}

/// A message in a batch with the value its transformer made.
#[derive(Clone, Debug)]
pub struct Item<T> {
    /// The message.
    pub message: Message,
    /// The transformer's value.
    pub value: T,
    pub(crate) token: Token,
    /// Which of the service's origins is told the verdict.
    pub(crate) origin: usize,
}

impl<T> Item<T> {
    /// An item outside a service, for tests of processors.
    pub fn detached(message: Message, value: T) -> Self {
        Self { message, value, token: Token(u64::MAX), origin: 0 }
    }
}

/// What became of a batch.
#[derive(Debug)]
pub enum BatchOutcome {
    /// Every item is done.
    Done,
    /// The call as a whole failed and *no* item is done. Says nothing about any single item, so a transient or
    /// configuration error here never counts against the items: the service waits and tries the batch again.
    Failed(StageError),
    /// One result per item, in order. Items without a result are undecided and delivered again.
    Each(Vec<Result<(), StageError>>),
}

/// Handles a batch and answers for every item in it.
///
/// # Contract
/// As for [`StreamProcessor`], item by item. An item is done only when its own effect is durable, whatever became
/// of the others.
pub trait BatchProcessor<T>: Send + Sync {
    /// Handles `batch`, which is not empty.
    fn process(&self, batch: &[Item<T>]) -> impl Future<Output = BatchOutcome> + Send;
}

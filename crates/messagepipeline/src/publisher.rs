//! Handing messages to a topic.

use crate::{BatchOutcome, BatchProcessor, Item, Message, StageError};
use futures_util::future::BoxFuture;
use std::sync::Arc;

/// Writes messages to one topic.
///
/// # Contract
/// - The answer comes when the topic holds the messages durably. It has one meaning per form of
///   [`BatchOutcome`], as for a batch processor.
/// - Publishing an id that the topic already holds, with the same payload, is done and changes nothing. With
///   another payload it fails with a permanent error of reason [`ID_CONFLICT`].
/// - Messages of one call keep their order in the topic.
/// - Dropping the future leaves it open whether the messages were written.
pub trait Publisher: Send + Sync {
    /// Publishes `messages` (cloning a message copies no payload) and answers for each of them.
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome>;
}

/// The reason word of an id that already stands for other bytes.
pub const ID_CONFLICT: &str = "id-conflict";

/// The batch processor that publishes each item's value to one topic.
#[derive(Clone)]
pub struct PublishProcessor(Arc<dyn Publisher>);

impl PublishProcessor {
    /// Publishes through `publisher`.
    #[must_use]
    pub fn new(publisher: Arc<dyn Publisher>) -> Self {
        Self(publisher)
    }
}

impl std::fmt::Debug for PublishProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PublishProcessor")
    }
}

impl BatchProcessor<Message> for PublishProcessor {
    async fn process(&self, batch: &[Item<Message>]) -> BatchOutcome {
        self.0.publish(batch.iter().map(|item| item.value.clone()).collect()).await
    }
}

/// Answers of a publisher that can be told apart by a caller who wants a plain result for everything.
///
/// # Errors
/// The first error in the outcome.
pub fn all_done(outcome: BatchOutcome) -> Result<(), StageError> {
    match outcome {
        BatchOutcome::Done => Ok(()),
        BatchOutcome::Failed(error) => Err(error),
        BatchOutcome::Each(results) => results.into_iter().collect(),
    }
}

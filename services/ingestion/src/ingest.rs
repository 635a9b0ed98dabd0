//! Ingestion without a consumer: for messages that a person brings back.

use futures_util::FutureExt;
use messagepipeline::{
    BatchOutcome, BatchProcessor, Delivery, Item, Message, Outcome, PayloadSize, StageError, Token,
    Transformer,
};
use mqttconverter::routing::{IngestTransformer, Routed, RoutedPublisher};
use std::borrow::Cow;
use std::panic::AssertUnwindSafe;

/// The service's rules and publishers. Messages that go through it are treated like those of its consumer, but for
/// the settlement, which is the caller's.
#[derive(Clone, Debug)]
pub struct Ingest {
    pub(crate) transformer: PayloadSize<IngestTransformer>,
    pub(crate) publisher: RoutedPublisher,
}

/// What became of a message.
#[derive(Debug)]
pub enum Ingested {
    /// Its topic holds it, now or since earlier.
    Published,
    /// A rule ended it; its word.
    Skipped(Cow<'static, str>),
    /// It was not taken.
    Failed(StageError),
}

impl Ingest {
    /// Routes and publishes `messages`, all in one call of the bus. One answer each, in their order. Publishing is
    /// idempotent by id, so it does no harm to call it again.
    pub async fn pass(&self, messages: Vec<Message>) -> Vec<Ingested> {
        let mut answers = Vec::with_capacity(messages.len());
        let (mut routed, mut places) = (Vec::new(), Vec::new());
        for message in messages {
            match self.route(&message).await {
                Ok(value) => {
                    places.push(answers.len());
                    routed.push(Item::detached(message, value));
                    answers.push(Ingested::Published);
                }
                Err(answer) => answers.push(answer),
            }
        }
        let mut results = self.publish(&routed).await.into_iter();
        for place in places {
            match results.next() {
                Some(Ok(())) => {}
                Some(Err(error)) => answers[place] = Ingested::Failed(error),
                None => answers[place] = Ingested::Failed(no_answer()),
            }
        }
        answers
    }

    /// One message by itself, so that a panic is its own.
    async fn route(&self, message: &Message) -> Result<Routed, Ingested> {
        let delivery = [Delivery { message: message.clone(), token: Token(u64::MAX) }];
        let mut outcomes = Vec::with_capacity(1);
        let call = async { self.transformer.transform(&delivery, &mut outcomes).await };
        if AssertUnwindSafe(call).catch_unwind().await.is_err() {
            let error = StageError::permanent("panic", "the transformer panicked on this message");
            return Err(Ingested::Failed(error));
        }
        match outcomes.pop() {
            Some(Outcome::Emit(routed)) => Ok(routed),
            Some(Outcome::Skip(rule)) => Err(Ingested::Skipped(rule)),
            Some(Outcome::Fail(error)) => Err(Ingested::Failed(error)),
            Some(Outcome::Held) | None => Err(Ingested::Failed(no_answer())),
        }
    }

    async fn publish(&self, routed: &[Item<Routed>]) -> Vec<Result<(), StageError>> {
        if routed.is_empty() {
            return Vec::new();
        }
        match self.publisher.process(routed).await {
            BatchOutcome::Done => routed.iter().map(|_| Ok(())).collect(),
            BatchOutcome::Each(results) => results,
            BatchOutcome::Failed(error) => {
                let copy = || StageError::new(error.class(), error.reason().to_owned(), error.detail());
                routed.iter().map(|_| Err(copy())).collect()
            }
        }
    }
}

fn no_answer() -> StageError {
    StageError::transient("no-answer", "no result came for this message")
}

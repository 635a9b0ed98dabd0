//! What becomes of a message in the streaming service when its first call did not succeed.

use crate::retry::{Judgement, judge};
use crate::stage::{Fate, Stage};
use crate::transform::{no_answer, panicked};
use crate::{Delivery, ErrorClass, Outcome, StageError, StreamProcessor, Transformer};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::panic::AssertUnwindSafe;

/// Brings single messages to their end.
pub(crate) struct Attendant<'a, X, P> {
    pub(crate) stage: &'a Stage,
    pub(crate) transformer: &'a X,
    pub(crate) processor: &'a P,
}

/// What the processor answered; the outer error is its panic.
type CallAnswer = std::thread::Result<Result<(), StageError>>;

/// One try of a message.
enum Try {
    Ended(Fate),
    Failed(StageError),
    /// It is this message that cannot be handled, though perhaps not for ever.
    Fault(StageError),
}

impl<X, P> Attendant<'_, X, P>
where
    X: Transformer,
    P: StreamProcessor<X::Output>,
{
    /// Brings a message to its end whose first call did not succeed.
    pub(crate) fn follow<'b>(&'b self, delivery: &'b Delivery, answer: CallAnswer) -> BoxFuture<'b, Fate> {
        let first = self.judge_call(answer);
        self.recover(delivery, first).boxed()
    }

    fn judge_call(&self, answer: CallAnswer) -> Try {
        match answer {
            Ok(Ok(())) => Try::Ended(Fate::Done),
            Ok(Err(error)) => Try::Failed(error),
            Err(_) => {
                self.stage.metrics.panics.increment(1);
                Try::Fault(panicked("processor"))
            }
        }
    }

    /// Tries again until the message has its fate.
    async fn recover(&self, delivery: &Delivery, mut last: Try) -> Fate {
        let stage = self.stage;
        let mut backoff = stage.backoff();
        let successes = stage.successes();
        loop {
            let error = match last {
                Try::Ended(fate) => return fate,
                Try::Fault(error) => return self.give_up(delivery, error).await,
                Try::Failed(error) => error,
            };
            let judgement = judge(stage.retry(), backoff.tries(), stage.successes() != successes);
            match (error.class(), judgement) {
                (ErrorClass::Permanent, _) => return self.give_up(delivery, error).await,
                (ErrorClass::Configuration, _) | (_, Judgement::Outage | Judgement::GiveBack) => {
                    stage.outage(&error);
                }
                (ErrorClass::Transient, Judgement::Blame) => return self.give_up(delivery, error).await,
                (ErrorClass::Transient, Judgement::TryAgain) => {}
            }
            if !stage.pause(&mut backoff).await {
                return Fate::Returned;
            }
            last = self.try_again(delivery).await;
        }
    }

    /// The value went with the first call, so the transformer makes it again.
    async fn try_again(&self, delivery: &Delivery) -> Try {
        let mut outcomes = Vec::with_capacity(1);
        let call = async { self.transformer.transform(std::slice::from_ref(delivery), &mut outcomes).await };
        if AssertUnwindSafe(call).catch_unwind().await.is_err() {
            self.stage.metrics.panics.increment(1);
            return Try::Fault(panicked("transformer"));
        }
        match outcomes.pop() {
            Some(Outcome::Emit(value)) => {
                // A panic may also come before the first poll.
                let call = async { self.processor.process(&delivery.message, value).await };
                self.judge_call(AssertUnwindSafe(call).catch_unwind().await)
            }
            Some(Outcome::Skip(rule)) => {
                Try::Ended(self.stage.record_skips(vec![(&delivery.message, rule)]).await)
            }
            Some(Outcome::Held) => Try::Ended(Fate::Held),
            Some(Outcome::Fail(error)) => Try::Failed(error),
            None => Try::Fault(no_answer()),
        }
    }

    /// Ends a message that is at fault: in the dead letters, if the error is permanent or its deliveries are used up,
    /// else back at the source, counted.
    async fn give_up(&self, delivery: &Delivery, error: StageError) -> Fate {
        let message = &delivery.message;
        if error.class() != ErrorClass::Permanent && !self.stage.is_exhausted(message) {
            return Fate::Nacked;
        }
        self.stage.bury(vec![(message, error)]).await
    }
}

//! Wrappers that make what they wrap fail, hang, answer late or panic, as a script or a seed says.

use futures_util::future::BoxFuture;
use messagepipeline::{
    BatchOutcome, BatchProcessor, DeadLetter, DeadLetters, ErrorClass, Item, Message, Publisher, Skipped,
    StageError, StreamProcessor,
};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// What goes wrong in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call fails and has no effect.
    FailBefore(ErrorClass),
    /// The call has its effect and fails all the same, as when an answer is lost.
    FailAfter(ErrorClass),
    /// The call works after this time.
    Late(Duration),
    /// The call is never answered and has no effect.
    Never,
    /// The call panics before it is first polled and has no effect.
    Panic,
}

/// When which fault strikes. Cloning shares the plan.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Mutex<Plan>>);

#[derive(Debug)]
enum Plan {
    Script(VecDeque<Option<Fault>>),
    Chance { random: u64, one_in: u64, faults: Vec<Fault> },
}

impl Faults {
    /// The given fault, or none, call by call; afterwards none.
    #[must_use]
    pub fn script(calls: impl IntoIterator<Item = Option<Fault>>) -> Self {
        Self(Arc::new(Mutex::new(Plan::Script(calls.into_iter().collect()))))
    }

    /// One of `faults` about once in `one_in` calls, the same for the same seed.
    #[must_use]
    pub fn seeded(seed: u64, one_in: u64, faults: impl IntoIterator<Item = Fault>) -> Self {
        let faults = faults.into_iter().collect();
        Self(Arc::new(Mutex::new(Plan::Chance { random: seed | 1, one_in: one_in.max(1), faults })))
    }

    fn draw(&self) -> Option<Fault> {
        match &mut *self.0.lock() {
            Plan::Script(calls) => calls.pop_front().flatten(),
            Plan::Chance { random, one_in, faults } => {
                let strikes = xorshift(random).is_multiple_of(*one_in);
                let which = xorshift(random) % (faults.len() as u64).max(1);
                if strikes { faults.get(usize::try_from(which).unwrap_or(0)).copied() } else { None }
            }
        }
    }
}

/// Marsaglia's xorshift64*; never leaves a state other than zero.
fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
}

/// `P` with faults: a publisher, a processor of either kind or a dead-letter store.
#[derive(Clone, Debug)]
pub struct Faulty<P> {
    inner: P,
    faults: Faults,
}

impl<P> Faulty<P> {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: P, faults: Faults) -> Self {
        Self { inner, faults }
    }
}

fn error(class: ErrorClass) -> StageError {
    StageError::new(class, "fault", "made to fail by the test")
}

/// Makes `call` under `fault`; `failed` is its answer when it fails.
async fn under<A>(
    fault: Option<Fault>,
    call: impl Future<Output = A>,
    failed: impl Fn(StageError) -> A,
) -> A {
    match fault {
        None | Some(Fault::Panic) => call.await,
        Some(Fault::FailBefore(class)) => failed(error(class)),
        Some(Fault::FailAfter(class)) => {
            call.await;
            failed(error(class))
        }
        Some(Fault::Late(by)) => {
            tokio::time::sleep(by).await;
            call.await
        }
        Some(Fault::Never) => std::future::pending().await,
    }
}

impl<P> Faulty<P> {
    fn draw(&self) -> Option<Fault> {
        let fault = self.faults.draw();
        assert!(fault != Some(Fault::Panic), "made to panic by the test");
        fault
    }
}

impl<P: Publisher> Publisher for Faulty<P> {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        let fault = self.draw();
        Box::pin(under(fault, self.inner.publish(messages), BatchOutcome::Failed))
    }
}

impl<T: Sync, P: BatchProcessor<T>> BatchProcessor<T> for Faulty<P> {
    fn process(&self, batch: &[Item<T>]) -> impl Future<Output = BatchOutcome> + Send {
        let fault = self.draw();
        under(fault, self.inner.process(batch), BatchOutcome::Failed)
    }
}

impl<T: Send, P: StreamProcessor<T>> StreamProcessor<T> for Faulty<P> {
    fn process(&self, message: &Message, value: T) -> impl Future<Output = Result<(), StageError>> + Send {
        let fault = self.draw();
        under(fault, self.inner.process(message, value), Err)
    }
}

impl<P: DeadLetters> DeadLetters for Faulty<P> {
    fn put(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, Result<(), StageError>> {
        let fault = self.draw();
        Box::pin(under(fault, self.inner.put(letters), Err))
    }

    fn record_skips(&self, skips: Vec<Skipped>) -> BoxFuture<'_, Result<(), StageError>> {
        let fault = self.draw();
        Box::pin(under(fault, self.inner.record_skips(skips), Err))
    }
}

//! Message in, typed value out.

use crate::{Delivery, Message, StageError};
use std::borrow::Cow;
use std::future::Future;

/// What a transformer makes of one message.
#[derive(Debug)]
pub enum Outcome<T> {
    /// The value goes on to the processor.
    Emit(T),
    /// A rule says that this message ends here. It is recorded with the rule's word (kebab case) and acknowledged.
    Skip(Cow<'static, str>),
    /// Somebody else holds the message durably and will bring it back (a parked message). It is acknowledged and
    /// not recorded as finished.
    Held,
    /// It failed. A permanent error sends it to the dead letters; a transient one is retried.
    Fail(StageError),
}

/// Turns messages into values, a chunk at a time, so that what can be shared by a chunk (a batched look-up) is.
///
/// # Contract
/// - `outcomes` is empty when `transform` is called. It must hold one outcome per delivery, in the same order, when
///   the future is ready. Deliveries without an outcome count as failed and are delivered again.
/// - It must be safe to call again for the same messages: the service does so after a transient error, and, with
///   parts of the chunk, after a panic, to find the message at fault.
/// - Dropping the future abandons the call; the messages are then given back.
pub trait Transformer: Send + Sync {
    /// What a message becomes.
    type Output: Send;

    /// Pushes one outcome per delivery onto `outcomes`.
    fn transform<'a>(
        &'a self,
        deliveries: &'a [Delivery],
        outcomes: &'a mut Vec<Outcome<Self::Output>>,
    ) -> impl Future<Output = ()> + Send + 'a;
}

/// A transformer from a closure over one message.
///
/// ```
/// use messagepipeline::{Message, Outcome, transform_fn};
/// let lengths = transform_fn(|message: &Message| Outcome::Emit(message.payload.len()));
/// # let _ = lengths;
/// ```
pub fn transform_fn<T, F>(closure: F) -> TransformFn<F>
where
    T: Send,
    F: Fn(&Message) -> Outcome<T> + Send + Sync,
{
    TransformFn(closure)
}

/// See [`transform_fn`].
#[derive(Debug, Clone, Copy)]
pub struct TransformFn<F>(F);

impl<T, F> Transformer for TransformFn<F>
where
    T: Send,
    F: Fn(&Message) -> Outcome<T> + Send + Sync,
{
    type Output = T;

    async fn transform<'a>(&'a self, deliveries: &'a [Delivery], outcomes: &'a mut Vec<Outcome<T>>) {
        outcomes.extend(deliveries.iter().map(|delivery| (self.0)(&delivery.message)));
    }
}

/// Skips messages whose payload is shorter than `min` or longer than `max` bytes, with the word `payload-size`; the
/// others go to `inner`.
#[derive(Debug, Clone)]
pub struct PayloadSize<X> {
    inner: X,
    min: usize,
    max: usize,
}

impl<X> PayloadSize<X> {
    /// Lets payloads of `min` to `max` bytes through, both included.
    pub fn new(inner: X, min: usize, max: usize) -> Self {
        Self { inner, min, max }
    }

    fn admits(&self, message: &Message) -> bool {
        (self.min..=self.max).contains(&message.payload.len())
    }
}

impl<X: Transformer> Transformer for PayloadSize<X> {
    type Output = X::Output;

    async fn transform<'a>(&'a self, deliveries: &'a [Delivery], outcomes: &'a mut Vec<Outcome<X::Output>>) {
        if deliveries.iter().all(|d| self.admits(&d.message)) {
            return self.inner.transform(deliveries, outcomes).await;
        }
        let admitted: Vec<_> = deliveries.iter().filter(|d| self.admits(&d.message)).cloned().collect();
        let mut inner_outcomes = Vec::with_capacity(admitted.len());
        if !admitted.is_empty() {
            self.inner.transform(&admitted, &mut inner_outcomes).await;
        }
        let mut inner_outcomes = inner_outcomes.into_iter();
        for delivery in deliveries {
            if !self.admits(&delivery.message) {
                outcomes.push(Outcome::Skip("payload-size".into()));
            } else if let Some(outcome) = inner_outcomes.next() {
                outcomes.push(outcome);
            } else {
                return;
            }
        }
    }
}

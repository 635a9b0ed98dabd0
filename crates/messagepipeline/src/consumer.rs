//! Where a service gets its messages from.

use crate::{Chunk, StageError};
use futures_util::future::BoxFuture;
use std::future::Future;

/// A source of messages that are settled one by one.
///
/// # Contract
/// - The service calls [`open`](Consumer::open) once, then [`next`](Consumer::next) repeatedly, then
///   [`close`](Consumer::close) once.
/// - `next` is cancel-safe: dropping its future before it is ready loses nothing.
/// - `next` answers `Ok(None)` when nothing will ever come again; a bounded source does that at its end.
/// - `next` answers `Err` when receiving fails. A transient or configuration error means "call again": the
///   service reports itself not ready, waits and calls again. After a permanent error it stops.
/// - The consumer bounds what it hands out: the distance, in messages and in bytes, between the newest message
///   handed out and the oldest one without a verdict. At the bound `next` waits for verdicts.
/// - After `close` has returned `Ok`, every verdict given before has reached the source. Messages without a verdict
///   at that time are given back. `close` itself has no deadline; the caller puts one around it.
/// - A consumer that is dropped without `close` gives back all that has no verdict, as far as the source can know.
pub trait Consumer: Send {
    /// Makes the source ready: connects, binds, subscribes. A source that may come up later (a broker that is not
    /// there yet) is not an error here; wrong settings and missing permissions are.
    ///
    /// # Errors
    /// When the source cannot be used as configured.
    fn open(&mut self) -> impl Future<Output = Result<(), StageError>> + Send {
        async { Ok(()) }
    }

    /// The next messages: at least one, as many as are there up to a bound of the consumer's own.
    ///
    /// # Errors
    /// When receiving fails; see the contract.
    fn next(&mut self) -> impl Future<Output = Result<Option<Chunk>, StageError>> + Send;

    /// Takes nothing more, delivers the verdicts given so far and lets go of the source.
    ///
    /// # Errors
    /// When verdicts could not be delivered; those messages come again.
    fn close(&mut self) -> impl Future<Output = Result<(), StageError>> + Send {
        async { Ok(()) }
    }
}

/// The erased twin of [`Consumer`], for consumers chosen by configuration.
pub struct BoxConsumer(Box<dyn ErasedConsumer>);

impl BoxConsumer {
    /// Erases the type of `consumer`.
    pub fn new(consumer: impl Consumer + 'static) -> Self {
        Self(Box::new(consumer))
    }
}

impl std::fmt::Debug for BoxConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BoxConsumer")
    }
}

impl Consumer for BoxConsumer {
    fn open(&mut self) -> impl Future<Output = Result<(), StageError>> + Send {
        self.0.open_boxed()
    }

    fn next(&mut self) -> impl Future<Output = Result<Option<Chunk>, StageError>> + Send {
        self.0.next_boxed()
    }

    fn close(&mut self) -> impl Future<Output = Result<(), StageError>> + Send {
        self.0.close_boxed()
    }
}

trait ErasedConsumer: Send {
    fn open_boxed(&mut self) -> BoxFuture<'_, Result<(), StageError>>;
    fn next_boxed(&mut self) -> BoxFuture<'_, Result<Option<Chunk>, StageError>>;
    fn close_boxed(&mut self) -> BoxFuture<'_, Result<(), StageError>>;
}

impl<C: Consumer> ErasedConsumer for C {
    fn open_boxed(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(self.open())
    }

    fn next_boxed(&mut self) -> BoxFuture<'_, Result<Option<Chunk>, StageError>> {
        Box::pin(self.next())
    }

    fn close_boxed(&mut self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(self.close())
    }
}

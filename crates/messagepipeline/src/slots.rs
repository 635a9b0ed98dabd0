//! Messages in flight within one task: each is begun at once and costs nothing more if it does not wait.

use crate::stage::Fate;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Where the future of a call stands while it runs. It is used again, so a call that is ready at once costs no
/// allocation.
type Place<F> = Pin<Box<Option<F>>>;

/// How a call ended; the error is its panic.
pub(crate) type Answer<F> = std::thread::Result<<F as Future>::Output>;

/// Messages in flight. All are polled on each wake, which is right for a few dozen.
pub(crate) struct Slots<'a, F: Future> {
    busy: Vec<(usize, Waiting<'a, F>)>,
    free: Vec<Place<F>>,
    /// The free place that is used next, at hand without a look at the list.
    next: Place<F>,
}

/// What a message in flight waits for.
enum Waiting<'a, F> {
    Call(Place<F>),
    /// All that comes after a failed call.
    Recovery(BoxFuture<'a, Fate>),
}

/// What a message in flight has come to.
pub(crate) enum Event<F: Future> {
    Answered(Answer<F>),
    Ended(Fate),
}

impl<'a, F: Future> Slots<'a, F> {
    pub(crate) fn new() -> Self {
        Self { busy: Vec::new(), free: Vec::new(), next: Box::pin(None) }
    }

    pub(crate) fn len(&self) -> usize {
        self.busy.len()
    }

    /// Begins `call` for the message `index`; answers with its output if it is ready at once. A panic goes on to the
    /// caller, who then calls [`Slots::abandon`].
    #[inline]
    pub(crate) fn begin(&mut self, index: usize, call: F, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.next.set(Some(call));
        let Some(call) = self.next.as_mut().as_pin_mut() else { return Poll::Pending };
        let answer = call.poll(cx);
        if answer.is_ready() {
            self.next.set(None);
        } else {
            self.keep(index);
        }
        answer
    }

    fn keep(&mut self, index: usize) {
        let fresh = self.free.pop().unwrap_or_else(|| Box::pin(None));
        self.busy.push((index, Waiting::Call(std::mem::replace(&mut self.next, fresh))));
    }

    /// Lets go of the call that panicked when it was begun.
    pub(crate) fn abandon(&mut self) {
        self.next.set(None);
    }

    /// Begins `recovery`, which brings the message `index` to its end; answers with that if it is ready at once.
    pub(crate) fn recover(
        &mut self,
        index: usize,
        mut recovery: BoxFuture<'a, Fate>,
        cx: &mut Context<'_>,
    ) -> Poll<Fate> {
        let fate = recovery.poll_unpin(cx);
        if fate.is_pending() {
            self.busy.push((index, Waiting::Recovery(recovery)));
        }
        fate
    }

    /// Polls all that wait; `done` is told of those that are ready, and may begin a recovery instead of ending one.
    pub(crate) fn poll_all(
        &mut self,
        cx: &mut Context<'_>,
        mut done: impl FnMut(usize, Event<F>) -> Option<BoxFuture<'a, Fate>>,
    ) {
        let mut at = 0;
        while at < self.busy.len() {
            let (index, waiting) = &mut self.busy[at];
            let Poll::Ready(event) = waiting.poll(cx) else {
                at += 1;
                continue;
            };
            let index = *index;
            match self.busy.swap_remove(at) {
                (_, Waiting::Call(place)) => self.free.push(place),
                (_, Waiting::Recovery(_)) => {}
            }
            if let Some(recovery) = done(index, event) {
                // Stands at the end now, so it is polled below.
                self.busy.push((index, Waiting::Recovery(recovery)));
            }
        }
    }
}

impl<F: Future> Waiting<'_, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event<F>> {
        match self {
            Waiting::Call(place) => {
                let Some(call) = place.as_mut().as_pin_mut() else { return Poll::Pending };
                let answer = match catch_unwind(AssertUnwindSafe(|| call.poll(cx))) {
                    Ok(Poll::Pending) => return Poll::Pending,
                    Ok(Poll::Ready(output)) => Ok(output),
                    Err(panic) => Err(panic),
                };
                place.set(None);
                Poll::Ready(Event::Answered(answer))
            }
            Waiting::Recovery(recovery) => recovery.poll_unpin(cx).map(Event::Ended),
        }
    }
}

/// A task's share of the service's workers: one permit per message in flight.
pub(crate) struct Share {
    workers: Arc<Semaphore>,
    held: OwnedSemaphorePermit,
    waiting: Option<Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>>,
}

impl Share {
    pub(crate) fn new(workers: Arc<Semaphore>, first: OwnedSemaphorePermit) -> Self {
        Self { workers, held: first, waiting: None }
    }

    /// A share of one worker, as soon as one is free.
    pub(crate) async fn wait(workers: Arc<Semaphore>) -> Option<Self> {
        let first = Arc::clone(&workers).acquire_owned().await.ok()?;
        Some(Self::new(workers, first))
    }

    /// The service's workers.
    pub(crate) fn workers(&self) -> Arc<Semaphore> {
        Arc::clone(&self.workers)
    }

    /// How many messages may be in flight.
    pub(crate) fn size(&self) -> usize {
        self.held.num_permits()
    }

    /// Asks for one more worker.
    pub(crate) fn poll_grow(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let workers = &self.workers;
        let waiting = self.waiting.get_or_insert_with(|| {
            let workers = Arc::clone(workers);
            Box::pin(async move { workers.acquire_owned().await.ok() })
        });
        match waiting.as_mut().poll(cx) {
            Poll::Ready(permit) => {
                self.waiting = None;
                permit.into_iter().for_each(|permit| self.held.merge(permit));
                Poll::Ready(())
            }
            Poll::Pending => Poll::Pending,
        }
    }

    /// Lets go of all workers but `needed`, and of a place in the queue for another one.
    pub(crate) fn shrink_to(&mut self, needed: usize) {
        self.waiting = None;
        let surplus = self.size().saturating_sub(needed);
        drop(self.held.split(surplus));
    }
}

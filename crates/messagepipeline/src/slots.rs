//! Messages in flight within one task: each is begun at once and costs nothing more if it does not wait.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Futures in flight. A place is a heap cell that is used again, so a future that is ready at once costs no
/// allocation. All places are polled on each wake, which is right for a few dozen.
pub(crate) struct Slots<F: Future> {
    busy: Vec<(usize, Pin<Box<Option<F>>>)>,
    free: Vec<Pin<Box<Option<F>>>>,
    /// The free place that is used next, at hand without a look at the list.
    next: Pin<Box<Option<F>>>,
}

impl<F: Future> Slots<F> {
    pub(crate) fn new() -> Self {
        Self { busy: Vec::new(), free: Vec::new(), next: Box::pin(None) }
    }

    pub(crate) fn len(&self) -> usize {
        self.busy.len()
    }

    /// Begins `future` under the name `index`; answers with its output if it is ready at once.
    #[inline]
    pub(crate) fn begin(&mut self, index: usize, future: F, cx: &mut Context<'_>) -> Option<F::Output> {
        self.next.set(Some(future));
        match poll_place(&mut self.next, cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => {
                let fresh = self.free.pop().unwrap_or_else(|| Box::pin(None));
                self.busy.push((index, std::mem::replace(&mut self.next, fresh)));
                None
            }
        }
    }

    /// Polls all that wait; hands the outputs of those that are ready to `done`.
    pub(crate) fn poll_all(&mut self, cx: &mut Context<'_>, mut done: impl FnMut(usize, F::Output)) {
        let mut at = 0;
        while at < self.busy.len() {
            let (index, place) = &mut self.busy[at];
            match poll_place(place, cx) {
                Poll::Ready(output) => {
                    done(*index, output);
                    let (_, place) = self.busy.swap_remove(at);
                    self.free.push(place);
                }
                Poll::Pending => at += 1,
            }
        }
    }
}

#[inline]
fn poll_place<F: Future>(place: &mut Pin<Box<Option<F>>>, cx: &mut Context<'_>) -> Poll<F::Output> {
    let Some(future) = place.as_mut().as_pin_mut() else { return Poll::Pending };
    let output = future.poll(cx);
    if output.is_ready() {
        place.set(None);
    }
    output
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

//! Messages one at a time: consumer → transformer → processor → settle.
//!
//! ```text
//!             chunk + one worker            message by message
//!  receiver ─────────────────────► task ──────────────────────────► verdicts, reported in bulk
//!     ▲                             │ waits: takes another worker and goes on with the next message
//!     └── waits for a free worker ◄─┘
//! ```
//!
//! A chunk is a task. It lends each message to the processor and polls the call once; a call that is ready costs
//! neither a task nor an allocation nor a lock. A call that waits stays in a slot and keeps its worker, and the task
//! needs another worker to go on. So at most `workers` messages are in flight, over all chunks, and one that is
//! blocked never blocks the others.

use crate::batching::HARD_STOP;
use crate::owed::Owed;
use crate::receive::{Received, Receiver};
use crate::single::Attendant;
use crate::slots::{Event, Share, Slots};
use crate::stage::{Fate, Stage};
use crate::transform::{Pass, follow_up, transform};
use crate::{
    Consumer, Delivery, Running, ServiceError, ServiceOptions, Shutdown, StageError, StreamProcessor,
    Summary, Transformer,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Takes messages from a consumer, makes a value of each and gives them to a processor one by one.
#[derive(Debug)]
pub struct StreamingService<C, X, P> {
    options: ServiceOptions,
    consumer: C,
    transformer: X,
    processor: P,
}

impl<C, X, P> StreamingService<C, X, P>
where
    C: Consumer + 'static,
    X: Transformer<Output: 'static> + 'static,
    P: StreamProcessor<X::Output> + 'static,
{
    /// A service of these parts.
    #[must_use]
    pub fn new(options: ServiceOptions, consumer: C, transformer: X, processor: P) -> Self {
        Self { options, consumer, transformer, processor }
    }

    /// Opens the consumer and begins.
    ///
    /// # Errors
    /// [`ServiceError::Start`] when the consumer cannot be opened.
    pub async fn start(self) -> Result<Running, ServiceError> {
        self.start_under(Shutdown::new()).await
    }

    /// Works until `shutdown` or until the source ends.
    ///
    /// # Errors
    /// As [`StreamingService::start`] and [`Running::wait`].
    pub async fn run(self, shutdown: Shutdown) -> Result<Summary, ServiceError> {
        self.start_under(shutdown.child()).await?.wait().await
    }

    async fn start_under(mut self, shutdown: Shutdown) -> Result<Running, ServiceError> {
        let stage = Stage::new(self.options, shutdown);
        self.consumer.open().await.map_err(ServiceError::Start)?;
        let worker = Worker {
            receiver: Receiver::new(&stage, self.consumer),
            parts: Arc::new(Parts { transformer: self.transformer, processor: self.processor }),
            workers: Arc::new(Semaphore::new(stage.workers())),
            tasks: JoinSet::new(),
            stage: Arc::clone(&stage),
        };
        Ok(Running::spawn(stage, worker.run()))
    }
}

/// What the user gave.
struct Parts<X, P> {
    transformer: X,
    processor: P,
}

/// The task that receives.
struct Worker<C, X, P> {
    receiver: Receiver<C>,
    parts: Arc<Parts<X, P>>,
    workers: Arc<Semaphore>,
    tasks: JoinSet<()>,
    stage: Arc<Stage>,
}

impl<C, X, P> Worker<C, X, P>
where
    C: Consumer,
    X: Transformer<Output: 'static> + 'static,
    P: StreamProcessor<X::Output> + 'static,
{
    async fn run(mut self) -> Result<(), ServiceError> {
        let shutdown = self.stage.shutdown().clone();
        let ended = tokio::select! {
            biased;
            () = shutdown.aborted() => None,
            ended = self.serve() => Some(ended),
        };
        if ended.is_none() && tokio::time::timeout(HARD_STOP, self.tasks.shutdown()).await.is_err() {
            tracing::error!(stage = self.stage.name(), "a call does not let go of its thread; left behind");
        }
        self.stage.not_ready("stopped");
        ended.unwrap_or_else(|| Err(ServiceError::Timeout { summary: self.stage.summary() }))
    }

    async fn serve(&mut self) -> Result<(), ServiceError> {
        self.stage.ready();
        let received = self.receive().await;
        self.stage.not_ready("stopping");
        while let Some(ended) = self.tasks.join_next().await {
            report_lost(&self.stage, ended);
        }
        let closed = self.receiver.close().await;
        let summary = self.stage.summary();
        received.map_err(|error| ServiceError::Receive { error, summary })?;
        closed.map_err(|error| ServiceError::Close { error, summary })
    }

    /// Receives until the soft signal or the source's end.
    async fn receive(&mut self) -> Result<(), StageError> {
        loop {
            let received = tokio::select! {
                biased;
                () = self.stage.shutdown().begun() => return Ok(()),
                received = self.receiver.next() => received,
            };
            let owed = match received {
                Received::Chunk(chunk) => Owed::from_chunk(&self.stage, chunk),
                Received::Ended => return Ok(()),
                Received::Failed(error) => return Err(error),
            };
            while let Some(ended) = self.tasks.try_join_next() {
                report_lost(&self.stage, ended);
            }
            let workers = Arc::clone(&self.workers);
            let first = tokio::select! {
                biased;
                () = self.stage.shutdown().begun() => return Ok(()),
                first = workers.acquire_owned() => first,
            };
            if let Ok(first) = first {
                let share = Share::new(Arc::clone(&self.workers), first);
                self.tasks.spawn(run_chunk(Arc::clone(&self.parts), owed, share));
            }
        }
    }
}

fn report_lost(stage: &Stage, ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(stage = stage.name(), %error, "a task was lost; its messages are given back");
    }
}

/// One chunk from the transformer to its last verdict.
async fn run_chunk<X, P>(parts: Arc<Parts<X, P>>, owed: Owed<Delivery>, share: Share)
where
    X: Transformer<Output: 'static>,
    P: StreamProcessor<X::Output>,
{
    let begun = Instant::now();
    let stage = Arc::clone(owed.stage());
    let pass = transform(&parts.transformer, owed).await;
    match pass.rest {
        None => process(&parts, pass.emitted, pass.values, share).await,
        Some(_) => Box::pin(run_mixed(&parts, pass, share)).await,
    }
    stage.metrics.process_seconds.record(begun.elapsed());
}

/// A chunk of which some messages have no value yet: they are followed up beside the others.
async fn run_mixed<X, P>(parts: &Parts<X, P>, pass: Pass<X::Output>, share: Share)
where
    X: Transformer<Output: 'static>,
    P: StreamProcessor<X::Output>,
{
    let workers = share.workers();
    let mut work: FuturesUnordered<BoxFuture<'_, Option<Pass<X::Output>>>> = FuturesUnordered::new();
    let mut share = Some(share);
    let mut next = Some(pass);
    while let Some(pass) = next.take() {
        if let Some(rest) = pass.rest {
            work.push(follow_up(&parts.transformer, rest).boxed());
        }
        if !pass.emitted.is_empty() {
            let (workers, share) = (Arc::clone(&workers), share.take());
            let process = async move {
                let share = match share {
                    Some(share) => share,
                    None => Share::wait(workers).await?,
                };
                process(parts, pass.emitted, pass.values, share).await;
                None
            };
            work.push(process.boxed());
        }
        share = None;
        while next.is_none() {
            match work.next().await {
                Some(later) => next = later,
                None => return,
            }
        }
    }
}

/// Gives each message with its value to the processor and settles it.
async fn process<X, P>(
    parts: &Parts<X, P>,
    mut owed: Owed<Delivery>,
    values: Vec<X::Output>,
    mut share: Share,
) where
    X: Transformer<Output: 'static>,
    P: StreamProcessor<X::Output>,
{
    let stage = Arc::clone(owed.stage());
    let attendant = Attendant { stage: &stage, transformer: &parts.transformer, processor: &parts.processor };
    let Owed { entries, ledger } = &mut owed;
    let entries = &*entries;
    let mut slots = Slots::new();
    let mut waiting = values.into_iter().enumerate();
    std::future::poll_fn(|cx: &mut Context<'_>| {
        slots.poll_all(cx, |index, event| match event {
            Event::Answered(answer) if !matches!(answer, Ok(Ok(()))) => {
                Some(attendant.follow(&entries[index], answer))
            }
            event => {
                let fate = if let Event::Ended(fate) = event { fate } else { Fate::Done };
                ledger.note(index, entries[index].token, fate);
                None
            }
        });
        // What is not begun when the service stops is given back.
        let may_begin = !stage.shutdown().has_begun();
        while may_begin && waiting.len() > 0 {
            if slots.len() >= share.size() {
                ledger.report();
                if share.poll_grow(cx).is_pending() {
                    return Poll::Pending;
                }
            }
            // One guard for a run of calls, until one fails: that is a third cheaper than one for each.
            let mut at = 0;
            let run = catch_unwind(AssertUnwindSafe(|| {
                while slots.len() < share.size() {
                    let (index, value) = waiting.next()?;
                    at = index;
                    let call = parts.processor.process(&entries[index].message, value);
                    match slots.begin(index, call, cx) {
                        Poll::Ready(Ok(())) => ledger.note(index, entries[index].token, Fate::Done),
                        Poll::Ready(Err(error)) => return Some(error),
                        Poll::Pending => {}
                    }
                }
                None
            }));
            let answer = match run {
                Ok(None) => continue,
                Ok(Some(error)) => Ok(Err(error)),
                Err(panic) => {
                    slots.abandon();
                    Err(panic)
                }
            };
            let recovery = attendant.follow(&entries[at], answer);
            if let Poll::Ready(fate) = slots.recover(at, recovery, cx) {
                ledger.note(at, entries[at].token, fate);
            }
        }
        ledger.report();
        share.shrink_to(slots.len());
        if slots.len() == 0 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

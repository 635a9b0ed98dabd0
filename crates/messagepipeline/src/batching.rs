//! Messages in groups: consumer → transformer → batcher → processor → settle.
//!
//! ```text
//!             take_chunk()          launch()                batch::process()
//!  receiver ──────────────► groups ───────────► task ─────────────────────────► verdicts
//!     ▲         │ no value     │ full, due, over       │ failed: again, halved, dead letter
//!     │         ▼              │ budget, idle          │
//!     │      follow_up() ──────┘ later values          │
//!     └──────── pauses while the budget is used up ◄───┘
//! ```
//!
//! One task owns the groups and never waits for a call: the transformer's waiting, the processor's calls and all
//! repeated tries run in tasks of their own, at most `workers` calls at once. So a slow call of one key does not keep
//! another key's group from being flushed, and what arrives while all workers are busy makes the next groups larger.

use crate::batcher::{BatchLimits, Batcher, Flush, FlushReason};
use crate::grouping::{Emitted, Grouping, Keyed, Origins};
use crate::owed::{Entry, Owed};
use crate::receive::{Received, Receiver};
use crate::span::Span;
use crate::stage::{Fate, Stage};
use crate::transform::{Pass, follow_up, panicked, transform};
use crate::{
    BatchProcessor, Chunk, Consumer, FlushRequest, Item, Message, Running, ServiceError, ServiceOptions,
    Shutdown, StageError, Summary, Transformer, batch,
};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

/// How long a hard stop waits for tasks that do not let go of their thread.
pub(crate) const HARD_STOP: Duration = Duration::from_secs(1);

/// Takes messages from a consumer, makes a value of each and gives them to a processor in groups.
pub struct BatchingService<C, X: Transformer, P> {
    options: ServiceOptions,
    limits: BatchLimits,
    consumer: C,
    transformer: X,
    processor: P,
    groups: Box<dyn Grouping<X::Output>>,
}

impl<C, X, P> BatchingService<C, X, P>
where
    C: Consumer + 'static,
    X: Transformer<Output: Sync + 'static> + 'static,
    P: BatchProcessor<X::Output> + 'static,
{
    /// A service that groups all messages together.
    #[must_use]
    pub fn new(
        options: ServiceOptions,
        limits: BatchLimits,
        consumer: C,
        transformer: X,
        processor: P,
    ) -> Self {
        let groups = Box::new(Batcher::new(limits));
        Self { options, limits, consumer, transformer, processor, groups }
    }

    /// Groups messages by `key`; the limits hold for each group, the budget for all of them together.
    #[must_use]
    pub fn keyed<K, F>(mut self, key: F) -> Self
    where
        K: Hash + Eq + Send + 'static,
        F: Fn(&Item<X::Output>) -> K + Send + 'static,
    {
        self.groups = Box::new(Keyed::new(self.limits, key));
        self
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
    /// As [`BatchingService::start`] and [`Running::wait`].
    pub async fn run(self, shutdown: Shutdown) -> Result<Summary, ServiceError> {
        self.start_under(shutdown.child()).await?.wait().await
    }

    async fn start_under(mut self, shutdown: Shutdown) -> Result<Running, ServiceError> {
        let stage = Stage::new(self.options, shutdown);
        self.consumer.open().await.map_err(ServiceError::Start)?;
        let worker = Worker {
            receiver: Receiver::new(&stage, self.consumer),
            span: Span::new(stage.window()),
            transformer: Arc::new(self.transformer),
            processor: Arc::new(self.processor),
            stage: Arc::clone(&stage),
            lingers: !self.limits.age.is_zero(),
            budget: self.limits.budget.max(1),
            groups: self.groups,
            origins: Origins::default(),
            ready: VecDeque::new(),
            tasks: JoinSet::new(),
            under_way: UnderWay::default(),
        };
        Ok(Running::spawn(stage, worker.run()))
    }
}

impl<C, X: Transformer, P> std::fmt::Debug for BatchingService<C, X, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BatchingService")
            .field("options", &self.options)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// The task that owns the groups.
struct Worker<C, X: Transformer, P> {
    receiver: Receiver<C>,
    span: Span,
    transformer: Arc<X>,
    processor: Arc<P>,
    stage: Arc<Stage>,
    lingers: bool,
    budget: usize,
    groups: Box<dyn Grouping<X::Output>>,
    origins: Origins,
    /// Full groups that wait for a free worker.
    ready: VecDeque<Flush<Item<X::Output>>>,
    tasks: JoinSet<Option<Box<Pass<X::Output>>>>,
    under_way: UnderWay,
}

/// What a task does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Transform,
    FollowUp,
    Process,
}

/// The tasks at work and the bytes they hold.
#[derive(Default)]
struct UnderWay {
    tasks: HashMap<Id, (Work, usize)>,
    bytes: usize,
    transforming: usize,
    processing: usize,
}

impl UnderWay {
    fn counter(&mut self, work: Work) -> Option<&mut usize> {
        match work {
            Work::Transform => Some(&mut self.transforming),
            Work::Process => Some(&mut self.processing),
            Work::FollowUp => None,
        }
    }

    fn begin(&mut self, id: Id, work: Work, bytes: usize) {
        self.tasks.insert(id, (work, bytes));
        self.bytes += bytes;
        self.counter(work).into_iter().for_each(|counter| *counter += 1);
    }

    fn end(&mut self, id: Id) {
        if let Some((work, bytes)) = self.tasks.remove(&id) {
            self.bytes -= bytes;
            self.counter(work).into_iter().for_each(|counter| *counter -= 1);
        }
    }
}

/// What may be flushed beside full groups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Linger,
    Idle,
    Drain,
}

enum Step<T> {
    Stop,
    Again,
    Idle,
    Finished(Finished<T>),
    Received(Received),
}

type Finished<T> = Result<(Id, Option<Box<Pass<T>>>), JoinError>;

impl<C, X, P> Worker<C, X, P>
where
    C: Consumer,
    X: Transformer<Output: Sync + 'static> + 'static,
    P: BatchProcessor<X::Output> + 'static,
{
    async fn run(mut self) -> Result<(), ServiceError> {
        let shutdown = self.stage.shutdown().clone();
        let ended = tokio::select! {
            biased;
            () = shutdown.aborted() => None,
            ended = self.serve() => Some(ended),
        };
        if ended.is_none() {
            self.give_back().await;
        }
        self.stage.not_ready("stopped");
        ended.unwrap_or_else(|| Err(ServiceError::Timeout { summary: self.stage.summary() }))
    }

    async fn serve(&mut self) -> Result<(), ServiceError> {
        self.stage.ready();
        let received = self.receive().await;
        self.stage.not_ready("stopping");
        self.drain().await;
        let closed = self.receiver.close().await;
        let summary = self.stage.summary();
        received.map_err(|error| ServiceError::Receive { error, summary })?;
        closed.map_err(|error| ServiceError::Close { error, summary })
    }

    /// Receives and groups until the soft signal or the source's end.
    async fn receive(&mut self) -> Result<(), StageError> {
        loop {
            match self.step().await {
                Step::Stop | Step::Received(Received::Ended) => return Ok(()),
                Step::Received(Received::Failed(error)) => return Err(error),
                Step::Received(Received::Chunk(chunk)) => self.take_chunk(chunk).await,
                Step::Finished(finished) => self.take_result(finished),
                Step::Again => {}
                Step::Idle => self.launch(Mode::Idle),
            }
            self.launch(Mode::Linger);
        }
    }

    async fn step(&mut self) -> Step<X::Output> {
        let has_worker = self.under_way.processing < self.stage.workers();
        let deadline = self.groups.next_deadline().filter(|_| has_worker);
        let has_room = self.has_room();
        let may_flush_idle = !self.lingers && has_worker && self.groups.groups() > 0;
        tokio::select! {
            biased;
            () = self.stage.shutdown().begun() => Step::Stop,
            Some(finished) = self.tasks.join_next_with_id() => Step::Finished(finished),
            () = until(deadline) => Step::Again,
            received = self.receiver.next(), if has_room => Step::Received(received),
            () = FlushRequest::asked(self.stage.flush()), if has_worker => Step::Idle,
            () = std::future::ready(()), if may_flush_idle => Step::Idle,
        }
    }

    /// Whether one more chunk may be taken.
    fn has_room(&self) -> bool {
        self.ready.is_empty()
            && self.under_way.transforming < self.stage.workers()
            && self.groups.bytes() + self.under_way.bytes < self.budget
    }

    /// Most transformers are ready at once; one that waits does so in a task.
    async fn take_chunk(&mut self, chunk: Chunk) {
        let owed = Owed::from_chunk(&self.stage, chunk);
        let bytes = weight(&owed);
        self.span.take(Instant::now(), owed.len(), bytes);
        let transformer = Arc::clone(&self.transformer);
        let mut call = Box::pin(async move { transform(&*transformer, owed).await });
        match futures_util::poll!(call.as_mut()) {
            Poll::Ready(pass) => self.take_pass(pass),
            Poll::Pending => self.spawn(Work::Transform, bytes, async move { Some(Box::new(call.await)) }),
        }
    }

    fn take_pass(&mut self, pass: Pass<X::Output>) {
        if let Some(rest) = pass.rest {
            let transformer = Arc::clone(&self.transformer);
            let bytes = weight(&rest.owed);
            self.spawn(
                Work::FollowUp,
                bytes,
                async move { follow_up(&*transformer, rest).await.map(Box::new) },
            );
        }
        let (deliveries, origins) = pass.emitted.into_parts();
        let Some((settle, count)) = origins.into_iter().next() else { return };
        let emitted = Emitted { deliveries, values: pass.values, origin: self.origins.intern(settle, count) };
        let faulty = self.groups.add_all(emitted, Instant::now(), &mut self.ready);
        if !faulty.is_empty() {
            let errors = faulty.iter().map(|_| panicked("key function")).collect();
            let owed = self.origins.owed(&self.stage, faulty);
            self.stage.metrics.panics.increment(owed.len() as u64);
            self.spawn(Work::FollowUp, weight(&owed), async move {
                batch::give_up(owed, errors).await;
                None
            });
        }
    }

    fn take_result(&mut self, finished: Finished<X::Output>) {
        match finished {
            Ok((id, pass)) => {
                self.under_way.end(id);
                pass.into_iter().for_each(|pass| self.take_pass(*pass));
            }
            Err(error) => {
                self.under_way.end(error.id());
                tracing::error!(stage = self.stage.name(), %error, "a task was lost; its messages are given back");
            }
        }
    }

    /// Hands groups to the processor as long as a worker is free.
    fn launch(&mut self, mode: Mode) {
        let now = Instant::now();
        while self.under_way.processing < self.stage.workers() {
            let Some(flush) = self.next_flush(mode, now) else { break };
            self.stage.metrics.flushed(flush.reason);
            let owed = self.origins.owed(&self.stage, flush.items);
            let (stage, processor) = (Arc::clone(&self.stage), Arc::clone(&self.processor));
            self.spawn(Work::Process, flush.bytes, async move {
                batch::process(stage, processor, owed).await;
                None
            });
        }
        #[allow(clippy::cast_precision_loss, reason = "gauges are floating point")]
        {
            self.stage.metrics.batch_bytes.set((self.groups.bytes() + self.under_way.bytes) as f64);
            self.stage.metrics.batch_groups.set(self.groups.groups() as f64);
        }
    }

    fn next_flush(&mut self, mode: Mode, now: Instant) -> Option<Flush<Item<X::Output>>> {
        let full_or_due = self.ready.pop_front().or_else(|| self.groups.pop_due(now));
        full_or_due.or_else(|| self.groups.pop_over_budget(self.under_way.bytes)).or_else(|| match mode {
            Mode::Linger if self.span.is_used_up(self.groups.oldest()) => {
                self.groups.pop_oldest(FlushReason::Memory)
            }
            Mode::Linger => None,
            Mode::Idle => self.groups.pop_oldest(FlushReason::Idle),
            Mode::Drain => self.groups.pop_oldest(FlushReason::Shutdown),
        })
    }

    fn spawn(
        &mut self,
        work: Work,
        bytes: usize,
        task: impl Future<Output = Option<Box<Pass<X::Output>>>> + Send + 'static,
    ) {
        let id = self.tasks.spawn(task).id();
        self.under_way.begin(id, work, bytes);
    }

    /// Flushes all groups and waits for everything under way.
    async fn drain(&mut self) {
        self.launch(Mode::Drain);
        while let Some(finished) = self.tasks.join_next_with_id().await {
            self.take_result(finished);
            self.launch(Mode::Drain);
        }
    }

    /// Drops everything under way and gives back what the groups hold.
    async fn give_back(&mut self) {
        if tokio::time::timeout(HARD_STOP, self.tasks.shutdown()).await.is_err() {
            tracing::error!(stage = self.stage.name(), "a call does not let go of its thread; left behind");
        }
        while let Some(flush) = self.next_flush(Mode::Drain, Instant::now()) {
            self.origins.owed(&self.stage, flush.items).settle_all(Fate::Returned);
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn weight<E: Entry>(owed: &Owed<E>) -> usize {
    owed.messages().map(Message::weight).sum()
}

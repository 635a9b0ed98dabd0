//! What all parts of one running service share: its options, its counts and its health.

use crate::metric_names as names;
use crate::retry::{Backoff, is_exhausted};
use crate::{
    DeadLetter, DeadLetters, FlushReason, FlushRequest, Message, RetryPolicy, ServiceOptions, Shutdown,
    Skipped, SourceWindow, StageError, StageHealth, Summary, Verdict,
};
use metrics::{Counter, Gauge, Histogram};
use parking_lot::Mutex;
use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Longest wait for an answer of the dead-letter store before it counts as failed.
const STORE_DEADLINE: Duration = Duration::from_secs(30);

/// Dead letters are told of in the log once in this time; the counters have each one.
const BURIED_EVERY: Duration = Duration::from_secs(10);

/// Of messages that failed before: when the next try is due, and what had succeeded when they first failed.
pub(crate) struct History {
    pub(crate) backoff: Backoff,
    pub(crate) successes: u64,
}

impl History {
    pub(crate) fn begin(stage: &Stage) -> Self {
        Self { backoff: stage.backoff(), successes: stage.successes() }
    }
}

/// Dead letters that the log has not told of yet.
#[derive(Default)]
struct Buried {
    count: usize,
    told: Option<Instant>,
}

/// What became of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    Skipped,
    Held,
    Dead,
    Nacked,
    Returned,
}

impl Fate {
    const COUNT: usize = 6;

    pub(crate) fn verdict(self) -> Verdict {
        match self {
            Self::Done | Self::Skipped | Self::Held | Self::Dead => Verdict::Ack,
            Self::Nacked => Verdict::Nack,
            Self::Returned => Verdict::Return,
        }
    }
}

/// How many messages had which fate; added to the stage's counts in bulk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally([u64; Fate::COUNT]);

impl Tally {
    pub(crate) fn add(&mut self, fate: Fate) {
        self.add_many(fate, 1);
    }

    pub(crate) fn add_many(&mut self, fate: Fate, count: usize) {
        self.0[fate as usize] += count as u64;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }
}

pub(crate) struct Stage {
    name: Cow<'static, str>,
    workers: usize,
    max_attempts: u32,
    retry: RetryPolicy,
    dead_letters: Option<Arc<dyn DeadLetters>>,
    flush: Option<FlushRequest>,
    window: Option<SourceWindow>,
    shutdown: Shutdown,
    received: AtomicU64,
    fates: [AtomicU64; Fate::COUNT],
    backoffs: AtomicU64,
    troubles: Troubles,
    buried: Mutex<Buried>,
    pub(crate) metrics: Metrics,
}

impl Stage {
    pub(crate) fn new(options: ServiceOptions, shutdown: Shutdown) -> Arc<Self> {
        let workers = if options.workers == 0 { ServiceOptions::DEFAULT_WORKERS } else { options.workers };
        Arc::new(Self {
            metrics: Metrics::new(&options.stage),
            name: options.stage,
            workers,
            max_attempts: options.max_attempts,
            retry: options.retry,
            dead_letters: options.dead_letters,
            flush: options.flush,
            window: options.window,
            shutdown,
            received: AtomicU64::new(0),
            fates: Default::default(),
            backoffs: AtomicU64::new(0),
            troubles: Troubles::new(options.health),
            buried: Mutex::default(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    pub(crate) fn flush(&self) -> Option<&FlushRequest> {
        self.flush.as_ref()
    }

    pub(crate) fn window(&self) -> Option<SourceWindow> {
        self.window
    }

    pub(crate) fn retry(&self) -> &RetryPolicy {
        &self.retry
    }

    pub(crate) fn shutdown(&self) -> &Shutdown {
        &self.shutdown
    }

    pub(crate) fn backoff(&self) -> Backoff {
        self.retry.backoff(self.backoffs.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn is_exhausted(&self, message: &Message) -> bool {
        is_exhausted(message.attempt, self.max_attempts)
    }

    pub(crate) fn received(&self, count: usize) {
        self.received.fetch_add(count as u64, Ordering::Relaxed);
        self.metrics.received.increment(count as u64);
    }

    /// Adds `tally` to the counts. A success ends a suspected outage.
    pub(crate) fn settled(&self, tally: &Tally) {
        for (count, added) in self.fates.iter().zip(tally.0).filter(|(_, added)| *added > 0) {
            count.fetch_add(added, Ordering::Relaxed);
        }
        self.metrics.settled(tally);
        if tally.0[Fate::Done as usize] > 0 {
            self.troubles.clear_outage(&self.name);
        }
    }

    /// How many messages were done so far; compared with a later value it tells whether there was a success since.
    pub(crate) fn successes(&self) -> u64 {
        self.fates[Fate::Done as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn summary(&self) -> Summary {
        let count = |fate: Fate| self.fates[fate as usize].load(Ordering::Relaxed);
        Summary {
            received: self.received.load(Ordering::Relaxed),
            done: count(Fate::Done),
            skipped: count(Fate::Skipped),
            held: count(Fate::Held),
            dead_lettered: count(Fate::Dead),
            nacked: count(Fate::Nacked),
            returned: count(Fate::Returned),
        }
    }

    pub(crate) fn ready(&self) {
        self.troubles.set_state(None);
    }

    pub(crate) fn not_ready(&self, state: &str) {
        self.troubles.set_state(Some(state.to_owned()));
    }

    /// The sink, a look-up or the dead-letter store does not work; the next success ends it.
    pub(crate) fn outage(&self, error: &StageError) {
        self.troubles.set_outage(&self.name, error);
    }

    /// The consumer does not deliver, or does again.
    pub(crate) fn consumer_trouble(&self, error: Option<&StageError>) {
        self.troubles.set_consumer(&self.name, error);
    }

    /// Waits for the next delay of `backoff`. `false`: the service stops and the bounded tries are used up, so the
    /// messages are to be given back.
    pub(crate) async fn pause(&self, backoff: &mut Backoff) -> bool {
        let sleep = tokio::time::sleep(backoff.next_delay());
        let mut sleep = std::pin::pin!(sleep);
        self.metrics.retries.increment(1);
        tokio::select! {
            biased;
            () = self.shutdown.begun() => {}
            () = &mut sleep => return true,
        }
        if backoff.tries() > self.retry.tries {
            return false;
        }
        sleep.await;
        true
    }

    /// Gives up on messages for the reasons beside them: their fate, once that is durable.
    pub(crate) async fn bury(&self, given_up: Vec<(&Message, StageError)>) -> Fate {
        let Some(store) = &self.dead_letters else { return Fate::Nacked };
        let letters: Vec<_> = given_up.iter().map(|(message, error)| self.letter(message, error)).collect();
        if !self.keep(|| store.put(letters.clone())).await {
            return Fate::Returned;
        }
        self.metrics.dead_lettered(&self.name, &letters);
        self.tell_of(&letters);
        Fate::Dead
    }

    /// One line for all letters of a while: a device that sends only poison must not fill the log.
    fn tell_of(&self, letters: &[DeadLetter]) {
        let Some(first) = letters.first() else { return };
        let mut buried = self.buried.lock();
        buried.count += letters.len();
        if buried.told.is_some_and(|told| told.elapsed() < BURIED_EVERY) {
            return;
        }
        let count = std::mem::take(&mut buried.count);
        buried.told = Some(Instant::now());
        drop(buried);
        let (id, why) = (first.message.id, first.detail.as_str());
        tracing::warn!(stage = %self.name, count, %id, why, "messages went to the dead letters");
    }

    fn letter(&self, message: &Message, error: &StageError) -> DeadLetter {
        DeadLetter {
            message: message.clone(),
            stage: self.name.clone(),
            reason: error.reason().to_owned().into(),
            detail: error.detail().to_owned(),
            attempts: message.attempt,
        }
    }

    /// Records messages ended by a rule: their fate, once that is durable.
    pub(crate) async fn record_skips(&self, skips: Vec<(&Message, Cow<'static, str>)>) -> Fate {
        let skip = |(message, rule): (&Message, Cow<'static, str>)| Skipped {
            id: message.id,
            stage: self.name.clone(),
            rule,
        };
        let skips: Vec<_> = skips.into_iter().map(skip).collect();
        if let Some(store) = &self.dead_letters
            && !self.keep(|| store.record_skips(skips.clone())).await
        {
            return Fate::Returned;
        }
        self.metrics.skipped(&self.name, &skips);
        Fate::Skipped
    }

    /// Calls the dead-letter store until it answers that all is durable; gives up after the policy's tries.
    async fn keep<'a, F>(&self, call: impl Fn() -> F + Send + 'a) -> bool
    where
        F: Future<Output = Result<(), StageError>> + Send,
    {
        let mut backoff = self.backoff();
        loop {
            let error = match tokio::time::timeout(STORE_DEADLINE, call()).await {
                Ok(Ok(())) => return true,
                Ok(Err(error)) => error,
                Err(_) => {
                    StageError::transient("dead-letters-timeout", "the dead-letter store did not answer")
                }
            };
            self.outage(&error);
            if backoff.tries() >= self.retry.tries || !self.pause(&mut backoff).await {
                return false;
            }
        }
    }
}

/// Why a service is not ready; the first that applies is shown.
struct Troubles {
    health: Option<StageHealth>,
    outage_seen: AtomicBool,
    reasons: Mutex<Reasons>,
}

#[derive(Default)]
struct Reasons {
    state: Option<String>,
    consumer: Option<String>,
    outage: Option<String>,
}

impl Troubles {
    fn new(health: Option<StageHealth>) -> Self {
        let reasons = Reasons { state: Some("starting".to_owned()), ..Reasons::default() };
        Self { health, outage_seen: AtomicBool::new(false), reasons: Mutex::new(reasons) }
    }

    fn show(&self, reasons: &Reasons) {
        let Some(health) = &self.health else { return };
        match reasons.state.as_ref().or(reasons.outage.as_ref()).or(reasons.consumer.as_ref()) {
            Some(reason) => health.not_ready(reason.clone()),
            None => health.ready(),
        }
    }

    fn set_state(&self, state: Option<String>) {
        let mut reasons = self.reasons.lock();
        reasons.state = state;
        self.show(&reasons);
    }

    fn set_consumer(&self, stage: &str, error: Option<&StageError>) {
        let mut reasons = self.reasons.lock();
        match (error, &reasons.consumer) {
            (Some(error), None) => {
                tracing::warn!(stage, class = error.class().as_str(), %error, "receiving fails")
            }
            (None, Some(_)) => tracing::info!(stage, "receiving works again"),
            _ => {}
        }
        reasons.consumer = error.map(|error| format!("receiving fails: {error}"));
        self.show(&reasons);
    }

    fn set_outage(&self, stage: &str, error: &StageError) {
        let mut reasons = self.reasons.lock();
        if reasons.outage.is_none() {
            tracing::warn!(stage, class = error.class().as_str(), %error, "paused until it works again");
        }
        reasons.outage = Some(error.to_string());
        self.outage_seen.store(true, Ordering::Release);
        self.show(&reasons);
    }

    fn clear_outage(&self, stage: &str) {
        if !self.outage_seen.load(Ordering::Acquire) {
            return;
        }
        let mut reasons = self.reasons.lock();
        self.outage_seen.store(false, Ordering::Release);
        if reasons.outage.take().is_some() {
            tracing::info!(stage, "works again");
        }
        self.show(&reasons);
    }
}

/// Handles of the metrics, fetched once.
pub(crate) struct Metrics {
    received: Counter,
    done: Counter,
    nacked: Counter,
    returned: Counter,
    /// One for each [`FlushReason`].
    flushes: [Counter; FlushReason::ALL.len()],
    retries: Counter,
    pub(crate) panics: Counter,
    pub(crate) process_seconds: Histogram,
    pub(crate) batch_bytes: Gauge,
    pub(crate) batch_groups: Gauge,
}

impl Metrics {
    fn new(stage: &str) -> Self {
        let stage = stage.to_owned();
        let counter = |name: &'static str| metrics::counter!(name, "stage" => stage.clone());
        let given_back = |reason: &'static str| metrics::counter!(names::MESSAGES_NACKED, "stage" => stage.clone(), "reason" => reason);
        let flushes = |reason: FlushReason| metrics::counter!(names::FLUSHES, "stage" => stage.clone(), "reason" => reason.as_str());
        Self {
            received: counter(names::MESSAGES_IN),
            done: counter(names::MESSAGES_OUT),
            nacked: given_back("failed"),
            returned: given_back("returned"),
            flushes: FlushReason::ALL.map(flushes),
            retries: counter(names::RETRIES),
            panics: counter(names::PANICS),
            process_seconds: metrics::histogram!(names::PROCESS_SECONDS, "stage" => stage.clone()),
            batch_bytes: metrics::gauge!(names::BATCH_BYTES, "stage" => stage.clone()),
            batch_groups: metrics::gauge!(names::BATCH_GROUPS, "stage" => stage.clone()),
        }
    }

    fn settled(&self, tally: &Tally) {
        let counters =
            [(&self.done, Fate::Done), (&self.nacked, Fate::Nacked), (&self.returned, Fate::Returned)];
        for (counter, fate) in counters {
            let added = tally.0[fate as usize];
            if added > 0 {
                counter.increment(added);
            }
        }
    }

    pub(crate) fn flushed(&self, reason: FlushReason) {
        self.flushes[reason as usize].increment(1);
    }

    fn dead_lettered(&self, stage: &str, letters: &[DeadLetter]) {
        for letter in letters {
            let labels = [("stage", stage.to_owned()), ("reason", letter.reason.to_string())];
            metrics::counter!(names::MESSAGES_DEAD, &labels).increment(1);
        }
    }

    fn skipped(&self, stage: &str, skips: &[Skipped]) {
        for same in skips.chunk_by(|one, other| one.rule == other.rule) {
            let labels = [("stage", stage.to_owned()), ("reason", same[0].rule.to_string())];
            metrics::counter!(names::MESSAGES_SKIPPED, &labels).increment(same.len() as u64);
        }
    }
}

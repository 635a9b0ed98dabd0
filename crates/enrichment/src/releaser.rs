//! Bringing parked messages back: enriched when their device has appeared, with a marker when they are too old.

use crate::enricher::{enriched, marked};
use crate::results::{Results, Tally};
use crate::{Parked, ParkingLot};
use cache::Fetcher;
use messagepipeline::metric_names::PARKED;
use messagepipeline::names::UNKNOWN_DEVICE;
use messagepipeline::{
    BatchOutcome, Clock, DeadLetter, DeadLetters, Enrichment, ErrorClass, Message, MessageId, Publisher,
    Shutdown, StageError, Timestamp,
};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The stage in whose name messages go to the dead letters.
const STAGE: &str = "enrichment";
/// Longest pass. A call that is never answered must not end the releasing; a pass cut short loses nothing, and the
/// next one begins with less.
const LONGEST_PASS: Duration = Duration::from_secs(600);
/// How long to wait after a pass that failed.
const RETRY: Duration = Duration::from_secs(5);
/// When to look again after a change: a message looked up just before it may have been parked just after the pass.
const SETTLE: Duration = Duration::from_secs(2);

/// When the lot is looked through, and how much at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaserSettings {
    /// Time between two passes when no change is announced.
    pub interval: Duration,
    /// How long a message waits for its device; then it goes on with the marker.
    pub max_age: Duration,
    /// Keys looked up and messages published in one call; at least 1.
    pub batch: usize,
}

impl Default for ReleaserSettings {
    /// A pass per minute, a week of waiting, 500 at a time.
    fn default() -> Self {
        let day = Duration::from_secs(24 * 3600);
        Self { interval: Duration::from_secs(60), max_age: 7 * day, batch: 500 }
    }
}

/// What one pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Messages published with their device's data.
    pub enriched: u64,
    /// Messages published with the marker because of their age.
    pub expired: u64,
    /// Messages that the topic refused for good.
    pub dead_lettered: u64,
}

/// Looks the parking lot through and publishes what need not wait any longer.
///
/// A message leaves the lot after the topic has it. A crash between the two publishes it again later, which changes
/// nothing because the topic knows its id.
pub struct Releaser {
    /// Where the messages wait.
    pub lot: Arc<dyn ParkingLot>,
    /// The source of truth, under the enricher's field names and without a cache, which would remember that the
    /// devices are unknown.
    pub source: Arc<dyn Fetcher<Enrichment>>,
    /// The enricher's cache, which is told to forget a device that has appeared.
    pub cache: Arc<dyn Fetcher<Enrichment>>,
    /// The topic of enriched messages.
    pub output: Arc<dyn Publisher>,
    /// Where messages go that the topic refuses for good.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Tells the age of messages.
    pub clock: Arc<dyn Clock>,
    /// When and how much.
    pub settings: ReleaserSettings,
}

impl Releaser {
    /// Passes at once, whenever `changes` moves, and at the interval, until the shutdown begins. A pass cut short
    /// by it loses nothing.
    pub async fn run(&self, mut changes: watch::Receiver<u64>, shutdown: Shutdown) {
        let mut wait = Duration::ZERO;
        loop {
            let changed = tokio::select! {
                biased;
                () = shutdown.begun() => return,
                () = moved(&mut changes) => true,
                () = sleep(wait) => false,
            };
            let result = tokio::select! {
                biased;
                () = shutdown.begun() => return,
                result = timeout(LONGEST_PASS, self.pass()) => result.unwrap_or_else(|_| Err(unfinished())),
            };
            wait = self.report(result, changed);
        }
    }

    /// Logs what a pass did and tells how long to wait for the next.
    fn report(&self, result: Result<Released, StageError>, changed: bool) -> Duration {
        match result {
            Err(error) => {
                tracing::warn!(%error, "parked messages could not be released; they stay parked and are tried again");
                RETRY.min(self.settings.interval)
            }
            Ok(released) => {
                if released != Released::default() {
                    let Released { enriched, expired, dead_lettered } = released;
                    tracing::info!(enriched, expired, dead_lettered, "released parked messages");
                }
                if changed { SETTLE.min(self.settings.interval) } else { self.settings.interval }
            }
        }
    }

    /// Looks the whole lot through once: releases what can be enriched, then what is too old.
    ///
    /// # Errors
    /// When the lot, the source or the topic fails. What was released until then stays released, all else stays
    /// parked; nothing too old passes unenriched while the source does not answer.
    pub async fn pass(&self) -> Result<Released, StageError> {
        let mut released = Released::default();
        let result = self.look_through(&mut released).await;
        Results::new().add(&Tally {
            enriched: released.enriched,
            unknown: released.expired,
            ..Tally::default()
        });
        result?;
        #[expect(clippy::cast_precision_loss, reason = "a lot holds far fewer than 2^52 messages")]
        metrics::gauge!(PARKED).set(self.lot.count().await? as f64);
        Ok(released)
    }

    async fn look_through(&self, released: &mut Released) -> Result<(), StageError> {
        let batch = self.settings.batch.max(1);
        let mut after: Option<Box<str>> = None;
        loop {
            let keys = self.lot.keys(after.as_deref(), batch).await?;
            let last_page = keys.len() < batch;
            after = keys.last().cloned();
            let devices = self.known_devices(keys).await?;
            self.release(&devices, batch, released).await?;
            if last_page {
                break;
            }
        }
        self.expire(batch, released).await
    }

    /// The devices among `keys` that have appeared.
    async fn known_devices(&self, keys: Vec<Box<str>>) -> Result<HashMap<Box<str>, Enrichment>, StageError> {
        let asked: Vec<&str> = keys.iter().map(|key| &**key).collect();
        let results = if asked.is_empty() { Vec::new() } else { self.source.fetch(&asked).await };
        let mut devices = HashMap::new();
        let mut cache_answers = true;
        for (key, result) in keys.into_iter().zip(results) {
            let Some(data) = result?.value else { continue };
            if cache_answers && let Err(error) = self.cache.invalidate(&key).await {
                cache_answers = false;
                tracing::warn!(%error, "a cache layer may remember for its negative age that a device is unknown");
            }
            devices.insert(key, data);
        }
        Ok(devices)
    }

    async fn release(
        &self,
        devices: &HashMap<Box<str>, Enrichment>,
        batch: usize,
        released: &mut Released,
    ) -> Result<(), StageError> {
        if devices.is_empty() {
            return Ok(());
        }
        loop {
            let parked = self.lot.of_keys(devices.keys().cloned().collect(), batch).await?;
            if parked.is_empty() {
                return Ok(());
            }
            let none = Enrichment::none();
            let with_data =
                |parked: &Parked| enriched(&parked.message, devices.get(&parked.key).unwrap_or(&none));
            let handed = self.hand_over(&parked, with_data).await;
            released.enriched += handed.published;
            released.dead_lettered += handed.dead_lettered;
            handed.result?;
        }
    }

    async fn expire(&self, batch: usize, released: &mut Released) -> Result<(), StageError> {
        let cutoff = before(self.clock.now(), self.settings.max_age);
        loop {
            let parked = self.lot.parked_before(cutoff, batch).await?;
            if parked.is_empty() {
                return Ok(());
            }
            let with_marker = |parked: &Parked| marked(&parked.message, UNKNOWN_DEVICE);
            let handed = self.hand_over(&parked, with_marker).await;
            released.expired += handed.published;
            released.dead_lettered += handed.dead_lettered;
            handed.result?;
        }
    }

    /// Publishes `parked` in the form that `form` gives them and takes out what has arrived.
    async fn hand_over(&self, parked: &[Parked], form: impl Fn(&Parked) -> Message) -> Handed {
        let outcome = self.output.publish(parked.iter().map(form).collect()).await;
        let mut verdicts = Verdicts::of(parked, outcome);
        let mut handed = Handed::default();
        if !verdicts.refused.is_empty() {
            let refused: Vec<_> = verdicts.refused.iter().map(|letter| letter.message.id).collect();
            match self.dead_letters.put(verdicts.refused).await {
                Ok(()) => {
                    handed.dead_lettered = refused.len() as u64;
                    verdicts.done.extend(refused);
                }
                Err(error) => verdicts.error = Some(error),
            }
        }
        let gone = verdicts.done.len() as u64;
        let removed = if gone == 0 { Ok(()) } else { self.lot.remove(verdicts.done).await };
        if removed.is_ok() {
            handed.published = gone - handed.dead_lettered;
        }
        handed.result = removed.and(verdicts.error.map_or(Ok(()), Err));
        handed
    }
}

impl fmt::Debug for Releaser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Releaser").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// How far a hand-over came.
struct Handed {
    published: u64,
    dead_lettered: u64,
    result: Result<(), StageError>,
}

impl Default for Handed {
    fn default() -> Self {
        Self { published: 0, dead_lettered: 0, result: Ok(()) }
    }
}

/// The topic's answers, sorted by what they ask for.
#[derive(Default)]
struct Verdicts {
    /// In the topic.
    done: Vec<MessageId>,
    /// Refused for good.
    refused: Vec<DeadLetter>,
    /// Why the others stay parked.
    error: Option<StageError>,
}

impl Verdicts {
    fn of(parked: &[Parked], outcome: BatchOutcome) -> Self {
        let mut verdicts = Self::default();
        let mut results = match outcome {
            BatchOutcome::Done => {
                verdicts.done = parked.iter().map(|parked| parked.message.id).collect();
                return verdicts;
            }
            BatchOutcome::Failed(error) => {
                verdicts.error = Some(error);
                return verdicts;
            }
            BatchOutcome::Each(results) => results.into_iter(),
        };
        for parked in parked {
            match results.next() {
                Some(Ok(())) => verdicts.done.push(parked.message.id),
                Some(Err(error)) if error.class() == ErrorClass::Permanent => {
                    verdicts.refused.push(dead_letter(parked, &error));
                }
                Some(Err(error)) => verdicts.error = Some(error),
                None => {
                    let detail = "the topic left a message without an answer";
                    verdicts.error.get_or_insert(StageError::transient("publish-incomplete", detail));
                }
            }
        }
        verdicts
    }
}

fn dead_letter(parked: &Parked, error: &StageError) -> DeadLetter {
    DeadLetter {
        message: parked.message.clone(),
        stage: STAGE.into(),
        reason: error.reason().to_owned().into(),
        detail: error.detail().to_owned(),
        attempts: parked.message.attempt,
    }
}

fn unfinished() -> StageError {
    let detail = format!("looking through the parked messages took longer than {} s", LONGEST_PASS.as_secs());
    StageError::transient("release-timeout", detail)
}

/// Waits until `changes` moves; for ever when nobody can move it any more.
async fn moved(changes: &mut watch::Receiver<u64>) {
    if changes.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn before(now: Timestamp, age: Duration) -> Timestamp {
    let age = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.as_micros().saturating_sub(age))
}

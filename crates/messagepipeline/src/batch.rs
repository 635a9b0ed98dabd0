//! The life of one flushed batch: the processor's call, its answer item by item, and what is tried again.

use crate::deadline::{in_time, timed_out};
use crate::owed::Owed;
use crate::retry::{Judgement, judge};
use crate::stage::{Fate, History, Stage};
use crate::transform::{no_answer, panicked};
use crate::{BatchOutcome, BatchProcessor, ErrorClass, Item, StageError};
use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tokio::time::Instant;

/// Items that are tried together.
struct Part<T> {
    owed: Owed<Item<T>>,
    /// `None` before the first failure.
    history: Option<History>,
}

/// Calls the processor until every item of `owed` has its verdict.
pub(crate) async fn process<T, P>(stage: Arc<Stage>, processor: Arc<P>, owed: Owed<Item<T>>)
where
    T: Send + Sync,
    P: BatchProcessor<T>,
{
    let mut open = Vec::new();
    let mut next = Some(Part { owed, history: None });
    while let Some(part) = next.take().or_else(|| open.pop()) {
        match call(&stage, &*processor, &part.owed.entries).await {
            Answer::Outcome(BatchOutcome::Done) => part.owed.settle_all(Fate::Done),
            Answer::Outcome(BatchOutcome::Each(results)) => open.extend(decide(&stage, part, results).await),
            Answer::Outcome(BatchOutcome::Failed(error)) if error.class() != ErrorClass::Permanent => {
                open.extend(wait_out(&stage, part, &error).await);
            }
            Answer::Outcome(BatchOutcome::Failed(error)) => open.extend(narrow_down(part, error).await),
            Answer::Panic => open.extend(narrow_down(part, panicked("processor")).await),
        }
    }
}

enum Answer {
    Outcome(BatchOutcome),
    Panic,
}

async fn call<T, P: BatchProcessor<T>>(stage: &Stage, processor: &P, items: &[Item<T>]) -> Answer {
    let begun = Instant::now();
    let call = async { processor.process(items).await };
    let answer = in_time(AssertUnwindSafe(call).catch_unwind()).await;
    stage.metrics.process_seconds.record(begun.elapsed());
    match answer {
        Some(Ok(outcome)) => Answer::Outcome(outcome),
        None => Answer::Outcome(BatchOutcome::Failed(timed_out("processor"))),
        Some(Err(_)) => {
            stage.metrics.panics.increment(1);
            Answer::Panic
        }
    }
}

/// The call failed for a reason outside the items: they wait, and none is counted against them.
async fn wait_out<T>(stage: &Stage, mut part: Part<T>, error: &StageError) -> Option<Part<T>> {
    stage.outage(error);
    let history = part.history.get_or_insert_with(|| History::begin(stage));
    if stage.pause(&mut history.backoff).await {
        return Some(part);
    }
    part.owed.settle_all(Fate::Returned);
    None
}

/// The items as a whole make the call panic or fail for good: halves them, until the one at fault stands alone.
async fn narrow_down<T>(part: Part<T>, error: StageError) -> Vec<Part<T>> {
    if part.owed.len() == 1 {
        give_up(part.owed, vec![error]).await;
        return Vec::new();
    }
    let (first, second) = part.owed.split();
    // The last one is tried first.
    vec![Part { owed: second, history: None }, Part { owed: first, history: None }]
}

/// Ends items that are at fault, each with its error: in the dead letters, if the error is permanent or the item's
/// deliveries are used up, else back at the source, counted.
pub(crate) async fn give_up<T>(mut owed: Owed<Item<T>>, errors: Vec<StageError>) {
    let mut dead = Vec::new();
    for (index, error) in errors.into_iter().enumerate() {
        if error.class() == ErrorClass::Permanent || owed.stage().is_exhausted(&owed.entries[index].message) {
            dead.push((index, error));
        } else {
            owed.note(index, Fate::Nacked);
        }
    }
    owed.ledger.report();
    owed.bury(dead).await;
}

/// Settles what `results` decide; answers with the items to be tried again.
async fn decide<T>(
    stage: &Stage,
    mut part: Part<T>,
    results: Vec<Result<(), StageError>>,
) -> Option<Part<T>> {
    let mut is_passing = vec![false; part.owed.len()];
    let (mut passing, mut faults) = (Vec::new(), Vec::new());
    let mut results = results.into_iter();
    for (index, is_passing) in is_passing.iter_mut().enumerate() {
        match results.next() {
            Some(Ok(())) => part.owed.note(index, Fate::Done),
            Some(Err(error)) if error.class() == ErrorClass::Permanent => faults.push(error),
            Some(Err(error)) => {
                *is_passing = true;
                passing.push(error);
            }
            None => faults.push(no_answer()),
        }
    }
    let (failed, at_fault) = part.owed.divide(|index| is_passing[index]);
    give_up(at_fault, faults).await;
    if failed.is_empty() {
        return None;
    }
    part.owed = failed;
    judge_failed(stage, part, passing).await
}

/// What becomes of items that failed one by one for a passing reason.
async fn judge_failed<T>(stage: &Stage, mut part: Part<T>, errors: Vec<StageError>) -> Option<Part<T>> {
    if let Some(error) = errors.iter().find(|error| error.class() == ErrorClass::Configuration) {
        return wait_out(stage, part, error).await;
    }
    let history = part.history.get_or_insert_with(|| History::begin(stage));
    let others_succeeded = stage.successes() != history.successes;
    match judge(stage.retry(), history.backoff.tries(), others_succeeded) {
        Judgement::TryAgain => {}
        Judgement::Outage => errors.first().into_iter().for_each(|error| stage.outage(error)),
        Judgement::GiveBack => {
            errors.first().into_iter().for_each(|error| stage.outage(error));
            part.owed.settle_all(Fate::Returned);
            return None;
        }
        Judgement::Blame => {
            give_up(part.owed, errors).await;
            return None;
        }
    }
    if stage.pause(&mut history.backoff).await {
        return Some(part);
    }
    part.owed.settle_all(Fate::Returned);
    None
}

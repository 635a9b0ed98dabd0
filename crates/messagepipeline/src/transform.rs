//! The transformer's part in a service: a chunk goes through it, values come out, and the rest is brought to its end.

use crate::deadline::{in_time, timed_out};
use crate::owed::Owed;
use crate::retry::{Judgement, judge};
use crate::stage::{Fate, History, Stage};
use crate::{Delivery, ErrorClass, Outcome, StageError, Transformer};
use futures_util::FutureExt;
use std::borrow::Cow;
use std::ops::Range;
use std::panic::AssertUnwindSafe;

/// A chunk after the transformer.
pub(crate) struct Pass<T> {
    /// Messages with a value each.
    pub(crate) emitted: Owed<Delivery>,
    pub(crate) values: Vec<T>,
    /// The others, if there are any.
    pub(crate) rest: Option<Rest>,
}

/// Messages without a value, and why.
pub(crate) struct Rest {
    pub(crate) owed: Owed<Delivery>,
    endings: Vec<Ending>,
    history: Option<History>,
}

enum Ending {
    Skip(Cow<'static, str>),
    Held,
    Fail(StageError),
    /// The transformer panicked on it or did not answer for it.
    Fault(StageError),
}

/// Sends `owed` through `transformer`. A panic is narrowed down to the message at fault.
pub(crate) async fn transform<X: Transformer>(transformer: &X, owed: Owed<Delivery>) -> Pass<X::Output> {
    let mut outcomes = Vec::with_capacity(owed.len());
    let calm = call(transformer, &owed.entries, &mut outcomes).await;
    if calm && outcomes.len() == owed.len() && outcomes.iter().all(|o| matches!(o, Outcome::Emit(_))) {
        let value = |outcome| if let Outcome::Emit(value) = outcome { Some(value) } else { None };
        return Pass { emitted: owed, values: outcomes.into_iter().filter_map(value).collect(), rest: None };
    }
    let answers = if calm {
        answers(outcomes, owed.len())
    } else {
        owed.stage().metrics.panics.increment(1);
        narrow_down(transformer, &owed).await
    };
    sort(owed, answers)
}

/// Calls the transformer; `false` if it panicked. Without an answer in time all have failed for a passing reason.
async fn call<X: Transformer>(
    transformer: &X,
    deliveries: &[Delivery],
    outcomes: &mut Vec<Outcome<X::Output>>,
) -> bool {
    let call = async { transformer.transform(deliveries, outcomes).await };
    let Some(answer) = in_time(AssertUnwindSafe(call).catch_unwind()).await else {
        outcomes.clear();
        outcomes.extend(deliveries.iter().map(|_| Outcome::Fail(timed_out("transformer"))));
        return true;
    };
    answer.is_ok()
}

/// One answer per message, whatever the transformer pushed.
fn answers<T>(outcomes: Vec<Outcome<T>>, count: usize) -> Vec<Result<T, Ending>> {
    let mut outcomes = outcomes.into_iter();
    let answer = |_| match outcomes.next() {
        Some(Outcome::Emit(value)) => Ok(value),
        Some(Outcome::Skip(rule)) => Err(Ending::Skip(rule)),
        Some(Outcome::Held) => Err(Ending::Held),
        Some(Outcome::Fail(error)) => Err(Ending::Fail(error)),
        None => Err(Ending::Fault(no_answer())),
    };
    (0..count).map(answer).collect()
}

/// Halves a chunk that panics until the messages at fault stand alone.
async fn narrow_down<X: Transformer>(
    transformer: &X,
    owed: &Owed<Delivery>,
) -> Vec<Result<X::Output, Ending>> {
    let mut answered = Vec::with_capacity(owed.len());
    let mut open: Vec<Range<usize>> = halves(&(0..owed.len()));
    while let Some(part) = open.pop() {
        let mut outcomes = Vec::with_capacity(part.len());
        if call(transformer, &owed.entries[part.clone()], &mut outcomes).await {
            answered.extend(answers(outcomes, part.len()));
            continue;
        }
        owed.stage().metrics.panics.increment(1);
        if part.len() == 1 {
            answered.push(Err(Ending::Fault(panicked("transformer"))));
        } else {
            open.extend(halves(&part));
        }
    }
    answered
}

/// The halves of `part`, the first one last, so that it is popped first. One element stays one part.
fn halves(part: &Range<usize>) -> Vec<Range<usize>> {
    let middle = part.start + part.len() / 2;
    let halves = [middle..part.end, part.start..middle];
    halves.into_iter().filter(|half| !half.is_empty()).collect()
}

fn sort<T>(owed: Owed<Delivery>, answers: Vec<Result<T, Ending>>) -> Pass<T> {
    let is_emitted: Vec<_> = answers.iter().map(Result::is_ok).collect();
    let (emitted, rest) = owed.divide(|index| is_emitted[index]);
    let mut values = Vec::with_capacity(emitted.len());
    let mut endings = Vec::with_capacity(rest.len());
    for answer in answers {
        match answer {
            Ok(value) => values.push(value),
            Err(ending) => endings.push(ending),
        }
    }
    Pass { emitted, values, rest: Some(Rest { owed: rest, endings, history: None }) }
}

/// Settles those of `rest` that have ended, waits and sends the failed ones through `transformer` again; `None` when
/// nothing is left.
pub(crate) async fn follow_up<X: Transformer>(transformer: &X, rest: Rest) -> Option<Pass<X::Output>> {
    let Rest { owed, endings, history } = rest;
    if owed.is_empty() {
        return None;
    }
    let stage = std::sync::Arc::clone(owed.stage());
    let (failed, error) = settle_ended(&stage, owed, endings).await?;
    let mut history = history.unwrap_or_else(|| History::begin(&stage));
    if error.class() == ErrorClass::Configuration {
        stage.outage(&error);
    } else {
        // A look-up that fails for a passing reason says nothing about the message: it is never counted against it.
        // When others get through, it goes back to the source, so that it does not hold up what comes after it.
        match judge(stage.retry(), history.backoff.tries(), stage.successes() != history.successes) {
            Judgement::TryAgain => {}
            Judgement::Outage | Judgement::GiveBack => stage.outage(&error),
            Judgement::Blame => {
                tracing::warn!(stage = stage.name(), count = failed.len(), %error, "given back");
                failed.settle_all(Fate::Returned);
                return None;
            }
        }
    }
    if !stage.pause(&mut history.backoff).await {
        failed.settle_all(Fate::Returned);
        return None;
    }
    let mut pass = transform(transformer, failed).await;
    if let Some(rest) = &mut pass.rest {
        rest.history = Some(history);
    }
    Some(pass)
}

/// Brings all to their end that have one. Answers with the others, which failed for a passing reason, and one of
/// their errors (a configuration error, if there is one).
async fn settle_ended(
    stage: &Stage,
    mut owed: Owed<Delivery>,
    endings: Vec<Ending>,
) -> Option<(Owed<Delivery>, StageError)> {
    let (mut skipped, mut dead) = (Vec::new(), Vec::new());
    let mut passing: Option<StageError> = None;
    for (index, ending) in endings.into_iter().enumerate() {
        match ending {
            Ending::Held => owed.note(index, Fate::Held),
            Ending::Skip(rule) => skipped.push((index, rule)),
            Ending::Fail(error) if error.class() == ErrorClass::Permanent => dead.push((index, error)),
            Ending::Fault(error) if stage.is_exhausted(&owed.entries[index].message) => {
                dead.push((index, error))
            }
            Ending::Fault(_) => owed.note(index, Fate::Nacked),
            Ending::Fail(error) => {
                if passing.is_none() || error.class() == ErrorClass::Configuration {
                    passing = Some(error);
                }
            }
        }
    }
    owed.ledger.report();
    if !skipped.is_empty() {
        let indices: Vec<_> = skipped.iter().map(|(index, _)| *index).collect();
        let skips = skipped.into_iter().map(|(index, rule)| (&owed.entries[index].message, rule)).collect();
        let fate = stage.record_skips(skips).await;
        indices.into_iter().for_each(|index| owed.note(index, fate));
    }
    owed.bury(dead).await;
    let (failed, _) = owed.divide(|_| true);
    Some((failed, passing?))
}

pub(crate) fn panicked(part: &'static str) -> StageError {
    StageError::transient("panic", format!("the {part} panicked on this message"))
}

pub(crate) fn no_answer() -> StageError {
    StageError::transient("no-answer", "no result came for this message")
}

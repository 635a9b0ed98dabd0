//! Handing messages on, and trying again what may work later.

use super::ReplayProgress;
use messagepipeline::{BatchOutcome, ErrorClass, Message, Publisher, StageError};
use std::time::Duration;

/// Tries of one call before a replay gives up, and the pauses between them.
const TRIES: u32 = 8;
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

async fn pause(tries: u32) {
    let (first, longest) = PAUSES;
    tokio::time::sleep(first.saturating_mul(1 << tries.min(16)).min(longest)).await;
}

/// The answer of `call`, tried again while it fails in a way that may pass.
pub(super) async fn retried<T, F: Future<Output = Result<T, StageError>>>(
    call: impl Fn() -> F,
) -> Result<T, StageError> {
    let mut tries = 0;
    loop {
        match call().await {
            Err(error) if error.class() == ErrorClass::Transient && tries < TRIES => {
                pause(tries).await;
                tries += 1;
            }
            other => return other,
        }
    }
}

/// Publishes `messages`. One that is refused for good is counted and named.
pub(super) async fn publish(
    publisher: &dyn Publisher,
    mut messages: Vec<Message>,
    progress: &ReplayProgress,
) -> Result<(), StageError> {
    let mut tries = 0;
    loop {
        let results = match publisher.publish(messages.clone()).await {
            BatchOutcome::Done => {
                progress.count(|counts| counts.published += messages.len() as u64);
                return Ok(());
            }
            BatchOutcome::Failed(error) if messages.len() == 1 => vec![Err(error)],
            BatchOutcome::Failed(error) if error.class() == ErrorClass::Permanent => {
                // Somebody among them is at fault.
                for message in messages {
                    Box::pin(publish(publisher, vec![message], progress)).await?;
                }
                return Ok(());
            }
            BatchOutcome::Failed(error) if tries == TRIES || error.class() == ErrorClass::Configuration => {
                return Err(error);
            }
            BatchOutcome::Failed(_) => {
                pause(tries).await;
                tries += 1;
                continue;
            }
            BatchOutcome::Each(results) => results,
        };
        let (left, error) = sort_out(messages, results, progress);
        messages = left;
        match error {
            None => return Ok(()),
            Some(error) if tries == TRIES || error.class() == ErrorClass::Configuration => return Err(error),
            Some(_) => {
                pause(tries).await;
                tries += 1;
            }
        }
    }
}

/// Those to try again, and why. The others are counted.
fn sort_out(
    messages: Vec<Message>,
    results: Vec<Result<(), StageError>>,
    progress: &ReplayProgress,
) -> (Vec<Message>, Option<StageError>) {
    let (mut left, mut last) = (Vec::new(), None);
    for (message, result) in messages.into_iter().zip(results) {
        match result {
            Ok(()) => progress.count(|counts| counts.published += 1),
            Err(error) if error.class() == ErrorClass::Permanent => {
                progress.problem(format!("message {}: {error}", message.id), |counts| counts.refused += 1);
            }
            Err(error) => {
                left.push(message);
                last = Some(error);
            }
        }
    }
    (left, last)
}

//! Saying that a topic is missing before the first message finds out.

use ::pubsub::PubSubError;
use messagepipeline::{RetryPolicy, Shutdown, StageHealth};
use std::future::Future;
use std::time::Duration;

/// Longest wait for one answer; without one it is not known whether the topic is there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks `exists` with growing pauses until the topic `name` is there; meanwhile `health` says that it is not.
///
/// Only the service's own word that it is missing counts. Whoever may publish need not be allowed to look
/// (`pubsub.topics.get` is no part of `roles/pubsub.publisher`), and an outage shows where messages are published.
pub(crate) async fn tell_missing<F>(
    name: &str,
    exists: impl Fn() -> F,
    health: &StageHealth,
    shutdown: &Shutdown,
) where
    F: Future<Output = Result<bool, PubSubError>>,
{
    let mut backoff = RetryPolicy { seed: service_kit::random_seed(), ..RetryPolicy::default() }.backoff(0);
    let mut is_told = false;
    loop {
        let answer = tokio::select! {
            biased;
            () = shutdown.begun() => return,
            answer = tokio::time::timeout(PATIENCE, exists()) => answer,
        };
        match answer {
            Ok(Ok(false)) => {
                let reason = format!("the topic {name} is missing: create it, or name another one");
                if !is_told {
                    tracing::warn!(stage = health.name(), reason, "asked for again until it is there");
                    is_told = true;
                }
                health.not_ready(reason);
            }
            Ok(Ok(true) | Err(PubSubError::Denied { .. })) => return health.ready(),
            // What was known to be missing is so until somebody knows better.
            Ok(Err(_)) | Err(_) if is_told => {}
            Ok(Err(_)) | Err(_) => health.ready(),
        }
        tokio::select! {
            biased;
            () = shutdown.begun() => return,
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

    use super::*;
    use messagepipeline::Health;
    use parking_lot::Mutex;
    use std::collections::VecDeque;

    fn down() -> PubSubError {
        PubSubError::Unavailable { resource: "raw".to_owned(), message: "no route".to_owned() }
    }

    fn denied() -> PubSubError {
        PubSubError::Denied { resource: "raw".to_owned(), message: "no".to_owned() }
    }

    /// What the board says at each question after the first, and in the end, when these are the answers.
    async fn board(answers: Vec<Result<bool, PubSubError>>) -> Vec<Option<String>> {
        let (health, seen) = (Health::new(), Mutex::new(Vec::new()));
        let stage = health.stage("topic raw");
        let told = || health.stages()[0].1.clone();
        let answers = Mutex::new(VecDeque::from(answers));
        let exists = || {
            seen.lock().push(told());
            std::future::ready(answers.lock().pop_front().unwrap())
        };
        tell_missing("raw", exists, &stage, &Shutdown::new()).await;
        assert!(answers.lock().is_empty(), "it goes on until it knows");
        let mut seen = seen.into_inner();
        seen.push(told());
        seen.split_off(1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_topic_is_told_until_it_is_there_and_what_cannot_be_told_is_no_fault() {
        let missing = Some("the topic raw is missing: create it, or name another one".to_owned());
        assert_eq!(board(vec![Ok(true)]).await, [None]);
        assert_eq!(board(vec![Err(denied())]).await, [None]);
        assert_eq!(board(vec![Ok(false), Ok(true)]).await, [missing.clone(), None]);
        assert_eq!(
            board(vec![Err(down()), Ok(false), Err(down()), Ok(true)]).await,
            [None, missing.clone(), missing, None]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_the_questions() {
        let (stage, shutdown) = (Health::new().stage("topic raw"), Shutdown::new());
        let exists = || {
            shutdown.begin();
            std::future::ready(Ok(false))
        };
        tell_missing("raw", exists, &stage, &shutdown).await;
        tell_missing("raw", std::future::pending, &stage, &shutdown).await;
    }
}

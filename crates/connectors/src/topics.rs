//! Whether a topic can be published to, before the first message finds out.

use ::pubsub::PubSubError;
use messagepipeline::{RetryPolicy, Shutdown, StageHealth};
use std::future::Future;
use std::time::Duration;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a topic that is there is looked at again. Far below the service's 6,000 administrative requests a minute
/// and project (<https://cloud.google.com/pubsub/quotas>), also for hundreds of replicas.
const EVERY: Duration = Duration::from_secs(30);

/// Why nothing can be published to the topic `name`, for which `exists` asks; `None` when nothing is known against it.
pub(crate) async fn trouble(
    name: &str,
    exists: impl Future<Output = Result<bool, PubSubError>>,
) -> Option<String> {
    match tokio::time::timeout(PATIENCE, exists).await {
        // Who looks may not, but Pub/Sub answers. Whoever may publish need not be allowed to look (`pubsub.topics.get` is
        // no part of `roles/pubsub.publisher`).
        Ok(Ok(true) | Err(PubSubError::Denied { .. })) => None,
        Ok(Ok(false)) => Some(format!("the topic {name} is missing: create it, or name another one")),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => {
            let patience = PATIENCE.as_secs();
            Some(format!("Pub/Sub did not answer within {patience} s whether the topic {name} is there"))
        }
    }
}

/// Looks at the topic `name` until `shutdown`; while nothing can be published, `health` says why. So an outage shows
/// before the deadline of a publish has passed, and also while no message comes.
pub(crate) async fn watch<F>(name: &str, exists: impl Fn() -> F, health: &StageHealth, shutdown: &Shutdown)
where
    F: Future<Output = Result<bool, PubSubError>>,
{
    let policy = RetryPolicy { seed: service_kit::random_seed(), ..RetryPolicy::default() };
    let mut backoff = policy.backoff(0);
    let mut is_told = false;
    loop {
        let seen = tokio::select! {
            biased;
            () = shutdown.begun() => return,
            seen = trouble(name, exists()) => seen,
        };
        let pause = match seen {
            None => {
                if is_told {
                    tracing::info!(stage = health.name(), "what kept from publishing is over");
                }
                is_told = false;
                backoff = policy.backoff(0);
                health.ready();
                EVERY
            }
            Some(reason) => {
                if !is_told {
                    tracing::warn!(stage = health.name(), reason, "asked for again until it is there");
                }
                is_told = true;
                health.not_ready(reason);
                backoff.next_delay()
            }
        };
        tokio::select! {
            biased;
            () = shutdown.begun() => return,
            () = tokio::time::sleep(pause) => {}
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

    /// What the board says after each of these answers; `None` in the place of one that never comes.
    async fn board(answers: Vec<Option<Result<bool, PubSubError>>>) -> Vec<Option<String>> {
        let (health, shutdown, seen) = (Health::new(), Shutdown::new(), Mutex::new(Vec::new()));
        let stage = health.stage("topic raw");
        let told = || health.stages()[0].1.clone();
        let answers = Mutex::new(VecDeque::from(answers));
        let exists = || {
            seen.lock().push(told());
            let answer = answers.lock().pop_front();
            if answer.is_none() {
                shutdown.begin();
            }
            async {
                match answer {
                    Some(Some(answer)) => answer,
                    _ => std::future::pending().await,
                }
            }
        };
        watch("raw", exists, &stage, &shutdown).await;
        seen.into_inner().split_off(1)
    }

    #[tokio::test(start_paused = true)]
    async fn what_keeps_from_publishing_is_told_until_it_is_over_also_when_it_comes_later() {
        let missing = Some("the topic raw is missing: create it, or name another one".to_owned());
        let unreachable = Some(down().to_string());
        let silent = Some("Pub/Sub did not answer within 10 s whether the topic raw is there".to_owned());
        assert_eq!(board(vec![Some(Ok(true))]).await, [None]);
        assert_eq!(board(vec![Some(Ok(false)), Some(Ok(true))]).await, [missing.clone(), None]);
        assert_eq!(
            board(vec![Some(Err(down())), Some(Ok(false)), None, Some(Ok(true)), Some(Err(down()))]).await,
            [unreachable.clone(), missing, silent, None, unreachable]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_may_not_look_at_the_topic_is_ready_and_still_learns_of_an_outage() {
        let unreachable = Some(down().to_string());
        let answers = vec![Some(Err(down())), Some(Err(denied())), Some(Err(down()))];
        assert_eq!(board(answers).await, [unreachable.clone(), None, unreachable]);
    }
}

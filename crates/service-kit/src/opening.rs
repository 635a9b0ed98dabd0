//! Waiting for a sink that is not there yet.

use messagepipeline::{ErrorClass, RetryPolicy, ServiceError, Shutdown, StageError, StageHealth, Summary};
use std::future::Future;
use std::time::Duration;

/// Longest wait for one call of `open`; whoever reaches outside has shorter deadlines of its own.
const DEADLINE: Duration = Duration::from_secs(120);

/// Calls `open` until it succeeds, with growing pauses; meanwhile `health` says why not. So a service whose sink is
/// down, missing or not permitted waits for a person or for better times, takes no message and loses none.
///
/// `Ok(false)`: the shutdown began before.
///
/// # Errors
/// An error that no waiting mends.
pub async fn open_when_possible<F>(
    open: impl Fn() -> F,
    health: &StageHealth,
    shutdown: &Shutdown,
) -> Result<bool, StageError>
where
    F: Future<Output = Result<(), StageError>>,
{
    let mut backoff = RetryPolicy { seed: crate::random_seed(), ..RetryPolicy::default() }.backoff(0);
    health.not_ready("opening");
    loop {
        let opened = tokio::select! {
            biased;
            () = shutdown.begun() => return Ok(false),
            opened = tokio::time::timeout(DEADLINE, open()) => opened,
        };
        let error = match opened {
            Ok(Ok(())) => return Ok(true),
            Ok(Err(error)) if error.class() == ErrorClass::Permanent => return Err(error),
            Ok(Err(error)) => error,
            Err(_) => StageError::transient("open-timeout", "no answer while opening"),
        };
        if backoff.tries() == 0 {
            let (stage, class) = (health.name(), error.class().as_str());
            tracing::warn!(stage, class, %error, "cannot be opened; tried again until it can");
        }
        health.not_ready(error.to_string());
        tokio::select! {
            biased;
            () = shutdown.begun() => return Ok(false),
            () = tokio::time::sleep(backoff.next_delay()) => {}
        }
    }
}

/// Waits until `open` succeeds, as [`open_when_possible`] does, and then runs `service`.
///
/// # Errors
/// An error of opening that no waiting mends, or the service's.
pub async fn run_when_open<F>(
    open: impl Fn() -> F,
    health: &StageHealth,
    shutdown: &Shutdown,
    service: impl Future<Output = Result<Summary, ServiceError>>,
) -> Result<(), StageError>
where
    F: Future<Output = Result<(), StageError>>,
{
    if !open_when_possible(open, health, shutdown).await? {
        return Ok(());
    }
    let ended = service.await;
    ended
        .map(drop)
        .map_err(|error| StageError::new(error.class(), "service", error.to_string()).with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::Health;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_is_missing_is_waited_for_and_health_says_why() {
        let (health, calls) = (Health::new(), AtomicU32::new(0));
        let stage = health.stage("bigquery");
        let open = || {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            let told = health.stages()[0].1.clone();
            async move {
                match call {
                    0 => Err(StageError::new(ErrorClass::Configuration, "missing", "dataset d is missing")),
                    1 => {
                        assert!(told.is_some_and(|reason| reason.contains("dataset d is missing")));
                        Err(StageError::transient("down", "no answer"))
                    }
                    _ => Ok(()),
                }
            }
        };
        assert!(open_when_possible(open, &stage, &Shutdown::new()).await.unwrap());
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_the_wait_and_a_permanent_error_too() {
        let (stage, shutdown) = (Health::new().stage("icestore"), Shutdown::new());
        let refused = || async { Err(StageError::permanent("impossible", "never")) };
        assert!(open_when_possible(refused, &stage, &shutdown).await.is_err());
        let down = || async {
            shutdown.begin();
            Err(StageError::transient("down", "no answer"))
        };
        assert!(!open_when_possible(down, &stage, &shutdown).await.unwrap());
    }
}

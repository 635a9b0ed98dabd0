//! What both services share towards their caller: options, the running service, its summary and its errors.

use crate::stage::Stage;
use crate::{
    DeadLetters, ErrorClass, FlushRequest, RetryPolicy, Shutdown, SourceWindow, StageError, StageHealth,
};
use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{JoinError, JoinHandle};

/// How a service works.
#[derive(Clone)]
pub struct ServiceOptions {
    /// Its name in metrics, dead letters and logs.
    pub stage: Cow<'static, str>,
    /// How many messages (streaming) or batches (batching) are with the processor at once; zero means 5.
    pub workers: usize,
    /// Deliveries after which a message at fault goes to the dead letters, by the consumer's count; zero: never.
    pub max_attempts: u32,
    /// How passing failures are repeated.
    pub retry: RetryPolicy,
    /// Where messages go that are given up on. Without it they are nacked.
    pub dead_letters: Option<Arc<dyn DeadLetters>>,
    /// The line on which the service reports whether it works.
    pub health: Option<StageHealth>,
    /// On request a batching service flushes its open groups before they are full or due.
    pub flush: Option<FlushRequest>,
    /// How far the consumer reads ahead of the oldest message without a verdict. A batching service whose groups wait
    /// for their age needs it: before the distance is used up it flushes the oldest group.
    pub window: Option<SourceWindow>,
}

impl ServiceOptions {
    /// The defaults for the service called `stage`.
    #[must_use]
    pub fn new(stage: impl Into<Cow<'static, str>>) -> Self {
        Self { stage: stage.into(), ..Self::default() }
    }

    pub(crate) const DEFAULT_WORKERS: usize = 5;
}

impl Default for ServiceOptions {
    fn default() -> Self {
        Self {
            stage: "stage".into(),
            workers: Self::DEFAULT_WORKERS,
            max_attempts: 5,
            retry: RetryPolicy::default(),
            dead_letters: None,
            health: None,
            flush: None,
            window: None,
        }
    }
}

impl fmt::Debug for ServiceOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceOptions")
            .field("stage", &self.stage)
            .field("workers", &self.workers)
            .field("max_attempts", &self.max_attempts)
            .field("retry", &self.retry)
            .field("dead_letters", &self.dead_letters.is_some())
            .finish_non_exhaustive()
    }
}

/// What became of the messages a service received. `received` is the sum of the others once it has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Taken from the consumer.
    pub received: u64,
    /// Done and acknowledged.
    pub done: u64,
    /// Ended by a rule and acknowledged.
    pub skipped: u64,
    /// Acknowledged because somebody else holds them durably.
    pub held: u64,
    /// Given to the dead letters and acknowledged.
    pub dead_lettered: u64,
    /// Nacked.
    pub nacked: u64,
    /// Given back as they came.
    pub returned: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { received, done, skipped, held, dead_lettered, nacked, returned } = self;
        write!(f, "{received} received: {done} done, {skipped} skipped, {held} held, ")?;
        write!(f, "{dead_lettered} dead-lettered, {nacked} nacked, {returned} returned")
    }
}

/// Why a service did not start, ended or did not stop in time.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The consumer could not be opened.
    #[error("failed to start message consumer: {0}")]
    Start(#[source] StageError),
    /// Receiving failed for good. What had been received was finished first.
    #[error("message consumer failed: {error} ({summary})")]
    Receive {
        /// The consumer's error.
        #[source]
        error: StageError,
        /// What had become of the messages until then.
        summary: Summary,
    },
    /// Some verdicts may not have reached the source; those messages come again.
    #[error("failed to stop message consumer: {error} ({summary})")]
    Close {
        /// The consumer's error.
        #[source]
        error: StageError,
        /// What had become of the messages.
        summary: Summary,
    },
    /// The deadline passed before the work in flight was done; that work was given back.
    #[error("timed out while stopping; work in flight was given back ({summary})")]
    Timeout {
        /// What had become of the messages.
        summary: Summary,
    },
    /// The service's own task panicked: a defect in Millstream. All that was not settled is given back.
    #[error("the service's own task panicked")]
    Panicked,
}

impl ServiceError {
    /// What starting again would bring.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Start(error) | Self::Receive { error, .. } | Self::Close { error, .. } => error.class(),
            Self::Timeout { .. } | Self::Panicked => ErrorClass::Transient,
        }
    }
}

impl From<ServiceError> for StageError {
    fn from(error: ServiceError) -> Self {
        let reason = match &error {
            ServiceError::Start(_) => "start-failed",
            ServiceError::Receive { .. } => "receive-failed",
            ServiceError::Close { .. } => "close-failed",
            ServiceError::Timeout { .. } => "stop-timeout",
            ServiceError::Panicked => "service-panicked",
        };
        Self::new(error.class(), reason, error.to_string()).with_source(error)
    }
}

/// A service at work. Dropping it stops it hard.
pub struct Running {
    shutdown: Shutdown,
    stage: Arc<Stage>,
    task: JoinHandle<Result<(), ServiceError>>,
}

impl Running {
    pub(crate) fn spawn(
        stage: Arc<Stage>,
        task: impl Future<Output = Result<(), ServiceError>> + Send + 'static,
    ) -> Self {
        Self { shutdown: stage.shutdown().clone(), stage, task: tokio::spawn(task) }
    }

    /// What has become of the messages so far; those in flight are in `received` only.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.stage.summary()
    }

    /// Waits until the service ends by itself (its source has ended or failed for good) or by its shutdown signals.
    ///
    /// # Errors
    /// When receiving failed for good, when closing the consumer failed, or when the hard signal cut work off.
    pub async fn wait(mut self) -> Result<Summary, ServiceError> {
        let ended = (&mut self.task).await;
        self.conclude(ended)
    }

    /// Takes nothing more, finishes what is in flight, flushes open batches, settles all and closes the consumer.
    /// After `deadline` it gives back what is not finished.
    ///
    /// # Errors
    /// [`ServiceError::Timeout`] when the deadline passed; else as [`Running::wait`].
    pub async fn stop(mut self, deadline: Duration) -> Result<Summary, ServiceError> {
        self.shutdown.begin();
        let ended = match tokio::time::timeout(deadline, &mut self.task).await {
            Ok(ended) => ended,
            Err(_) => {
                self.shutdown.abort();
                (&mut self.task).await
            }
        };
        self.conclude(ended)
    }

    fn conclude(&self, ended: Result<Result<(), ServiceError>, JoinError>) -> Result<Summary, ServiceError> {
        match ended {
            Ok(result) => result.map(|()| self.stage.summary()),
            Err(_) => Err(ServiceError::Panicked),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.abort();
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("summary", &self.summary()).finish_non_exhaustive()
    }
}

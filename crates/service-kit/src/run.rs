//! The tasks of a program: run until one fails or a signal comes, then drain.

use crate::signals::{Signals, Stop, govern};
use messagepipeline::Shutdown;
use std::fmt;
use std::future::Future;
use std::process::{ExitCode, Termination};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// How long tasks may take to end after the hard signal before they are dropped.
const ABORT_GRACE: Duration = Duration::from_secs(3);

/// How a program ends, as its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, and all of it accounted for.
    Done = 0,
    /// Something failed.
    Failed = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// The books do not balance.
    Unbalanced = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}

/// A task that did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The task's name.
    pub task: String,
    /// What became of it.
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.task, self.reason)
    }
}

/// How the tasks of a program ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tasks that did not end well, in the order in which they ended.
    pub failures: Vec<Failure>,
    /// Why the drain was cut short, if it was. What was in flight then comes again; nothing is lost.
    pub cut_short: Option<String>,
}

impl Outcome {
    /// [`Exit::Done`] if every task ended well and the drain was not cut short, else [`Exit::Failed`].
    #[must_use]
    pub fn exit(&self) -> Exit {
        if self.failures.is_empty() && self.cut_short.is_none() { Exit::Done } else { Exit::Failed }
    }
}

/// The tasks of a program by name. Dropping it drops them.
#[derive(Debug)]
pub struct Tasks {
    shutdown: Shutdown,
    running: JoinSet<Result<(), String>>,
    names: std::collections::HashMap<tokio::task::Id, Arc<str>>,
    outcome: Outcome,
}

impl Tasks {
    /// No tasks yet. They are to end when `shutdown` begins.
    #[must_use]
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, running: JoinSet::new(), names: std::collections::HashMap::new(), outcome: Outcome::default() }
    }

    /// Starts a task. It ends by itself when the shutdown begins, or earlier when its work is done.
    pub fn spawn<F, E>(&mut self, name: impl Into<Arc<str>>, task: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let handle = self.running.spawn(async move { task.await.map_err(|error| error.to_string()) });
        self.names.insert(handle.id(), name.into());
    }

    /// Runs until every task has ended. A signal, the first failure (a panic is one) or somebody else's call of
    /// [`Shutdown::begin`] starts the drain; `drain_deadline` later, or at a second signal, it is aborted.
    pub async fn run(mut self, signals: Signals, drain_deadline: Duration) -> Outcome {
        let shutdown = self.shutdown.clone();
        let governor = govern(signals, shutdown.clone(), drain_deadline, crate::signals::say_on_stderr);
        tokio::pin!(governor);
        loop {
            tokio::select! {
                biased;
                stop = &mut governor => {
                    self.outcome.cut_short = Some(stop.to_string());
                    self.end_aborted(&stop).await;
                    return self.outcome;
                }
                ended = self.running.join_next_with_id() => match ended {
                    None => return self.outcome,
                    Some(ended) => {
                        if self.note(ended) {
                            shutdown.begin();
                        }
                    }
                },
            }
        }
    }

    /// Gives the tasks a moment to give back what they hold; drops those that do not end.
    async fn end_aborted(&mut self, _stop: &Stop) {
        let ended_in_time = tokio::time::timeout(ABORT_GRACE, async {
            while let Some(ended) = self.running.join_next_with_id().await {
                self.note(ended);
            }
        });
        if ended_in_time.await.is_ok() {
            return;
        }
        self.running.abort_all();
        while let Some(ended) = self.running.join_next_with_id().await {
            self.note(ended);
        }
    }

    /// Notes how a task ended; whether it failed.
    fn note(&mut self, ended: Result<(tokio::task::Id, Result<(), String>), tokio::task::JoinError>) -> bool {
        let (id, reason) = match ended {
            Ok((id, Ok(()))) => {
                self.names.remove(&id);
                return false;
            }
            Ok((id, Err(reason))) => (id, reason),
            Err(error) => (error.id(), join_error(error)),
        };
        let task = self.names.remove(&id).map_or_else(String::new, |name| name.to_string());
        tracing::error!(task, reason, "a task failed");
        self.outcome.failures.push(Failure { task, reason });
        true
    }
}

fn join_error(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            format!("panicked: {}", text.unwrap_or_else(|| "no message".to_owned()))
        }
        Err(_) => "did not stop and was dropped".to_owned(),
    }
}

//! The tasks of a program: run until one fails or a signal comes, then drain.

use crate::signals::{Signals, govern, say_on_stderr};
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
        Self {
            shutdown,
            running: JoinSet::new(),
            names: std::collections::HashMap::new(),
            outcome: Outcome::default(),
        }
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
        let governor = govern(signals, shutdown.clone(), drain_deadline, say_on_stderr);
        tokio::pin!(governor);
        loop {
            tokio::select! {
                biased;
                stop = &mut governor => {
                    self.outcome.cut_short = Some(stop.to_string());
                    self.end_aborted().await;
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
    async fn end_aborted(&mut self) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signals::Signal;
    use std::convert::Infallible;
    use tokio::time::Instant;

    const DEADLINE: Duration = Duration::from_secs(25);

    /// A stage that needs `drain` to finish after the soft signal and gives up at the hard one.
    async fn stage(shutdown: Shutdown, drain: Duration) -> Result<(), Infallible> {
        shutdown.begun().await;
        tokio::select! {
            () = tokio::time::sleep(drain) => {}
            () = shutdown.aborted() => {}
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_signal_drains_and_a_finished_drain_is_a_success() {
        let (shutdown, (sender, signals)) = (Shutdown::new(), Signals::channel());
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("bigquery", stage(shutdown.clone(), Duration::from_secs(20)));
        sender.send(Signal::Terminate).await.unwrap();
        let start = Instant::now();
        let outcome = tasks.run(signals, DEADLINE).await;
        assert_eq!((outcome.exit(), start.elapsed()), (Exit::Done, Duration::from_secs(20)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_is_too_slow_is_aborted_at_the_deadline_and_says_so() {
        let (shutdown, (sender, signals)) = (Shutdown::new(), Signals::channel());
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("icestore", stage(shutdown.clone(), Duration::from_secs(60)));
        sender.send(Signal::Interrupt).await.unwrap();
        let start = Instant::now();
        let outcome = tasks.run(signals, DEADLINE).await;
        assert_eq!((outcome.exit(), start.elapsed()), (Exit::Failed, DEADLINE));
        assert_eq!(outcome.cut_short.as_deref(), Some("the drain did not end within 25s"));
        assert_eq!(outcome.failures, []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_stops_at_once() {
        let (shutdown, (sender, signals)) = (Shutdown::new(), Signals::channel());
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("icestore", stage(shutdown.clone(), Duration::from_secs(60)));
        sender.send(Signal::Interrupt).await.unwrap();
        sender.send(Signal::Interrupt).await.unwrap();
        let start = Instant::now();
        let outcome = tasks.run(signals, DEADLINE).await;
        assert_eq!((outcome.exit(), start.elapsed()), (Exit::Failed, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_failure_drains_the_others_and_panics_are_failures() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("bigquery", stage(shutdown.clone(), Duration::from_secs(1)));
        tasks.spawn("enrichment", async { Err("no registry") });
        let panics =
            |broken: bool| async move { if broken { panic!("index 7") } else { Ok::<(), Infallible>(()) } };
        tasks.spawn("ingestion", panics(true));
        let mut outcome = tasks.run(Signals::channel().1, DEADLINE).await;
        outcome.failures.sort_by(|a, b| a.task.cmp(&b.task));
        let told: Vec<String> = outcome.failures.iter().map(Failure::to_string).collect();
        assert_eq!(told, ["enrichment: no registry", "ingestion: panicked: index 7"]);
        assert_eq!((outcome.exit(), outcome.cut_short), (Exit::Failed, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ignores_the_hard_signal_is_dropped_and_named() {
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        tasks.spawn("stuck", std::future::pending::<Result<(), Infallible>>());
        shutdown.begin();
        let outcome = tasks.run(Signals::channel().1, DEADLINE).await;
        assert_eq!(outcome.failures[0].to_string(), "stuck: did not stop and was dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn a_program_whose_tasks_are_done_ends_without_a_signal() {
        let mut tasks = Tasks::new(Shutdown::new());
        tasks.spawn("feed", async { Ok::<(), Infallible>(()) });
        assert_eq!(tasks.run(Signals::channel().1, DEADLINE).await.exit(), Exit::Done);
    }
}

//! SIGTERM and SIGINT (Ctrl-C): the first drains, the second stops at once.

use messagepipeline::Shutdown;
use std::fmt;
use std::future::Future;
use std::io::Write;
use std::time::Duration;
use tokio::sync::mpsc;

/// A request to stop from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, what Ctrl-C sends.
    Interrupt,
    /// SIGTERM, what service managers and container runtimes send.
    Terminate,
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        })
    }
}

/// Where signals come from.
#[derive(Debug)]
pub struct Signals(mpsc::Receiver<Signal>);

impl Signals {
    /// The process's own SIGINT and SIGTERM; they no longer end it by themselves.
    ///
    /// # Errors
    /// When the operating system refuses to install the handlers.
    pub fn os() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let (sender, signals) = Self::channel();
        tokio::spawn(async move {
            loop {
                let signal = tokio::select! {
                    Some(()) = interrupt.recv() => Signal::Interrupt,
                    Some(()) = terminate.recv() => Signal::Terminate,
                    () = sender.closed() => return,
                    else => return,
                };
                // Full means that nobody has taken the earlier ones yet; one more would say nothing new.
                let _ = sender.try_send(signal);
            }
        });
        Ok(signals)
    }

    /// Signals that the caller sends: for tests, and for programs with another way to be stopped.
    #[must_use]
    pub fn channel() -> (mpsc::Sender<Signal>, Self) {
        let (sender, receiver) = mpsc::channel(4);
        (sender, Self(receiver))
    }

    /// Drives `start` to its end, unless a signal comes first: then `shutdown` has begun and the answer is `None`. What
    /// was being opened is dropped where it stood, as a kill would leave it.
    pub async fn unless_stopped<T>(
        &mut self,
        shutdown: &Shutdown,
        start: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            biased;
            signal = self.next() => {
                say_on_stderr(&format!("{signal}: stopping, though not everything was started"));
                shutdown.begin();
                None
            }
            started = start => Some(started),
        }
    }

    /// The next signal. Never ready once nobody can send one any more.
    async fn next(&mut self) -> Signal {
        match self.0.recv().await {
            Some(signal) => signal,
            None => std::future::pending().await,
        }
    }
}

/// Why a drain was cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    SecondSignal(Signal),
    Deadline(Duration),
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SecondSignal(signal) => write!(f, "a second signal ({signal}) stopped the drain"),
            Self::Deadline(deadline) => {
                write!(f, "the drain did not end within {}", crate::config::Duration::from(*deadline))
            }
        }
    }
}

/// Begins the shutdown at the first signal and aborts it at the second or when `deadline` has passed since it began,
/// whoever began it. Ends when it has aborted.
pub(crate) async fn govern(
    mut signals: Signals,
    shutdown: Shutdown,
    deadline: Duration,
    say: impl Fn(&str),
) -> Stop {
    tokio::select! {
        signal = signals.next() => {
            say(&format!("{signal}: draining, for at most {}; once more stops at once", crate::config::Duration::from(deadline)));
            shutdown.begin();
        }
        () = shutdown.begun() => {}
    }
    let stop = tokio::select! {
        signal = signals.next() => Stop::SecondSignal(signal),
        () = tokio::time::sleep(deadline) => Stop::Deadline(deadline),
    };
    say(&format!("{stop}: stopping at once; what is in flight comes again"));
    shutdown.abort();
    stop
}

/// Speaks to the person at the terminal whatever the log's level is.
pub(crate) fn say_on_stderr(message: &str) {
    // Nobody to tell if standard error is closed.
    let _ = writeln!(std::io::stderr().lock(), "{message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_ends_a_start_that_waits_and_a_start_that_ends_is_told() {
        let (shutdown, (sender, mut signals)) = (Shutdown::new(), Signals::channel());
        assert_eq!(signals.unless_stopped(&shutdown, async { 7 }).await, Some(7));
        assert!(!shutdown.has_begun());
        sender.send(Signal::Terminate).await.unwrap();
        assert_eq!(signals.unless_stopped(&shutdown, std::future::pending::<()>()).await, None);
        assert!(shutdown.has_begun());
    }
}

//! Shutdown in two steps, owned by the program.

use tokio_util::sync::CancellationToken;

/// The two signals of a shutdown. Cloning shares them.
///
/// *Soft*: take nothing more, finish and settle what is in flight, flush batches at once. *Hard*: the deadline has
/// passed; drop everything, which gives it back. A final flush never runs under an already cancelled signal: what
/// soft starts only hard stops.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    soft: CancellationToken,
    hard: CancellationToken,
}

impl Shutdown {
    /// Signals that nobody has given yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the soft signal.
    pub fn begin(&self) {
        self.soft.cancel();
    }

    /// Gives both signals.
    pub fn abort(&self) {
        self.soft.cancel();
        self.hard.cancel();
    }

    /// Whether the soft signal was given.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.soft.is_cancelled()
    }

    /// Waits for the soft signal.
    pub async fn begun(&self) {
        self.soft.cancelled().await;
    }

    /// Waits for the hard signal.
    pub async fn aborted(&self) {
        self.hard.cancelled().await;
    }

    /// Signals of a part: this one's signals reach the part, the part's own do not reach back.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { soft: self.soft.child_token(), hard: self.hard.child_token() }
    }
}

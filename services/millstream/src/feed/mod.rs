//! Publishes to an MQTT broker as devices would: recordings, or a simulated fleet.
//!
//! ```text
//!            thread                task                      task per connection
//!  Source ─► read ──chunks──► dispatch ──queue by key────► Connection ◄──MQTT──► broker
//!            lines, topics    pacing                        Window: PUBACK ─► line
//! ```
//!
//! - Each PUBACK is traced to its line. A connection that breaks is made again, and all that had no PUBACK is sent
//!   again, in order, with the DUP flag where the broker kept the session.
//! - Every queue is bounded: a broker that acknowledges slowly makes the reader wait.
//! - All messages of one topic, so of one device, go through one connection, in order. Of messages that came before the
//!   device is known, and takes the topic's place.
//! - A line without a usable topic, and a message that the broker refuses, is counted and named; the rest goes on, and
//!   [`FeedReport::is_success`] is false in the end. A recording that cannot be read on ends the feed after what was
//!   read has been acknowledged.
//!
//! The client libraries at hand trace a publish to its PUBACK at the price of a channel and an allocation per message,
//! and keep what is unacknowledged to themselves; so this is a publisher on their codecs.

mod acked;
mod connection;
mod dispatch;
mod error;
mod link;
mod network;
mod options;
mod progress;
mod properties;
mod source;
mod window;
mod wire;

pub use error::FeedError;
pub use options::{BrokerAddress, Credentials, FeedOptions, Protocol};
pub use progress::{Counts, KEPT_PROBLEMS, Problem, Progress};
pub use source::{Item, Numbering, Origin, Playlist, Publication, Source};

use connection::Connection;
use messagepipeline::Shutdown;
use network::Target;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// Chunks that may wait for one connection.
const QUEUE: usize = 2;

/// How long a feed that is told to stop waits for the PUBACKs of what it has sent.
const GRACE: Duration = Duration::from_secs(5);

/// How a feed ended.
#[derive(Debug)]
pub enum Ended {
    /// All was published, and at QoS 1 answered.
    Complete,
    /// The shutdown came first.
    Stopped,
    /// It could not go on.
    Failed(FeedError),
}

/// What a feed did.
#[derive(Debug)]
pub struct FeedReport {
    /// How it ended.
    pub ended: Ended,
    /// The counters at its end.
    pub counts: Counts,
    /// The first lines that were not taken.
    pub problems: Vec<Problem>,
    /// Connections it was to use; one without messages is not made.
    pub connections: u16,
    /// How long it took.
    pub elapsed: Duration,
}

impl FeedReport {
    /// Whether every line was published and none refused.
    #[must_use]
    pub fn is_success(&self) -> bool {
        matches!(self.ended, Ended::Complete) && self.counts.refused == 0 && self.counts.skipped == 0
    }
}

/// What the connections of one feed share.
struct Shared {
    options: FeedOptions,
    target: Target,
    progress: Progress,
    numbering: Numbering,
    acked: Option<mpsc::Sender<Vec<u64>>>,
    shutdown: Shutdown,
}

/// Publishes all that `source` makes. `progress` can be watched meanwhile.
///
/// The soft signal of `shutdown` ends it after what was sent is acknowledged, at most five seconds later; the hard
/// one at once.
pub async fn run(
    options: FeedOptions,
    source: impl Source,
    progress: Progress,
    shutdown: &Shutdown,
) -> FeedReport {
    let (started, connections) = (Instant::now(), options.connections);
    let ended = match play(options, source, &progress, shutdown).await {
        Ok(true) => Ended::Complete,
        Ok(false) => Ended::Stopped,
        Err(error) => Ended::Failed(error),
    };
    let (counts, problems) = (progress.counts(), progress.problems());
    FeedReport { ended, counts, problems, connections, elapsed: started.elapsed() }
}

async fn play(
    options: FeedOptions,
    source: impl Source,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<bool, FeedError> {
    options.validate()?;
    let target = Target::new(&options.broker, &options.tls)?;
    let mut acked = None;
    let mut written = None;
    if let Some(path) = options.acked.clone() {
        match acked::write_to(&path) {
            Ok(list) => {
                acked = Some(list.numbers);
                written = Some((path, list.written));
            }
            Err(source) => return Err(FeedError::Acked { path, source }),
        }
    }
    let numbering = source.numbering();
    let shared =
        Shared { options, target, progress: progress.clone(), numbering, acked, shutdown: shutdown.child() };
    let published = publish(shared, source, shutdown).await;
    if let Some((path, written)) = written {
        // Its failure is the cause of what the connections report then.
        if let Ok(Err(source)) = written.await {
            return Err(FeedError::Acked { path, source });
        }
    }
    published
}

async fn publish(shared: Shared, source: impl Source, shutdown: &Shutdown) -> Result<bool, FeedError> {
    let (inner, progress) = (shared.shutdown.clone(), shared.progress.clone());
    let reading = dispatch::read(source, shared.progress.clone()).map_err(|_| FeedError::Source)?;
    let shared = Arc::new(shared);
    let mut tasks = JoinSet::new();
    let mut queues = Vec::new();
    for number in 1..=shared.options.connections {
        let (sender, queue) = mpsc::channel(QUEUE);
        queues.push(sender);
        tasks.spawn(Connection::new(Arc::clone(&shared), number, queue).run());
    }
    drop(shared);
    let dispatched = dispatch::dispatch(reading.chunks, queues, progress.any_connected(), inner.clone());
    let all = async { tokio::join!(dispatched, finish(tasks, &inner)) };
    let stop_late = async {
        shutdown.begun().await;
        sleep(GRACE).await;
        inner.abort();
        std::future::pending::<Infallible>().await
    };
    let (at_end, finished) = tokio::select! {
        both = all => both,
        never = stop_late => match never {},
    };
    let all_taken = finished?;
    if at_end {
        reading.outcome.await.map_err(|_| FeedError::Source)??;
    }
    Ok(at_end && all_taken)
}

/// Waits for all connections. The first error stops the others.
async fn finish(mut tasks: JoinSet<Result<bool, FeedError>>, inner: &Shutdown) -> Result<bool, FeedError> {
    let mut outcome = Ok(true);
    while let Some(joined) = tasks.join_next().await {
        match joined.unwrap_or(Err(FeedError::Source)) {
            Ok(all_taken) => outcome = outcome.map(|so_far| so_far && all_taken),
            Err(error) => {
                inner.abort();
                outcome = outcome.and(Err(error));
            }
        }
    }
    outcome
}

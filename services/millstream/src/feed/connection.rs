//! One client: connects, publishes, connects again.

use super::link::{Broken, Link};
use super::source::Publication;
use super::window::Window;
use super::wire::{Incoming, Outgoing};
use super::{FeedError, Progress, Shared};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

/// How long a broker that was never there is waited for. Long enough to start both at once.
const START_PATIENCE: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Connection {
    shared: Arc<Shared>,
    client_id: String,
    queue: mpsc::Receiver<Vec<Publication>>,
    queue_open: bool,
    pending: VecDeque<Publication>,
    window: Window,
    trouble: Trouble,
    ever_connected: bool,
}

/// Broken connections since the last progress.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
    breaks: u32,
}

/// Counts a connection as standing while it lives.
struct Standing {
    progress: Progress,
    ended_well: bool,
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.progress.disconnected(!self.ended_well);
    }
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, number: u16, queue: mpsc::Receiver<Vec<Publication>>) -> Self {
        let client_id = format!("{}-{number}", shared.options.client_id);
        let window = Window::new(shared.options.window);
        let (pending, trouble) = (VecDeque::new(), Trouble::default());
        Self { shared, client_id, queue, queue_open: true, pending, window, trouble, ever_connected: false }
    }

    /// Publishes until the queue ends or the shutdown says stop. Answers whether all that came was taken by the broker.
    pub(super) async fn run(mut self) -> Result<bool, FeedError> {
        let shutdown = self.shared.shutdown.clone();
        tokio::select! {
            biased;
            () = shutdown.aborted() => Ok(false),
            done = self.publish_all() => done,
        }
    }

    async fn publish_all(&mut self) -> Result<bool, FeedError> {
        loop {
            self.wait_for_work().await;
            if self.is_done() {
                return Ok(true);
            }
            match self.serve().await {
                Ok(()) => return Ok(true),
                Err(Broken::Lasting(error)) => return Err(error),
                Err(Broken::Passing(reason) | Broken::Untrusted(reason)) => {
                    if self.is_done() {
                        return Ok(true);
                    }
                    let pause = self.pause_after(&reason)?;
                    tokio::select! {
                        () = sleep(pause) => {}
                        // Nobody to send to, and no time to wait for one.
                        () = self.shared.shutdown.begun() => return Ok(false),
                    }
                }
            }
        }
    }

    /// A client without messages does not connect.
    async fn wait_for_work(&mut self) {
        while self.queue_open && self.pending.is_empty() && self.window.is_empty() {
            tokio::select! {
                batch = self.queue.recv() => self.take(batch),
                () = self.shared.shutdown.begun() => self.stop(),
            }
        }
    }

    async fn serve(&mut self) -> Result<(), Broken> {
        let shared = Arc::clone(&self.shared);
        let (mut link, grant) = Link::open(&shared, &self.client_id).await?;
        debug!(client_id = self.client_id, session_present = grant.session_present, "connected");
        shared.progress.connected();
        let mut standing = Standing { progress: shared.progress.clone(), ended_well: false };
        if !std::mem::replace(&mut self.ever_connected, true) {
            shared.progress.connected_first();
        }
        self.window.connected(grant.session_present, grant.receive_maximum.max(1));
        if self.window.is_empty() {
            self.recovered();
        }
        loop {
            self.fill(&mut link);
            if self.is_done() && link.out.is_empty() {
                link.close().await;
                standing.ended_well = true;
                return Ok(());
            }
            let next_check = link.next_check();
            tokio::select! {
                biased;
                read = link.reader.read_buf(&mut link.inbox) => {
                    link.received(read)?;
                    self.take_answers(&mut link).await?;
                }
                written = link.writer.write_buf(&mut link.out), if !link.out.is_empty() => {
                    if let Err(broken) = link.written(written) {
                        link.read_last_words().await;
                        self.take_answers(&mut link).await?;
                        return Err(broken);
                    }
                }
                batch = self.queue.recv(), if self.wants_more() => self.take(batch),
                () = shared.shutdown.begun(), if self.queue_open => self.stop(),
                () = sleep_until(next_check) => link.keep_alive()?,
            }
        }
    }

    fn take(&mut self, batch: Option<Vec<Publication>>) {
        match batch {
            Some(batch) => self.pending.extend(batch),
            None => self.queue_open = false,
        }
    }

    /// Sends nothing more than what is on its way.
    fn stop(&mut self) {
        self.queue.close();
        while self.queue.try_recv().is_ok() {}
        self.queue_open = false;
        self.pending.clear();
    }

    fn wants_more(&self) -> bool {
        self.queue_open && self.pending.is_empty() && self.window.has_room()
    }

    fn is_done(&self) -> bool {
        !self.queue_open && self.pending.is_empty() && self.window.is_empty()
    }

    /// Encodes what window and write buffer have room for.
    fn fill(&mut self, link: &mut Link) {
        let (mut sent, mut bytes, mut resent) = (0, 0, 0);
        while link.has_room() {
            if self.shared.options.qos == 0 {
                let Some(publication) = self.pending.pop_front() else { break };
                if self.encode_unacknowledged(link, &publication) {
                    sent += 1;
                    bytes += publication.payload.len() as u64;
                }
                continue;
            }
            if self.window.has_room()
                && let Some(publication) = self.pending.pop_front()
            {
                self.window.push(publication);
            }
            let Some(next) = self.window.next_to_write() else { break };
            let (packet_id, number, again) = (next.packet_id, next.publication.number, next.again);
            let (dup, publication) = (next.dup, next.publication);
            let size = publication.payload.len() as u64;
            match link.wire.publish(&Outgoing { packet_id, dup, publication }, &mut link.out) {
                Ok(()) if again => resent += 1,
                Ok(()) => {
                    sent += 1;
                    bytes += size;
                }
                Err(reason) => {
                    self.window.settle(packet_id);
                    self.shared.progress.refused(&self.shared.numbering, number, reason);
                }
            }
        }
        if sent + resent > 0 {
            self.shared.progress.written(sent, bytes, resent);
        }
    }

    fn encode_unacknowledged(&self, link: &mut Link, publication: &Publication) -> bool {
        match link.wire.publish(&Outgoing { packet_id: 0, dup: false, publication }, &mut link.out) {
            Ok(()) => true,
            Err(reason) => {
                self.shared.progress.refused(&self.shared.numbering, publication.number, reason);
                false
            }
        }
    }

    /// Takes all packets that have arrived. What they acknowledge is noted even if one behind them is an error.
    async fn take_answers(&mut self, link: &mut Link) -> Result<(), Broken> {
        let mut acked = Vec::new();
        let outcome = self.decode_answers(link, &mut acked);
        if !acked.is_empty() {
            self.shared.progress.acked(acked.len() as u64);
            self.recovered();
            if let Some(list) = &self.shared.acked
                && list.send(acked).await.is_err()
            {
                return Err(Broken::Lasting(FeedError::Source));
            }
        }
        outcome
    }

    fn decode_answers(&mut self, link: &mut Link, acked: &mut Vec<u64>) -> Result<(), Broken> {
        while let Some(packet) = link.wire.decode(&mut link.inbox).map_err(Broken::Passing)? {
            match packet {
                Incoming::PubAck { packet_id, refused } => match (self.window.settle(packet_id), refused) {
                    (Some(number), None) => acked.push(number),
                    (Some(number), Some(reason)) => {
                        self.trouble = Trouble::default();
                        self.shared.progress.refused(&self.shared.numbering, number, reason);
                    }
                    (None, _) => {
                        warn!(client_id = self.client_id, packet_id, "a PUBACK for no message of ours")
                    }
                },
                Incoming::Disconnect { reason, lasting: true } => {
                    let (address, client_id) =
                        (self.shared.options.broker.to_string(), self.client_id.clone());
                    return Err(Broken::Lasting(FeedError::Refused { address, client_id, reason }));
                }
                Incoming::Disconnect { reason, .. } => {
                    return Err(Broken::Passing(format!("the broker closed it with {reason}")));
                }
                Incoming::PingResp => {}
                Incoming::Connected(_) | Incoming::Refused { .. } | Incoming::Other => {
                    return Err(Broken::Passing(
                        "the broker sent what no publishing client expects".to_owned(),
                    ));
                }
            }
        }
        Ok(())
    }

    fn recovered(&mut self) {
        if self.trouble.breaks > 0 {
            info!(client_id = self.client_id, "publishing again");
            self.trouble = Trouble::default();
        }
    }

    /// How long to wait before the next connection, or the error that says why there will be none.
    fn pause_after(&mut self, reason: &str) -> Result<Duration, FeedError> {
        let options = &self.shared.options;
        let address = options.broker.to_string();
        let now = Instant::now();
        let waited = now - *self.trouble.since.get_or_insert(now);
        self.trouble.breaks += 1;
        if !self.ever_connected {
            if waited >= options.patience.min(START_PATIENCE) {
                return Err(FeedError::Unreachable { address, reason: reason.to_owned() });
            }
        } else if waited >= options.patience {
            let place = self.window.oldest().map_or_else(
                || "none".to_owned(),
                |publication| self.shared.numbering.place(publication.number),
            );
            let (breaks, reason) = (self.trouble.breaks, reason.to_owned());
            return Err(FeedError::Stuck { address, breaks, waited, reason, place });
        }
        if self.trouble.breaks == 1 {
            warn!(client_id = self.client_id, address, reason, "no connection to the broker, trying again");
        }
        let doublings = self.trouble.breaks.min(8) - 1;
        Ok((FIRST_PAUSE * 2u32.pow(doublings)).min(LONGEST_PAUSE))
    }
}

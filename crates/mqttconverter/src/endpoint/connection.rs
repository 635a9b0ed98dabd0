//! The task of one connection.
//!
//! It reads, hands what it read over as one chunk, and writes the PUBACKs that verdicts have made ready. While the
//! pipeline or the session's window is full it does not read, so that the client is slowed down by TCP; PUBACKs are
//! written all the while.

mod ending;
mod reading;

use super::budget::{Arriving, SMALL_PACKET, Waits};
use super::handshake::Accepted;
use super::intake::{Gate, Will};
use super::reason::Reason;
use super::reply;
use super::session::{Attachment, Standing};
use super::shared::{Phase, Sender, Shared};
use super::wire::{Event, Wire};
pub(super) use ending::WaitingWill;
use futures_util::FutureExt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

/// Answers that wait for a client that does not read; beyond this nothing more is read from it.
const MAX_OUTPUT_BYTES: usize = 4 * 1024;

/// A packet may take a second for each so many bytes that have come, beside the stall timeout.
const LEAST_BYTES_PER_SECOND: usize = 1_024;

/// How long others wait to send a large packet until who is slow makes room for them.
const CROWDED_PATIENCE: Duration = Duration::from_secs(10);

/// How often the clock is looked at while a large packet arrives.
const LARGE_TICK: Duration = Duration::from_secs(1);

/// The timer is never set closer than this, so that rounding cannot make it spin.
const MIN_TICK: Duration = Duration::from_millis(10);

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client said DISCONNECT.
    Left { publish_will: bool },
    /// The client is gone without a word.
    Gone,
    /// We end it.
    Refused(Reason),
}

impl End {
    /// MQTT 5, section 3.1.2.5. A server that stops takes nothing more, wills neither.
    const fn publishes_will(self) -> bool {
        match self {
            Self::Left { publish_will } => publish_will,
            Self::Gone => true,
            Self::Refused(reason) => !matches!(reason, Reason::ShuttingDown),
        }
    }
}

/// Why no further packet is decoded for now.
enum Pause {
    /// The rest of a packet is missing: so many bytes in all, if its header is there.
    Incomplete(Option<usize>),
    /// The session's window is full.
    WindowFull,
    /// The chunk is full.
    ChunkFull,
    End(End),
}

/// How much may be read at once.
#[derive(Clone, Copy)]
enum Most {
    /// What the connections that wait for room leave ([`Budget::read_share`](super::budget::Budget::read_share)).
    Share,
    Bytes(usize),
}

/// See the module's documentation.
pub(super) struct Connection {
    shared: Arc<Shared>,
    wire: Wire,
    attachment: Attachment,
    gate: Gate,
    is_resumed: bool,
    keep_alive: Option<Duration>,
    will: Option<Box<Will>>,
    expiry: Duration,
    expiry_changed: bool,
    /// Absent once nothing more is handed over.
    sender: Option<Sender>,
    phase: watch::Receiver<Phase>,
    timer: Pin<Box<Sleep>>,
    /// When we last read, or began to.
    heard: Instant,
    reading: bool,
    /// The last look at the clock found the client late.
    doubted: bool,
    /// Since when a packet is arriving.
    incomplete_since: Option<(Instant, usize)>,
    /// Present while the session's window is full.
    window_full: Option<Waits>,
    /// For the large packet in the input, until the pipeline has it.
    large: Option<Arriving>,
    /// The socket failed; what was read is still handed over.
    broken: bool,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, wire: Wire, accepted: Accepted, sender: Sender) -> Self {
        let now = Instant::now();
        let tick = accepted
            .keep_alive
            .map_or(shared.options.stall_timeout, |limit| limit.min(shared.options.stall_timeout));
        let gate = Gate {
            version: accepted.version,
            grant: accepted.grant,
            aliases: super::intake::Aliases::default(),
            hasher: shared.hasher.clone(),
        };
        Self {
            phase: shared.phase.subscribe(),
            wire,
            attachment: accepted.attachment,
            gate,
            is_resumed: accepted.is_resumed,
            keep_alive: accepted.keep_alive,
            will: accepted.will,
            expiry: accepted.expiry,
            expiry_changed: false,
            sender: Some(sender),
            timer: Box::pin(sleep_until(now + tick)),
            heard: now,
            reading: false,
            doubted: false,
            incomplete_since: None,
            window_full: None,
            large: None,
            broken: false,
            shared,
        }
    }

    /// Serves the client until its connection ends. What is left to do then needs no connection.
    pub(super) async fn run(mut self) -> Option<WaitingWill> {
        let end = self.serve().await;
        self.conclude(end).await
    }

    async fn serve(&mut self) -> End {
        // The CONNECT may have come with packets behind it.
        let mut undecoded = true;
        loop {
            if let Some(end) = self.collect() {
                return end;
            }
            if undecoded || self.window_full.is_some() {
                match self.take_in().await {
                    Pause::End(end) => return end,
                    Pause::ChunkFull => continue,
                    Pause::WindowFull | Pause::Incomplete(_) => undecoded = false,
                }
                // What was taken in may be answered at once: a refusal, or a repetition of what is stored.
                if let Some(end) = self.collect() {
                    return end;
                }
            }
            let phase = *self.phase.borrow_and_update();
            match phase {
                Phase::Open => {}
                Phase::Draining if self.window_full.is_some() => {}
                Phase::Draining => self.sender = None,
                Phase::Closing => return End::Refused(Reason::ShuttingDown),
            }
            match self.wait((phase == Phase::Open).then_some(Most::Share)).await {
                Ok(Some(Event::Read)) => undecoded = true,
                Ok(Some(Event::End)) => return End::Gone,
                Ok(Some(Event::Written) | None) => {}
                Err(end) => return end,
            }
        }
    }

    /// Writes the replies that are ready into the output, and looks whether the connection may go on.
    fn collect(&mut self) -> Option<End> {
        let output = &mut self.wire.output;
        match self.attachment.collect(|answer| reply::answer(output, answer)) {
            Standing::Good => None,
            Standing::TakenOver => Some(End::Refused(Reason::TakenOver)),
            Standing::Failed => Some(End::Refused(Reason::ServerBusy)),
        }
    }

    /// Waits until something happens that the loop must look at; reads at most so much at once, or nothing.
    async fn wait(&mut self, most: Option<Most>) -> Result<Option<Event>, End> {
        let may_read = self.window_full.is_none() && self.wire.output.len() < MAX_OUTPUT_BYTES;
        let most = most.filter(|_| may_read);
        if most.is_some() && !self.reading {
            // Silence that we did not listen to is not the client's.
            self.heard = Instant::now();
            if let Some((since, _)) = &mut self.incomplete_since {
                *since = self.heard;
            }
        }
        self.reading = most.is_some();
        let budget = &self.shared.budget;
        let most = || match most {
            None => 0,
            Some(Most::Share) => budget.read_share(),
            Some(Most::Bytes(bytes)) => bytes,
        };
        tokio::select! {
            event = self.wire.next_within(most) => {
                self.note(Some(event))
            }
            () = self.attachment.woken() => Ok(None),
            _ = self.phase.changed() => Ok(None),
            () = self.timer.as_mut() => {
                // When the process was paused, the timer may come before what the client said meanwhile.
                let waiting = self.wire.next_within(most).now_or_never();
                let event = self.note(waiting)?;
                self.look_at_clock()?;
                self.set_timer();
                Ok(event)
            }
        }
    }

    fn note(&mut self, event: Option<io::Result<Event>>) -> Result<Option<Event>, End> {
        let event = event.transpose().map_err(|_| End::Gone)?;
        if event == Some(Event::Read) {
            self.heard = Instant::now();
        }
        Ok(event)
    }

    /// The timer is moved only when it has run out: that is once per interval instead of once per read.
    fn set_timer(&mut self) {
        let now = Instant::now();
        let is_large = self.incomplete_since.is_some_and(|(_, bytes)| bytes > SMALL_PACKET);
        let stall = self.shared.options.stall_timeout;
        let latest = now + if is_large { stall.min(LARGE_TICK) } else { stall };
        let next = if self.doubted {
            now
        } else {
            // While we do not listen the client cannot be late.
            let heard = if self.reading { self.heard } else { now };
            self.keep_alive.map_or(latest, |limit| latest.min(heard + limit))
        };
        self.timer.as_mut().reset(next.max(now + MIN_TICK));
    }

    /// Ends a connection whose client is late at two looks: between them the runtime has asked the sockets.
    fn look_at_clock(&mut self) -> Result<(), End> {
        self.attachment.with_window(super::window::Window::shrink);
        if self.wire.stalled_for() >= self.shared.options.stall_timeout {
            return Err(End::Gone);
        }
        // Also one that is not read, because its client does not read our answers, holds room that others wait for.
        let is_late = self.reading && self.is_late() || self.must_yield();
        if is_late && self.doubted {
            return Err(End::Refused(Reason::KeepAliveTimeout));
        }
        self.doubted = is_late;
        Ok(())
    }

    /// Whether the client is silent for too long, or a packet of its takes too long to arrive.
    fn is_late(&self) -> bool {
        let now = Instant::now();
        let stall = self.shared.options.stall_timeout;
        let is_slow = self.incomplete_since.is_some_and(|(since, _)| {
            let earned = Duration::from_secs((self.wire.input.len() / LEAST_BYTES_PER_SECOND) as u64);
            now.duration_since(since) >= stall + earned
        });
        is_slow || self.keep_alive.is_some_and(|limit| now.duration_since(self.heard) >= limit)
    }

    /// Whether a large packet that arrives must make room for those that wait.
    fn must_yield(&self) -> bool {
        let arriving = self.large.as_ref().filter(|_| self.incomplete_since.is_some());
        let patience = CROWDED_PATIENCE.min(self.shared.options.stall_timeout);
        arriving.is_some_and(|arriving| arriving.must_yield(self.wire.input.len(), patience, self.doubted))
    }
}

//! The task of one connection.
//!
//! It reads, hands what it read over as one chunk, and writes the PUBACKs that verdicts have made ready. While the
//! pipeline or the session's window is full it does not read, so that the client is slowed down by TCP; PUBACKs are
//! written all the while.

use super::budget::SMALL_PACKET;
use super::handshake::Accepted;
use super::intake::{Gate, Intake, Rejected, Will};
use super::packet::{Disconnect, FixedHeader, Packet, Publish, Version};
use super::reason::Reason;
use super::reply;
use super::session::{Attachment, Standing};
use super::shared::{Phase, Sender, Shared};
use super::wire::{Event, Wire};
use bytes::{Bytes, BytesMut};
use messagepipeline::{Delivery, Settle, Settlement, Timestamp, Verdict};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

/// Answers that wait for a client that does not read; beyond this nothing more is read from it.
const MAX_OUTPUT_BYTES: usize = 4 * 1024;

/// A large packet may take a second for each so many bytes, beside the stall timeout.
const LEAST_BYTES_PER_SECOND: usize = 1_024;

/// How long a connection that we end may take to read our last words.
const FAREWELL: Duration = Duration::from_secs(2);

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

/// See the module's documentation.
pub(super) struct Connection {
    shared: Arc<Shared>,
    wire: Wire,
    attachment: Attachment,
    gate: Gate,
    keep_alive: Option<Duration>,
    will: Option<Box<Will>>,
    expiry: Duration,
    /// Absent once nothing more is handed over.
    sender: Option<Sender>,
    phase: watch::Receiver<Phase>,
    timer: Pin<Box<Sleep>>,
    /// When we last read, or began to.
    heard: Instant,
    reading: bool,
    /// Since when a packet is arriving.
    incomplete_since: Option<(Instant, usize)>,
    window_full: bool,
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
            keep_alive: accepted.keep_alive,
            will: accepted.will,
            expiry: accepted.expiry,
            sender: Some(sender),
            timer: Box::pin(sleep_until(now + tick)),
            heard: now,
            reading: false,
            incomplete_since: None,
            window_full: false,
            broken: false,
            shared,
        }
    }

    /// Serves the client until its connection ends.
    pub(super) async fn run(mut self) {
        let end = self.serve().await;
        self.conclude(end).await;
    }

    async fn serve(&mut self) -> End {
        // The CONNECT may have come with packets behind it.
        let mut undecoded = true;
        loop {
            if let Some(end) = self.collect() {
                return end;
            }
            if undecoded || self.window_full {
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
                Phase::Draining if self.window_full => {}
                Phase::Draining => self.sender = None,
                Phase::Closing => return End::Refused(Reason::ShuttingDown),
            }
            match self.wait(phase == Phase::Open).await {
                Ok(Some(Event::Read)) => undecoded = true,
                Ok(Some(Event::End)) => return End::Gone,
                Ok(Some(Event::Written) | None) => {}
                Err(end) => return end,
            }
        }
    }

    /// Writes the PUBACKs that are ready into the output, and looks whether the connection may go on.
    fn collect(&mut self) -> Option<End> {
        let output = &mut self.wire.output;
        match self.attachment.collect(|packet_id, code| reply::puback(output, packet_id, code)) {
            Standing::Good => None,
            Standing::TakenOver => Some(End::Refused(Reason::TakenOver)),
            Standing::Failed => Some(End::Refused(Reason::ServerBusy)),
        }
    }

    /// Waits until something happens that the loop must look at.
    async fn wait(&mut self, is_open: bool) -> Result<Option<Event>, End> {
        let read = is_open && !self.window_full && self.wire.output.len() < MAX_OUTPUT_BYTES;
        if read && !self.reading {
            // Silence that we did not listen to is not the client's.
            self.heard = Instant::now();
        }
        self.reading = read;
        tokio::select! {
            event = self.wire.next(read) => {
                let event = event.map_err(|_| End::Gone)?;
                if event == Event::Read {
                    self.heard = Instant::now();
                }
                Ok(Some(event))
            }
            () = self.attachment.woken.notified() => Ok(None),
            _ = self.phase.changed() => Ok(None),
            () = self.timer.as_mut() => {
                self.look_at_clock()?;
                self.set_timer();
                Ok(None)
            }
        }
    }

    /// The timer is moved only when it has run out: that is once per interval instead of once per read.
    fn set_timer(&mut self) {
        let now = Instant::now();
        let latest = now + self.shared.options.stall_timeout;
        let next = self.keep_alive.map_or(latest, |limit| latest.min(self.heard + limit));
        self.timer.as_mut().reset(next.max(now + MIN_TICK));
    }

    fn look_at_clock(&self) -> Result<(), End> {
        let now = Instant::now();
        let stall = self.shared.options.stall_timeout;
        self.attachment.with_window(super::window::Window::shrink);
        if self.wire.stalled_for() >= stall {
            return Err(End::Gone);
        }
        if let Some((since, bytes)) = self.incomplete_since
            && self.reading
            && now.duration_since(since)
                >= stall + Duration::from_secs((bytes / LEAST_BYTES_PER_SECOND) as u64)
        {
            return Err(End::Refused(Reason::KeepAliveTimeout));
        }
        if let Some(limit) = self.keep_alive
            && self.reading
            && now.duration_since(self.heard) >= limit
        {
            return Err(End::Refused(Reason::KeepAliveTimeout));
        }
        Ok(())
    }
}

/// The timer is never set closer than this, so that rounding cannot make it spin.
const MIN_TICK: Duration = Duration::from_millis(10);

/// Taking in what was read.
impl Connection {
    /// Decodes what is in the input, up to one chunk, and hands it over.
    async fn take_in(&mut self) -> Pause {
        let now = self.shared.now();
        let before = self.wire.input.len();
        let mut intake = Intake::default();
        let mut pause = self.decode(&mut intake, now);
        if !intake.is_empty() && !self.enter(&mut intake) {
            return Pause::End(End::Refused(Reason::TakenOver));
        }
        if !intake.deliveries.is_empty()
            && let Err(end) = self.hand_over(intake).await
        {
            return Pause::End(end);
        }
        if let Pause::Incomplete(bytes) = pause {
            let is_rest = self.wire.input.len() < before;
            pause = self.make_room_for(bytes, is_rest).await;
        }
        self.window_full = matches!(pause, Pause::WindowFull);
        pause
    }

    fn decode(&mut self, intake: &mut Intake, now: Timestamp) -> Pause {
        let Some((replies, messages)) = self.attachment.with_window(|window| {
            window.waits_for_room = false;
            (window.reply_room(), window.room())
        }) else {
            return Pause::End(End::Refused(Reason::TakenOver));
        };
        let pause = loop {
            let header = match self.next_header() {
                Ok(header) => header,
                Err(pause) => break pause,
            };
            if intake.deliveries.len() >= self.shared.budget.chunk_messages()
                || intake.weight >= self.shared.budget.chunk_bytes()
            {
                break Pause::ChunkFull;
            }
            let is_publish = header.first >> 4 == 3;
            let wants_reply = is_publish && header.first & 0b0110 != 0;
            if wants_reply && intake.replies >= replies {
                // MQTT 5, section 3.3.4: the client was told how many it may send. 3.1.1 has no such limit.
                break match self.gate.version {
                    Version::V5 => Pause::End(End::Refused(Reason::ReceiveMaximumExceeded)),
                    Version::V311 => Pause::WindowFull,
                };
            }
            if is_publish && intake.deliveries.len() >= messages {
                break Pause::WindowFull;
            }
            let frame = self.wire.input.split_to(header.packet).freeze();
            if let Err(end) = self.decode_packet(header, &frame, intake, now) {
                break Pause::End(end);
            }
        };
        if matches!(pause, Pause::WindowFull) {
            let has_room = self.attachment.with_window(|window| {
                window.waits_for_room = true;
                window.room() > messages
            });
            // A verdict came between the two looks at the window, and woke nobody.
            if has_room == Some(true) {
                return Pause::ChunkFull;
            }
        }
        pause
    }

    /// The header of the next packet, if all of the packet is there.
    fn next_header(&self) -> Result<FixedHeader, Pause> {
        let input = &self.wire.input;
        match FixedHeader::read(input) {
            Err(reason) => Err(Pause::End(End::Refused(reason))),
            Ok(None) => Err(Pause::Incomplete(None)),
            Ok(Some(header)) if header.packet > self.shared.options.max_packet_bytes as usize => {
                Err(Pause::End(End::Refused(Reason::PacketTooLarge)))
            }
            Ok(Some(header)) if input.len() < header.packet => Err(Pause::Incomplete(Some(header.packet))),
            Ok(Some(header)) => Ok(header),
        }
    }

    fn decode_packet(
        &mut self,
        header: FixedHeader,
        frame: &Bytes,
        intake: &mut Intake,
        now: Timestamp,
    ) -> Result<(), End> {
        let version = self.gate.version;
        match Packet::read(version, header, frame).map_err(End::Refused)? {
            Packet::Publish(publish) => return self.decode_publish(&publish, frame, intake, now),
            Packet::Subscribe { packet_id, filters } => {
                if self.shared.telemetry.refused_for("subscribe") {
                    tracing::info!(
                        client_id = &**self.attachment.client_id(),
                        "SUBSCRIBE refused: the endpoint takes publishes and is no broker"
                    );
                }
                reply::suback(&mut self.wire.output, version, packet_id, filters);
            }
            Packet::Unsubscribe { packet_id, filters } => {
                reply::unsuback(&mut self.wire.output, version, packet_id, filters);
            }
            Packet::PingRequest => reply::pingresp(&mut self.wire.output),
            Packet::Disconnect(disconnect) => return Err(self.leave(disconnect)),
        }
        Ok(())
    }

    fn decode_publish(
        &mut self,
        publish: &Publish<'_>,
        frame: &Bytes,
        intake: &mut Intake,
        now: Timestamp,
    ) -> Result<(), End> {
        let client_id = self.attachment.client_id();
        match self.gate.take(publish, frame, client_id, now, intake) {
            Ok(()) => Ok(()),
            Err(Rejected::End(reason)) => Err(End::Refused(reason)),
            Err(Rejected::Refuse(reason)) if self.gate.version == Version::V5 && publish.qos == 1 => {
                if self.shared.telemetry.refused(reason) {
                    tracing::warn!(client_id = &**client_id, reason = reason.word(), "publish refused");
                }
                intake.refuse(publish.packet_id, reason);
                Ok(())
            }
            Err(Rejected::Refuse(reason)) => Err(End::Refused(reason)),
        }
    }

    fn leave(&mut self, disconnect: Disconnect) -> End {
        if let Some(seconds) = disconnect.session_expiry {
            // MQTT 5, section 3.14.2.2.2: a session that was to end with its connection cannot be kept now.
            if self.expiry.is_zero() && seconds != 0 {
                return End::Refused(Reason::ProtocolError);
            }
            self.expiry = Duration::from_secs(seconds.into()).min(self.shared.options.max_session_expiry);
        }
        End::Left { publish_will: disconnect.publish_will }
    }

    /// Enters what was decoded into the session's window; false if another connection has the session.
    fn enter(&mut self, intake: &mut Intake) -> bool {
        let attachment = &self.attachment;
        let entered =
            attachment.with_window(|window| intake.register(window, |sequence| attachment.token(sequence)));
        let Some(repeated) = entered else { return false };
        for (counter, count) in self.shared.telemetry.publishes.iter().zip(intake.taken) {
            if count > 0 {
                counter.increment(count);
            }
        }
        if repeated > 0 {
            self.shared.telemetry.duplicates.increment(repeated as u64);
        }
        true
    }

    /// Waits for room in the pipeline and hands the chunk over.
    async fn hand_over(&mut self, mut intake: Intake) -> Result<(), End> {
        self.reading = false;
        self.shared.name(&mut intake.deliveries);
        let Some(sender) = self.sender.clone() else { return Err(End::Refused(Reason::ShuttingDown)) };
        let shared = Arc::clone(&self.shared);
        let deliver = deliver(&shared, &sender, intake.deliveries, intake.weight);
        let delivered = self.meanwhile_writing(deliver).await;
        if self.broken {
            return Err(End::Gone);
        }
        if delivered { Ok(()) } else { Err(End::Refused(Reason::ShuttingDown)) }
    }

    /// After a decoded chunk: lets the input hold only what is missing its end, in a block of its own, and takes a
    /// permit for a large packet.
    async fn make_room_for(&mut self, bytes: Option<usize>, is_rest: bool) -> Pause {
        if self.wire.input.is_empty() {
            self.wire.input = BytesMut::new();
            self.incomplete_since = None;
            return Pause::Incomplete(None);
        }
        let bytes = bytes.unwrap_or(0);
        self.incomplete_since = match self.incomplete_since {
            Some((since, known)) if known == bytes => Some((since, known)),
            _ => Some((Instant::now(), bytes)),
        };
        if bytes <= SMALL_PACKET {
            if is_rest {
                self.wire.input = BytesMut::from(&self.wire.input[..]);
            }
            return Pause::Incomplete(None);
        }
        self.receive_large(bytes).await
    }

    /// Reads a large packet to its end under a permit for its size.
    async fn receive_large(&mut self, bytes: usize) -> Pause {
        let shared = Arc::clone(&self.shared);
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        let Ok(_permit) = self.meanwhile_writing(shared.budget.arriving(size)).await else {
            return Pause::End(End::Refused(Reason::ShuttingDown));
        };
        if self.broken {
            return Pause::End(End::Gone);
        }
        let mut packet = BytesMut::with_capacity(bytes);
        packet.extend_from_slice(&self.wire.input);
        self.wire.input = packet;
        self.heard = Instant::now();
        self.incomplete_since = Some((self.heard, bytes));
        while self.wire.input.len() < bytes {
            if let Some(end) = self.collect() {
                return Pause::End(end);
            }
            let phase = *self.phase.borrow_and_update();
            if phase != Phase::Open {
                // Half a packet is not "read"; the client sends it again.
                return if phase == Phase::Closing {
                    Pause::End(End::Refused(Reason::ShuttingDown))
                } else {
                    Pause::Incomplete(Some(bytes))
                };
            }
            match self.wait(true).await {
                Ok(Some(Event::End)) => return Pause::End(End::Gone),
                Ok(_) => {}
                Err(end) => return Pause::End(end),
            }
        }
        self.incomplete_since = None;
        Pause::ChunkFull
    }

    /// Does `work`, and writes PUBACKs that become ready meanwhile.
    async fn meanwhile_writing<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                event = self.wire.next(false), if !self.broken => self.broken = event.is_err(),
                () = self.attachment.woken.notified() => {
                    // Whatever else this says is looked at when the work is done.
                    let output = &mut self.wire.output;
                    let _ = self.attachment.collect(|packet_id, code| reply::puback(output, packet_id, code));
                }
            }
        }
    }
}

/// Ends.
impl Connection {
    async fn conclude(mut self, end: End) {
        self.report(end);
        if end == End::Refused(Reason::ShuttingDown) {
            self.collect();
        }
        if let End::Refused(reason) = end {
            reply::disconnect(&mut self.wire.output, self.gate.version, reason);
        }
        let will = self.will.take().filter(|_| end.publishes_will());
        self.shared.sessions.detach(&self.attachment, self.expiry);
        let (shared, sender) = (Arc::clone(&self.shared), self.sender.take());
        if end != End::Gone {
            self.wire.finish(FAREWELL).await;
        }
        if let (Some(will), Some(sender)) = (will, sender) {
            let delay = Duration::from_secs(will.delay.into()).min(self.expiry);
            if wait_for_return(&self.attachment, delay, &mut self.phase).await {
                publish_will(&shared, &sender, *will).await;
            }
        }
    }

    fn report(&self, end: End) {
        let client_id = &**self.attachment.client_id();
        match end {
            End::Refused(reason @ (Reason::ShuttingDown | Reason::TakenOver)) => {
                tracing::debug!(client_id, reason = reason.word(), "MQTT connection ended");
            }
            End::Refused(reason) => {
                if self.shared.telemetry.refused(reason) {
                    tracing::warn!(
                        client_id,
                        reason = reason.word(),
                        "MQTT connection ended by the endpoint"
                    );
                }
            }
            End::Left { .. } | End::Gone => tracing::debug!(client_id, ?end, "MQTT connection ended"),
        }
    }
}

/// Waits for room and sends; false if nobody receives any more, and then the deliveries are given back.
async fn deliver(shared: &Shared, sender: &Sender, deliveries: Vec<Delivery>, weight: usize) -> bool {
    let messages = u32::try_from(deliveries.len()).unwrap_or(u32::MAX);
    let weight = u32::try_from(weight).unwrap_or(u32::MAX);
    if shared.budget.reserve(messages, weight).await.is_err() {
        return false;
    }
    let Err(unsent) = sender.send(deliveries).await else { return true };
    let returned: Vec<_> = unsent
        .0
        .iter()
        .map(|delivery| Settlement { token: delivery.token, verdict: Verdict::Return })
        .collect();
    shared.sessions.settle(&returned);
    false
}

/// Waits for the will's delay; false if the client came back meanwhile.
async fn wait_for_return(
    attachment: &Attachment,
    delay: Duration,
    phase: &mut watch::Receiver<Phase>,
) -> bool {
    if delay.is_zero() {
        return true;
    }
    tokio::select! {
        () = tokio::time::sleep(delay) => attachment.is_latest(),
        _ = phase.wait_for(|phase| *phase != Phase::Open) => false,
    }
}

async fn publish_will(shared: &Shared, sender: &Sender, will: Will) {
    let message = will.into_message(shared.now());
    let weight = message.weight();
    let stored_weight = u32::try_from(weight).unwrap_or(u32::MAX);
    let Some(sequence) = shared.wills.with_window(|window| window.take(0, 0, stored_weight)) else { return };
    let mut deliveries = vec![Delivery { message, token: shared.wills.token(sequence) }];
    shared.name(&mut deliveries);
    deliver(shared, sender, deliveries, weight).await;
}

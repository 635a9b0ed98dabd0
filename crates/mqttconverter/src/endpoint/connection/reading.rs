//! From the bytes of a connection to a chunk in the channel.

use super::super::budget::{Arriving, SMALL_PACKET};
use super::super::intake::{Changes, Intake, Registered, Rejected};
use super::super::packet::{Disconnect, FixedHeader, Packet, Publish, Version};
use super::super::reason::Reason;
use super::super::reply;
use super::super::session::Session;
use super::super::shared::{Phase, Sender, Shared};
use super::super::wire::{Event, READ_BYTES};
use super::{Connection, End, Most, Pause};
use bytes::{Bytes, BytesMut};
use messagepipeline::{Delivery, Settle, Settlement, Timestamp, Verdict};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Longest part of a refused topic in the log, in bytes.
const LONGEST_SHOWN_TOPIC: usize = 200;

/// Longest SUBSCRIBE or UNSUBSCRIBE, in bytes, and the topic filters that one may name. All are refused; a client that
/// names some hundred of them as it begins, as gateways do, shall come to publish all the same.
const MAX_SUBSCRIBE_BYTES: usize = 64 * 1024;
const MAX_FILTERS: usize = 1_024;

/// How much one chunk may take.
struct Room {
    /// Replies and messages that the session's window takes.
    replies: usize,
    messages: usize,
    /// At so many bytes the chunk is full.
    weight: usize,
}

impl Connection {
    /// Decodes what is in the input, up to one chunk, and hands it over.
    pub(super) async fn take_in(&mut self) -> Pause {
        let now = self.shared.now();
        self.window_full = None;
        let before = self.wire.input.len();
        let mut intake = Intake::default();
        let mut pause = self.decode(&mut intake, now);
        if self.wire.input.len() < before {
            // What is incomplete now is another packet, even if it is as long.
            self.incomplete_since = None;
        }
        self.shared.name(&mut intake.deliveries);
        if !intake.is_empty() {
            match self.enter(&mut intake) {
                None => {
                    // Boxed like all that is rare, so that idle connections stay small.
                    Box::pin(self.rescue(intake)).await;
                    return Pause::End(End::Refused(Reason::TakenOver));
                }
                Some(Registered { end: Some(reason), .. }) => pause = Pause::End(End::Refused(reason)),
                Some(_) => {}
            }
        }
        if let Err(end) = self.hand_over(intake).await {
            return Pause::End(end);
        }
        self.large = None;
        if let Pause::Incomplete(bytes) = pause {
            let is_rest = self.wire.input.len() < before;
            pause = self.make_room_for(bytes, is_rest).await;
        }
        self.window_full = matches!(pause, Pause::WindowFull).then(|| self.shared.budget.begin_wait());
        pause
    }

    fn decode(&mut self, intake: &mut Intake, now: Timestamp) -> Pause {
        let is_v5 = self.gate.version == Version::V5;
        let weight = self.shared.budget.chunk_bytes();
        let Some(room) = self.attachment.with_window(|window| {
            window.waits_for_room = false;
            // A 3.1.1 client knows of no bound, and behind what it sends beyond ours may stand the PUBRELs that make room.
            let replies = if is_v5 { window.send_quota() } else { window.reply_room() };
            Room { replies, messages: window.room(), weight }
        }) else {
            return Pause::End(End::Refused(Reason::TakenOver));
        };
        let pause = loop {
            let header = match self.next_header() {
                Ok(header) => header,
                Err(pause) => break pause,
            };
            if let Some(limit) = self.limit(header, intake, &room) {
                break limit;
            }
            let frame = self.wire.input.split_to(header.packet).freeze();
            if let Err(end) = self.decode_packet(header, &frame, intake, now) {
                break Pause::End(end);
            }
        };
        if matches!(pause, Pause::WindowFull) {
            let has_room = self.attachment.with_window(|window| {
                window.waits_for_room = true;
                window.room() > room.messages
            });
            // A verdict came between the two looks at the window, and woke nobody.
            if has_room == Some(true) {
                return Pause::ChunkFull;
            }
        }
        pause
    }

    /// Which bound the packet with this header would break.
    fn limit(&self, header: FixedHeader, intake: &Intake, room: &Room) -> Option<Pause> {
        if intake.is_full(self.shared.budget.chunk_messages(), room.weight) {
            return Some(Pause::ChunkFull);
        }
        let is_publish = header.first >> 4 == 3;
        let wants_reply = is_publish && header.first & 0b0110 != 0;
        if wants_reply && intake.replies >= room.replies {
            // MQTT 5, section 3.3.4: the client was told how many it may send. 3.1.1 has no such limit.
            return Some(match self.gate.version {
                Version::V5 => Pause::End(End::Refused(Reason::ReceiveMaximumExceeded)),
                Version::V311 => Pause::WindowFull,
            });
        }
        (is_publish && intake.deliveries.len() >= room.messages).then_some(Pause::WindowFull)
    }

    /// The header of the next packet, if all of the packet is there.
    fn next_header(&self) -> Result<FixedHeader, Pause> {
        let input = &self.wire.input;
        match FixedHeader::read(input) {
            Err(reason) => Err(Pause::End(End::Refused(reason))),
            Ok(None) => Err(Pause::Incomplete(None)),
            Ok(Some(header)) if header.packet > self.most(header) => {
                Err(Pause::End(End::Refused(Reason::PacketTooLarge)))
            }
            Ok(Some(header)) if input.len() < header.packet => Err(Pause::Incomplete(Some(header.packet))),
            Ok(Some(header)) => Ok(header),
        }
    }

    /// How long a packet of this kind may be.
    fn most(&self, header: FixedHeader) -> usize {
        let most = self.shared.options.max_packet_bytes as usize;
        match header.first >> 4 {
            3 => most,
            8 | 10 => most.min(MAX_SUBSCRIBE_BYTES),
            _ => most.min(SMALL_PACKET),
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
            Packet::Release { packet_id } => intake.release(packet_id),
            // Their answer would be as long.
            Packet::Subscribe { filters, .. } | Packet::Unsubscribe { filters, .. }
                if filters > MAX_FILTERS =>
            {
                return Err(End::Refused(Reason::QuotaExceeded));
            }
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
            Err(Rejected::Refuse(reason)) if self.gate.version == Version::V5 && publish.qos > 0 => {
                if self.shared.telemetry.refused(reason) {
                    log_refused_publish(client_id, publish, reason);
                }
                intake.refuse(publish.packet_id, publish.qos == 2, reason);
                Ok(())
            }
            Err(Rejected::Refuse(reason)) => {
                // The refusal is counted where the connection ends, which knows the topic no more.
                if self.shared.telemetry.may_log() {
                    log_refused_publish(client_id, publish, reason);
                }
                Err(End::Refused(reason))
            }
        }
    }

    fn leave(&mut self, disconnect: Disconnect) -> End {
        if let Some(seconds) = disconnect.session_expiry {
            // MQTT 5, section 3.14.2.2.2: a session that was to end with its connection cannot be kept now.
            if self.expiry.is_zero() && seconds != 0 {
                return End::Refused(Reason::ProtocolError);
            }
            self.expiry_changed = true;
            self.expiry = Duration::from_secs(seconds.into()).min(self.shared.options.max_session_expiry);
            self.attachment.set_expiry(self.expiry);
        }
        End::Left { publish_will: disconnect.publish_will }
    }

    /// Enters what was decoded into the session's window; `None` if another connection has the session.
    fn enter(&mut self, intake: &mut Intake) -> Option<Registered> {
        let attachment = &self.attachment;
        let registered = attachment.with_window(|window| {
            let held = window.exchanges().len();
            let most = self.shared.sessions.most_held(held);
            let registered = intake.register(window, most, |sequence| attachment.token(sequence));
            self.shared.sessions.recount(held, window);
            registered
        })?;
        let telemetry = &self.shared.telemetry;
        for (counter, count) in telemetry.publishes.iter().zip(intake.taken) {
            if count > 0 {
                counter.increment(count);
            }
        }
        if registered.repeated > 0 {
            telemetry.duplicates.increment(registered.repeated as u64);
        }
        if registered.replaced > 0 {
            telemetry.identifiers_reused.increment(registered.replaced as u64);
            if telemetry.may_log() {
                tracing::warn!(
                    client_id = &**attachment.client_id(),
                    "QoS 2 messages under packet identifiers that were not released: the device has lost its memory; \
                     they are stored as new ones"
                );
            }
        }
        Some(registered)
    }

    /// Another connection has the session, so that nothing decoded can be answered here. Nobody sends messages at QoS 0
    /// again, so they go their way under no session's name.
    async fn rescue(&mut self, intake: Intake) {
        let wills = &self.shared.wills;
        let orphans =
            wills.with_window(|window| intake.into_orphans(|weight| wills.token(window.take(0, 0, weight))));
        if let (Some((deliveries, weight)), Some(sender)) = (orphans, self.sender.clone())
            && !deliveries.is_empty()
        {
            let shared = Arc::clone(&self.shared);
            self.meanwhile_writing(deliver(&shared, &sender, deliveries, weight)).await;
        }
    }

    /// Waits for room in the pipeline, makes what changes at QoS 2 durable, and hands the chunk over.
    async fn hand_over(&mut self, intake: Intake) -> Result<(), End> {
        let Intake { deliveries, weight, changes, completions, .. } = intake;
        if !changes.is_empty() || !deliveries.is_empty() {
            self.reading = false;
            let Some(sender) = self.sender.clone() else { return Err(End::Refused(Reason::ShuttingDown)) };
            let shared = Arc::clone(&self.shared);
            let session = Arc::clone(&self.attachment.session);
            let work = forward(&shared, &session, &sender, (deliveries, weight), &changes);
            let forwarded = self.meanwhile_writing(work).await;
            if self.broken {
                return Err(End::Gone);
            }
            forwarded.map_err(End::Refused)?;
        }
        for (packet_id, code) in completions {
            // An identifier that is not known is no error in a session that was resumed (MQTT 5, section 3.7.2.1): its
            // PUBCOMP was lost. Clients would report a code as the failure of a message that is stored.
            let code = if self.is_resumed { 0 } else { code };
            reply::pubcomp(&mut self.wire.output, self.gate.version, packet_id, code);
        }
        Ok(())
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

    /// Whether the session's window takes the packet that begins the input; if not, its next verdict wakes us. `None` if
    /// another connection has the session.
    fn window_takes(&self) -> Option<bool> {
        let Ok(Some(header)) = FixedHeader::read(&self.wire.input) else { return Some(true) };
        let is_publish = header.first >> 4 == 3;
        // An MQTT 5 client that sends beyond its quota is told so when the packet is decoded.
        let wants_reply = header.first & 0b0110 != 0 && self.gate.version == Version::V311;
        self.attachment.with_window(|window| {
            let is_full = window.room() == 0 || wants_reply && window.reply_room() == 0;
            window.waits_for_room = is_publish && is_full;
            !window.waits_for_room
        })
    }

    /// Reads a large packet to its end under a permit for its size, which it keeps until the pipeline has the packet. It
    /// begins only when the session has room for it: what must wait for its own client may wait for ever.
    async fn receive_large(&mut self, bytes: usize) -> Pause {
        match self.window_takes() {
            Some(true) => {}
            Some(false) => return Pause::WindowFull,
            None => return Pause::End(End::Refused(Reason::TakenOver)),
        }
        match self.permit(bytes).await {
            Ok(permit) => self.large = Some(permit),
            Err(pause) => return pause,
        }
        let mut packet = BytesMut::with_capacity(bytes);
        packet.extend_from_slice(&self.wire.input);
        self.wire.input = packet;
        self.heard = Instant::now();
        self.incomplete_since = Some((self.heard, bytes));
        self.set_timer();
        while self.wire.input.len() < bytes {
            if let Some(pause) = self.interruption(bytes) {
                return pause;
            }
            let most = READ_BYTES.min(bytes - self.wire.input.len());
            match self.wait(Some(Most::Bytes(most))).await {
                Ok(Some(Event::End)) => return Pause::End(End::Gone),
                Ok(_) => {}
                Err(end) => return Pause::End(end),
            }
        }
        self.incomplete_since = None;
        Pause::ChunkFull
    }

    /// What keeps a packet of so many bytes from being read on.
    fn interruption(&mut self, bytes: usize) -> Option<Pause> {
        if let Some(end) = self.collect() {
            return Some(Pause::End(end));
        }
        match *self.phase.borrow_and_update() {
            Phase::Open => None,
            // Half a packet is not "read"; the client sends it again.
            Phase::Draining => Some(Pause::Incomplete(Some(bytes))),
            Phase::Closing => Some(Pause::End(End::Refused(Reason::ShuttingDown))),
        }
    }

    /// Waits for the permit of a packet of so many bytes. Nothing is in hand meanwhile, so that whatever ends the
    /// connection ends the wait.
    async fn permit(&mut self, bytes: usize) -> Result<Arriving, Pause> {
        let budget = Arc::clone(&self.shared.budget);
        let mut arriving = pin!(budget.arriving(u32::try_from(bytes).unwrap_or(u32::MAX)));
        self.reading = false;
        loop {
            if let Some(pause) = self.interruption(bytes) {
                return Err(pause);
            }
            tokio::select! {
                permit = &mut arriving => {
                    return permit.map_err(|_| Pause::End(End::Refused(Reason::ShuttingDown)));
                }
                written = self.wire.next(0) => {
                    written.map_err(|_| Pause::End(End::Gone))?;
                }
                () = self.attachment.woken() => {}
                _ = self.phase.changed() => {}
            }
        }
    }

    /// Does `work`, and writes replies that become ready meanwhile.
    async fn meanwhile_writing<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                event = self.wire.next(0), if !self.broken => self.broken = event.is_err(),
                () = self.attachment.woken() => {
                    // Whatever else this says is looked at when the work is done.
                    let output = &mut self.wire.output;
                    let _ = self.attachment.collect(|answer| reply::answer(output, answer));
                }
            }
        }
    }
}

/// [`deliver`], with what changes at QoS 2 made durable before.
async fn forward(
    shared: &Shared,
    session: &Session,
    sender: &Sender,
    (mut deliveries, weight): (Vec<Delivery>, usize),
    changes: &Changes,
) -> Result<(), Reason> {
    if !reserve(shared, deliveries.len(), weight).await {
        return Err(Reason::ShuttingDown);
    }
    let kept = if changes.is_empty() { Ok(()) } else { Box::pin(shared.keep(session, changes)).await };
    if kept.is_err() {
        let is_unkept =
            |delivery: &mut Delivery| changes.held.iter().any(|held| held.message_id == delivery.message.id);
        let unkept: Vec<_> = deliveries.extract_if(.., is_unkept).collect();
        give_back(shared, &unkept);
    }
    let is_sent = deliveries.is_empty() || send(shared, sender, deliveries).await;
    kept.map_err(|error| shared.store_failed(&error))?;
    if is_sent { Ok(()) } else { Err(Reason::ShuttingDown) }
}

/// Whoever sets up rights needs the topic. It is shown escaped and cut; an alias may stand for it.
fn log_refused_publish(client_id: &str, publish: &Publish<'_>, reason: Reason) {
    let topic = &publish.topic[..publish.topic.floor_char_boundary(LONGEST_SHOWN_TOPIC)];
    tracing::warn!(client_id, ?topic, alias = publish.alias, reason = reason.word(), "publish refused");
}

/// Waits for room and sends; false if nobody receives any more, and then the deliveries are given back.
pub(super) async fn deliver(
    shared: &Shared,
    sender: &Sender,
    deliveries: Vec<Delivery>,
    weight: usize,
) -> bool {
    reserve(shared, deliveries.len(), weight).await && send(shared, sender, deliveries).await
}

async fn reserve(shared: &Shared, messages: usize, weight: usize) -> bool {
    let messages = u32::try_from(messages).unwrap_or(u32::MAX);
    let weight = u32::try_from(weight).unwrap_or(u32::MAX);
    messages == 0 || shared.budget.reserve(messages, weight).await.is_ok()
}

async fn send(shared: &Shared, sender: &Sender, deliveries: Vec<Delivery>) -> bool {
    let Err(unsent) = sender.send(deliveries).await else { return true };
    give_back(shared, &unsent.0);
    false
}

fn give_back(shared: &Shared, deliveries: &[Delivery]) {
    let returned: Vec<_> = deliveries
        .iter()
        .map(|delivery| Settlement { token: delivery.token, verdict: Verdict::Return })
        .collect();
    shared.sessions.settle(&returned);
}

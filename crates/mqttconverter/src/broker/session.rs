//! What is in flight between the broker and the pipeline, without any I/O.
//!
//! A *slot* is one message from its PUBLISH until its PUBACK is written. Slots outlive a connection: when the
//! session is resumed the broker sends everything again that has no PUBACK, and a slot that is still here takes
//! that copy in, so that the pipeline sees the message once.

use hashbrown::HashMap;
use messagepipeline::{Delivery, Message, Settlement, Token, Verdict, names};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// First wait before a message that came back is handed out again.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait before a message that came back is handed out again.
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How much may be in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Messages between the newest one taken and the oldest one without a PUBACK.
    pub(super) messages: usize,
    /// Their weight in bytes. One message may always be in flight, however heavy.
    pub(super) bytes: usize,
}

/// One PUBLISH as it came, already made a message.
#[derive(Debug)]
pub(super) struct Arrival {
    /// 0 for QoS 0.
    pub(super) packet_id: u16,
    pub(super) dup: bool,
    pub(super) message: Message,
}

/// What [`Session::receive`] made of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A message for the pipeline.
    New,
    /// A message for the pipeline that the broker marks as sent before. Nothing here remembers it.
    Redelivered,
    /// A copy of a message that is still in flight here.
    Repeated,
}

/// The state of one message in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits in `ready` or `delayed`.
    Waiting,
    /// Is with the pipeline.
    Out,
    /// The pipeline has it durably; its PUBACK is not written.
    Acked,
}

#[derive(Debug)]
struct Slot {
    message: Message,
    packet_id: u16,
    /// The connection on which it was last received.
    generation: u64,
    state: State,
}

/// All slots and their orders. Tokens are never used twice.
#[derive(Debug)]
pub(super) struct Session {
    limits: Limits,
    generation: u64,
    next_token: u64,
    slots: HashMap<u64, Slot>,
    by_packet: HashMap<u16, u64>,
    /// Receipt order on the present connection: PUBACKs leave in it (MQTT-4.6.0-2).
    order: VecDeque<u64>,
    ready: VecDeque<u64>,
    delayed: BTreeSet<(Instant, u64)>,
    /// Slots of earlier connections that the pipeline has acknowledged and the broker will send once more.
    answered: VecDeque<u64>,
    weight: usize,
}

impl Session {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            generation: 0,
            next_token: 0,
            slots: HashMap::new(),
            by_packet: HashMap::new(),
            order: VecDeque::new(),
            ready: VecDeque::new(),
            delayed: BTreeSet::new(),
            answered: VecDeque::new(),
            weight: 0,
        }
    }

    /// How many more messages may be taken now, and how many bytes. Answered slots do not count: the broker's copies
    /// of them must get in, or their PUBACKs would never get out.
    pub(super) fn room(&self) -> (usize, usize) {
        let load = self.slots.len().saturating_sub(self.answered.len());
        if load == 0 {
            return (self.limits.messages.max(1), self.limits.bytes.max(1));
        }
        (self.limits.messages.saturating_sub(load), self.limits.bytes.saturating_sub(self.weight))
    }

    /// Takes in one PUBLISH of the present connection.
    pub(super) fn receive(&mut self, arrival: Arrival) -> Received {
        let Arrival { packet_id, dup, message } = arrival;
        if dup && let Some(known) = self.same_in_flight(packet_id, &message) {
            self.attach(known);
            return Received::Repeated;
        }
        let token = self.next_token;
        self.next_token += 1;
        if packet_id != 0
            && let Some(displaced) = self.by_packet.insert(packet_id, token)
        {
            self.forget_if_answered(displaced);
        }
        self.weight += message.weight();
        self.order.push_back(token);
        self.ready.push_back(token);
        let slot = Slot { message, packet_id, generation: self.generation, state: State::Waiting };
        self.slots.insert(token, slot);
        if dup { Received::Redelivered } else { Received::New }
    }

    /// The slot that already holds this very message: same packet id, topic and payload.
    fn same_in_flight(&self, packet_id: u16, message: &Message) -> Option<u64> {
        let token = *self.by_packet.get(&packet_id)?;
        let slot = self.slots.get(&token)?;
        let same_topic = slot.message.attributes.get(names::TOPIC) == message.attributes.get(names::TOPIC);
        (same_topic && slot.message.payload == message.payload).then_some(token)
    }

    /// Puts a slot of an earlier connection into the order of this one.
    fn attach(&mut self, token: u64) {
        let Some(slot) = self.slots.get_mut(&token) else { return };
        if slot.generation == self.generation {
            return;
        }
        slot.generation = self.generation;
        let (acked, weight) = (slot.state == State::Acked, slot.message.weight());
        self.order.push_back(token);
        if acked {
            self.answered.retain(|known| *known != token);
            self.weight += weight;
        }
    }

    fn forget_if_answered(&mut self, token: u64) {
        if let Some(position) = self.answered.iter().position(|known| *known == token) {
            self.answered.remove(position);
            self.slots.remove(&token);
        }
    }

    /// Hands out up to `max` messages that wait.
    pub(super) fn take(&mut self, now: Instant, max: usize) -> Vec<Delivery> {
        while let Some(&(due, token)) = self.delayed.first()
            && due <= now
        {
            self.delayed.pop_first();
            self.ready.push_back(token);
        }
        let count = max.min(self.ready.len());
        let mut deliveries = Vec::with_capacity(count);
        for token in self.ready.drain(..count) {
            if let Some(slot) = self.slots.get_mut(&token) {
                slot.state = State::Out;
                deliveries.push(Delivery { message: slot.message.clone(), token: Token(token) });
            }
        }
        deliveries
    }

    /// When the next message that came back is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(due, _)| *due)
    }

    /// Notes verdicts. The second verdict for a delivery, and one for a delivery that is gone, change nothing.
    pub(super) fn settle(&mut self, settlements: &[Settlement], now: Instant) {
        for settlement in settlements {
            let token = settlement.token.0;
            let Some(slot) = self.slots.get_mut(&token) else { continue };
            if slot.state != State::Out {
                continue;
            }
            match settlement.verdict {
                Verdict::Ack => self.acknowledge(token),
                Verdict::Nack => {
                    slot.message.attempt = slot.message.attempt.saturating_add(1);
                    let delay = retry_delay(slot.message.attempt);
                    self.hand_out_again(token, now + delay);
                }
                Verdict::Return => self.hand_out_again(token, now + RETRY_MIN),
            }
        }
    }

    fn acknowledge(&mut self, token: u64) {
        let Some(slot) = self.slots.get_mut(&token) else { return };
        slot.state = State::Acked;
        if slot.generation == self.generation {
            return;
        }
        let weight = slot.message.weight();
        if self.by_packet.get(&slot.packet_id) == Some(&token) {
            self.answered.push_back(token);
        } else {
            self.slots.remove(&token);
        }
        self.weight = self.weight.saturating_sub(weight);
    }

    fn hand_out_again(&mut self, token: u64, due: Instant) {
        if let Some(slot) = self.slots.get_mut(&token) {
            slot.state = State::Waiting;
            self.delayed.insert((due, token));
        }
    }

    /// Takes the packet ids whose PUBACK may be written now, in order of receipt. The slots are gone after that: what
    /// the broker sends again later can no longer be told from a new message.
    pub(super) fn take_acks(&mut self, packet_ids: &mut Vec<u16>) {
        while let Some(token) = self.order.front().copied() {
            if self.slots.get(&token).is_some_and(|slot| slot.state != State::Acked) {
                return;
            }
            self.order.pop_front();
            self.write_off(token, packet_ids);
        }
    }

    /// Takes every acknowledged packet id, also those behind a message without a verdict.
    ///
    /// Only for the end of a connection: the order of PUBACKs protects a stream that goes on. Here nothing follows,
    /// and withholding them would bring stored messages a second time.
    pub(super) fn take_all_acks(&mut self, packet_ids: &mut Vec<u16>) {
        for token in std::mem::take(&mut self.order) {
            if self.slots.get(&token).is_some_and(|slot| slot.state == State::Acked) {
                self.write_off(token, packet_ids);
            } else {
                self.order.push_back(token);
            }
        }
    }

    fn write_off(&mut self, token: u64, packet_ids: &mut Vec<u16>) {
        let Some(slot) = self.slots.remove(&token) else { return };
        self.weight = self.weight.saturating_sub(slot.message.weight());
        if slot.packet_id == 0 {
            return;
        }
        if self.by_packet.get(&slot.packet_id) == Some(&token) {
            self.by_packet.remove(&slot.packet_id);
        }
        packet_ids.push(slot.packet_id);
    }

    /// Acknowledged messages whose PUBACK is not written.
    pub(super) fn unwritten_acks(&self) -> usize {
        self.slots.values().filter(|slot| slot.state == State::Acked && slot.packet_id != 0).count()
    }

    /// The connection is gone. Every slot becomes one of an earlier connection.
    pub(super) fn disconnected(&mut self) {
        self.generation += 1;
        for token in std::mem::take(&mut self.order) {
            let Some(slot) = self.slots.get(&token) else { continue };
            if slot.state == State::Acked {
                self.acknowledge(token);
            }
        }
        self.trim_answered();
    }

    /// Answered slots wait for a copy that may never come (a broker may forget one message). The oldest make room.
    fn trim_answered(&mut self) {
        let weigh = |token: &u64| self.slots.get(token).map_or(0, |slot| slot.message.weight());
        let mut weight: usize = self.answered.iter().map(weigh).sum();
        while self.answered.len() > self.limits.messages || weight > self.limits.bytes {
            let Some(token) = self.answered.pop_front() else { return };
            if let Some(slot) = self.slots.remove(&token) {
                weight = weight.saturating_sub(slot.message.weight());
                self.by_packet.remove(&slot.packet_id);
            }
        }
    }

    /// A connection stands. Without a session the broker sends nothing again: packet ids mean nothing any more, and
    /// what is with the pipeline lives on here alone. Answers whether that happened to a message or more.
    pub(super) fn connected(&mut self, session_present: bool) -> bool {
        if session_present {
            return false;
        }
        self.by_packet.clear();
        for token in std::mem::take(&mut self.answered) {
            self.slots.remove(&token);
        }
        !self.slots.is_empty()
    }
}

/// 1 s, 2 s, 4 s … up to a minute, by the attempt that comes next.
fn retry_delay(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(2).min(10);
    RETRY_MIN.saturating_mul(1 << doublings).min(RETRY_MAX)
}

#[cfg(test)]
mod tests;

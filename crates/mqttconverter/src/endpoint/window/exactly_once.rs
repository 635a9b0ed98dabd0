//! QoS 2 against a model: a device, a window, a store, a pipeline and a bus that knows ids, with lost connections,
//! crashes, sessions that start anew and a device that loses its memory between any two steps.

use super::*;
use crate::endpoint::exchange::Released;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

const IDS: u16 = 3;

/// What the device knows of a packet identifier. A content is a number, and the number is the fingerprint.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sent {
    Publish(u64),
    Release(u64),
}

/// On its way to the endpoint's store; what waits for it goes on when it is there.
#[derive(Debug)]
enum Pending {
    Held(Held, Sequence),
    Released(Released),
}

/// How often the device has sent a content as a new message, and how often it has had the PUBREC of one.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    begun: usize,
    received: usize,
}

#[derive(Debug, Default)]
struct Device {
    sent: BTreeMap<u16, Sent>,
    last: u64,
    counts: BTreeMap<u64, Count>,
    /// Identifiers that it used for another message because it had lost its memory.
    mistaken: BTreeSet<u16>,
}

#[derive(Debug)]
struct World {
    window: Window,
    connection: u32,
    next_id: u64,
    device: Device,
    /// Replies on their way to the device: first byte and packet identifier.
    wire: Vec<(u8, u16)>,
    /// With the connection that waits for it.
    pending: VecDeque<(u32, Pending)>,
    store: HashMap<u16, Held>,
    pipeline: Vec<(Sequence, MessageId, u64)>,
    bus: HashMap<MessageId, u64>,
}

impl World {
    fn new() -> Self {
        Self {
            window: Window::new(8),
            connection: 0,
            next_id: 0,
            device: Device::default(),
            wire: Vec::new(),
            pending: VecDeque::new(),
            store: HashMap::new(),
            pipeline: Vec::new(),
            bus: HashMap::new(),
        }
    }

    /// The device sends a message that it has not sent before under an identifier that it holds for free.
    fn publish(&mut self, packet_id: u16) {
        if !self.device.sent.contains_key(&packet_id) {
            self.device.last += 1;
            self.publish_content(packet_id, self.device.last);
        }
    }

    fn publish_content(&mut self, packet_id: u16, content: u64) {
        self.device.counts.entry(content).or_default().begun += 1;
        self.device.sent.insert(packet_id, Sent::Publish(content));
        self.send(packet_id);
    }

    /// The device sends what it has under `packet_id`, and the endpoint reads it.
    fn send(&mut self, packet_id: u16) {
        match self.device.sent.get(&packet_id) {
            None => {}
            Some(Sent::Publish(content)) => self.receive_publish(packet_id, *content),
            Some(Sent::Release(_)) => match self.window.release(packet_id) {
                Release::Due(released) => self.wait_for_store(Pending::Released(released)),
                Release::Unknown => self.wire.push((0x70, packet_id)),
                Release::Violation => panic!("the device has had its PUBREC"),
            },
        }
    }

    fn receive_publish(&mut self, packet_id: u16, content: u64) {
        self.next_id += 1;
        let new_id = MessageId::from_bytes(u128::from(self.next_id).to_be_bytes());
        match self.window.take_exactly_once(packet_id, content, 1, new_id, usize::MAX) {
            Taking::New { sequence, replaces } => {
                assert!(!replaces || self.device.mistaken.contains(&packet_id), "one message became two");
                let held = Held { packet_id, message_id: new_id, fingerprint: content };
                self.wait_for_store(Pending::Held(held, sequence));
            }
            Taking::Again { sequence, message_id } => {
                assert_eq!(self.store[&packet_id].message_id, message_id);
                self.pipeline.push((sequence, message_id, content));
            }
            Taking::Repeated => {}
            Taking::Violation | Taking::Full => panic!("the device keeps the rules"),
        }
    }

    fn wait_for_store(&mut self, pending: Pending) {
        self.pending.push_back((self.connection, pending));
    }

    /// What is asked of the store when the turn of `pending` has come, as `durable.rs` does it: nothing of what the
    /// session has outgrown.
    fn write_to_store(&mut self, pending: &Pending) {
        match pending {
            Pending::Held(held, _) if self.window.exchanges().holds(held) => {
                self.store.insert(held.packet_id, *held);
            }
            Pending::Released(released) if self.window.exchanges().is_to_release(released) => {
                self.store.remove(&released.packet_id);
            }
            _ => {}
        }
    }

    /// The next write to the store is answered.
    fn commit(&mut self, works: bool) {
        let Some((connection, pending)) = self.pending.pop_front() else { return };
        let is_latest = connection == self.connection;
        if works {
            self.write_to_store(&pending);
        }
        match pending {
            Pending::Held(held, sequence) if works => {
                self.pipeline.push((sequence, held.message_id, held.fingerprint));
            }
            Pending::Held(held, sequence) => {
                self.window.exchanges().abandon(&held);
                let settled = self.window.settle(sequence, Verdict::Return);
                if is_latest || settled.failed {
                    self.reconnect();
                }
            }
            Pending::Released(released) if works => {
                self.window.exchanges().released(&released);
                if is_latest {
                    self.wire.push((0x70, released.packet_id));
                }
            }
            Pending::Released(released) => {
                self.window.exchanges().keep(&released);
                if is_latest {
                    self.reconnect();
                }
            }
        }
    }

    /// The bus has the message, whether or not its verdict ever arrives.
    fn store(&mut self, id: MessageId, content: u64) {
        assert_eq!(*self.bus.entry(id).or_insert(content), content, "one id, one message");
    }

    fn stored(&self, content: u64) -> usize {
        self.bus.values().filter(|stored| **stored == content).count()
    }

    fn settle(&mut self, index: usize, verdict: Verdict) {
        if index >= self.pipeline.len() {
            return;
        }
        let (sequence, id, content) = self.pipeline.swap_remove(index);
        if verdict == Verdict::Ack {
            self.store(id, content);
        }
        if self.window.settle(sequence, verdict).failed {
            self.reconnect();
        }
    }

    fn write(&mut self) {
        let wire = &mut self.wire;
        self.window.write_ready(|answer| wire.push((0x50, answer.packet_id)));
    }

    fn read(&mut self) {
        for (kind, packet_id) in std::mem::take(&mut self.wire) {
            match (kind, self.device.sent.get(&packet_id).copied()) {
                (0x50, Some(Sent::Publish(content))) => {
                    let count = self.device.counts.get_mut(&content).unwrap();
                    count.received += 1;
                    let received = count.received;
                    assert!(self.stored(content) >= received, "a PUBREC before the bus had it");
                    self.device.sent.insert(packet_id, Sent::Release(content));
                    self.send(packet_id);
                }
                (0x70, Some(Sent::Release(_))) => {
                    self.device.sent.remove(&packet_id);
                    self.device.mistaken.remove(&packet_id);
                }
                // Answers to what was sent twice.
                _ => {}
            }
        }
    }

    /// A new connection takes the session over, perhaps before the endpoint knows that the old one is gone.
    fn reconnect(&mut self) {
        self.connect(false);
        for packet_id in 1..=IDS {
            self.send(packet_id);
        }
    }

    fn connect(&mut self, clean: bool) {
        self.connection += 1;
        self.wire.clear();
        self.window.attach(clean);
    }

    /// The session has ended at both sides: a clean start, or the take-over of one that was to end with its connection.
    /// Writes for the old one may still be on their way. The device sends the same contents again, as new messages.
    fn start_anew(&mut self) {
        self.connect(true);
        self.store.clear();
        self.device.mistaken.clear();
        for (packet_id, sent) in std::mem::take(&mut self.device.sent) {
            let (Sent::Publish(content) | Sent::Release(content)) = sent;
            self.publish_content(packet_id, content);
        }
    }

    /// The device has forgotten what it sent under `packet_id`, and uses it for another message in the same session.
    fn lose_memory(&mut self, packet_id: u16) {
        let mut releases = self.pending.iter().filter_map(|(_, pending)| match pending {
            Pending::Released(released) => Some(released.packet_id),
            Pending::Held(..) => None,
        });
        if releases.any(|releasing| releasing == packet_id) {
            return; // It would be disconnected until that is done.
        }
        self.device.sent.remove(&packet_id);
        self.device.mistaken.insert(packet_id);
        self.reconnect();
        self.publish(packet_id);
    }

    /// The process dies; `stored` messages of those in the pipeline had reached the bus, and `written` of the writes the
    /// store.
    fn crash(&mut self, stored: usize, written: usize) {
        for (_, id, content) in std::mem::take(&mut self.pipeline).into_iter().take(stored) {
            self.store(id, content);
        }
        for (_, pending) in std::mem::take(&mut self.pending).into_iter().take(written) {
            self.write_to_store(&pending);
        }
        self.window = Window::new(8);
        let held: Vec<_> = self.store.values().copied().collect();
        self.window.restore(&held);
        self.reconnect();
    }

    fn finish(&mut self) {
        for _ in 0..20 {
            while !self.pending.is_empty() {
                self.commit(true);
            }
            while !self.pipeline.is_empty() {
                self.settle(0, Verdict::Ack);
            }
            self.write();
            self.read();
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u16),
    SendAgain(u16),
    Commit(bool),
    Settle(usize, Verdict),
    Write,
    Read,
    Reconnect,
    StartAnew,
    LoseMemory(u16),
    Crash(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![4 => Just(Verdict::Ack), 1 => Just(Verdict::Nack), 1 => Just(Verdict::Return)];
    prop_oneof![
        6 => (1..=IDS).prop_map(Step::Publish),
        1 => (1..=IDS).prop_map(Step::SendAgain),
        4 => prop_oneof![5 => Just(true), 1 => Just(false)].prop_map(Step::Commit),
        4 => (0..4_usize, verdict).prop_map(|(index, verdict)| Step::Settle(index, verdict)),
        4 => Just(Step::Write),
        4 => Just(Step::Read),
        1 => Just(Step::Reconnect),
        1 => Just(Step::StartAnew),
        1 => (1..=IDS).prop_map(Step::LoseMemory),
        1 => (0..4_usize, 0..3_usize).prop_map(|(stored, written)| Step::Crash(stored, written)),
    ]
}

proptest! {
    #[test]
    fn every_message_is_stored_exactly_once_over_lost_connections_crashes_and_new_sessions(
        steps in proptest::collection::vec(step(), 0..150),
    ) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Publish(packet_id) => world.publish(packet_id),
                // On the same connection, as clients with a retry timer do; never a PUBREL, which may be on its way.
                Step::SendAgain(packet_id) => {
                    if matches!(world.device.sent.get(&packet_id), Some(Sent::Publish(_))) {
                        world.send(packet_id);
                    }
                }
                Step::Commit(works) => world.commit(works),
                Step::Settle(index, verdict) => world.settle(index, verdict),
                Step::Write => world.write(),
                Step::Read => world.read(),
                Step::Reconnect => world.reconnect(),
                Step::StartAnew => world.start_anew(),
                Step::LoseMemory(packet_id) => world.lose_memory(packet_id),
                Step::Crash(stored, written) => world.crash(stored, written),
            }
        }
        world.finish();
        for (content, count) in &world.device.counts {
            // What the device has given up may be there or not; of the rest each message is there once.
            let stored = world.stored(*content);
            prop_assert!(stored >= count.received && stored <= count.begun, "{content}: {stored} of {count:?}");
        }
        prop_assert!(
            world.device.sent.is_empty() && world.store.is_empty(),
            "every identifier is free again"
        );
        prop_assert!(world.window.exchanges().is_empty());
        prop_assert_eq!(world.window.in_pipeline(), 0);
        prop_assert_eq!(world.window.send_quota(), 8);
    }
}

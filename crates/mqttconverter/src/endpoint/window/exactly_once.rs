//! QoS 2 against a model: a device that keeps the rules, a window, a store, a pipeline and a bus that knows ids, with
//! lost connections and crashes between any two steps.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};

const IDS: u16 = 3;

/// What the device knows of a packet identifier. Messages are numbered, and the number is the fingerprint.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Sent {
    Publish(u64),
    Release,
}

/// On its way to the endpoint's store; what waits for it goes on when it is there.
#[derive(Debug)]
enum Pending {
    Held(Held, Sequence),
    Released(u16),
}

#[derive(Debug)]
struct World {
    window: Window,
    next_id: u8,
    sent: BTreeMap<u16, Sent>,
    numbers: u64,
    /// Replies on their way to the device: first byte and packet identifier.
    wire: Vec<(u8, u16)>,
    pending: Vec<Pending>,
    store: HashMap<u16, Held>,
    pipeline: Vec<(Sequence, MessageId, u64)>,
    bus: HashMap<MessageId, u64>,
}

impl World {
    fn new() -> Self {
        Self {
            window: Window::new(8),
            next_id: 0,
            sent: BTreeMap::new(),
            numbers: 0,
            wire: Vec::new(),
            pending: Vec::new(),
            store: HashMap::new(),
            pipeline: Vec::new(),
            bus: HashMap::new(),
        }
    }

    fn publish(&mut self, packet_id: u16) {
        if !self.sent.contains_key(&packet_id) {
            self.numbers += 1;
            self.sent.insert(packet_id, Sent::Publish(self.numbers));
            self.send(packet_id);
        }
    }

    /// The device sends what it has under `packet_id`, and the endpoint reads it.
    fn send(&mut self, packet_id: u16) {
        match self.sent.get(&packet_id) {
            None => {}
            Some(Sent::Publish(number)) => self.receive_publish(packet_id, *number),
            Some(Sent::Release) => match self.window.release(packet_id) {
                Release::Due => self.pending.push(Pending::Released(packet_id)),
                Release::Unknown => self.wire.push((0x70, packet_id)),
                Release::Violation => panic!("the device has had its PUBREC"),
            },
        }
    }

    fn receive_publish(&mut self, packet_id: u16, number: u64) {
        self.next_id = self.next_id.wrapping_add(1);
        let mut bytes = [self.next_id; 16];
        bytes[0] = u8::try_from(self.numbers % 256).unwrap();
        let new_id = MessageId::from_bytes(bytes);
        match self.window.take_exactly_once(packet_id, number, 1, new_id) {
            Taking::New { sequence, replaces } => {
                assert!(!replaces, "the device has not lost its memory");
                let held = Held { packet_id, message_id: new_id, fingerprint: number };
                self.pending.push(Pending::Held(held, sequence));
            }
            Taking::Again { sequence, message_id } => {
                assert_eq!(self.store[&packet_id].message_id, message_id);
                self.pipeline.push((sequence, message_id, number));
            }
            Taking::Repeated => {}
            Taking::Violation => panic!("the device keeps the rules"),
        }
    }

    fn commit(&mut self, works: bool) {
        let pending: Vec<_> = self.pending.drain(..).collect();
        for pending in pending {
            match pending {
                Pending::Held(held, sequence) if works => {
                    self.store.insert(held.packet_id, held);
                    self.pipeline.push((sequence, held.message_id, held.fingerprint));
                }
                Pending::Held(held, sequence) => {
                    self.window.exchanges().abandon(&held);
                    self.window.settle(sequence, Verdict::Return);
                }
                Pending::Released(packet_id) if works => {
                    self.store.remove(&packet_id);
                    self.window.exchanges().released(packet_id);
                    self.wire.push((0x70, packet_id));
                }
                Pending::Released(packet_id) => self.window.exchanges().keep(packet_id),
            }
        }
        if !works {
            self.reconnect();
        }
    }

    /// The bus has the message, whether or not its verdict ever arrives.
    fn store(&mut self, id: MessageId, number: u64) {
        assert_eq!(*self.bus.entry(id).or_insert(number), number, "one id, one message");
    }

    fn settle(&mut self, index: usize, verdict: Verdict) {
        if index >= self.pipeline.len() {
            return;
        }
        let (sequence, id, number) = self.pipeline.swap_remove(index);
        if verdict == Verdict::Ack {
            self.store(id, number);
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
            match (kind, self.sent.get(&packet_id)) {
                (0x50, Some(Sent::Publish(number))) => {
                    assert!(
                        self.bus.values().any(|stored| stored == number),
                        "a PUBREC before the bus had it"
                    );
                    self.sent.insert(packet_id, Sent::Release);
                    self.send(packet_id);
                }
                (0x70, Some(Sent::Release)) => drop(self.sent.remove(&packet_id)),
                // Answers to what was sent twice.
                _ => {}
            }
        }
    }

    fn reconnect(&mut self) {
        self.wire.clear();
        self.window.attach(false);
        for packet_id in 1..=IDS {
            self.send(packet_id);
        }
    }

    /// The process dies; `stored` messages of those in the pipeline had reached the bus.
    fn crash(&mut self, stored: usize) {
        for (_, id, number) in std::mem::take(&mut self.pipeline).into_iter().take(stored) {
            self.store(id, number);
        }
        self.pending.clear();
        self.window = Window::new(8);
        let held: Vec<_> = self.store.values().copied().collect();
        self.window.restore(&held);
        self.reconnect();
    }

    fn finish(&mut self) {
        for _ in 0..20 {
            self.commit(true);
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
    Crash(usize),
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
        1 => (0..4_usize).prop_map(Step::Crash),
    ]
}

proptest! {
    #[test]
    fn every_message_is_stored_exactly_once_over_lost_connections_and_crashes(
        steps in proptest::collection::vec(step(), 0..150),
    ) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Publish(packet_id) => world.publish(packet_id),
                // On the same connection, as clients with a retry timer do; never a PUBREL, which may be on its way.
                Step::SendAgain(packet_id) => {
                    if matches!(world.sent.get(&packet_id), Some(Sent::Publish(_))) {
                        world.send(packet_id);
                    }
                }
                Step::Commit(works) => world.commit(works),
                Step::Settle(index, verdict) => world.settle(index, verdict),
                Step::Write => world.write(),
                Step::Read => world.read(),
                Step::Reconnect => world.reconnect(),
                Step::Crash(stored) => world.crash(stored),
            }
        }
        world.finish();
        let mut stored: Vec<u64> = world.bus.values().copied().collect();
        stored.sort_unstable();
        prop_assert_eq!(stored, (1..=world.numbers).collect::<Vec<_>>());
        prop_assert!(world.sent.is_empty() && world.store.is_empty(), "every identifier is free again");
        prop_assert!(world.window.exchanges().is_empty());
        prop_assert_eq!(world.window.in_pipeline(), 0);
        prop_assert_eq!(world.window.send_quota(), 8);
    }
}

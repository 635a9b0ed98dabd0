//! Messages on their way over one connection. Pure state: no clock, no network.
//!
//! Packet ids are given in turn, so the queue of messages is also the table from packet id to message, and the order in
//! which messages are sent again after a broken connection is the order in which they were sent (MQTT-4.6.0-1).

use super::source::Publication;
use std::collections::VecDeque;

/// Packet ids are 1 to 65,535 (MQTT 5, section 2.2.1).
const PACKET_IDS: usize = u16::MAX as usize;

/// Bytes in flight at which a window takes no more messages, whatever their number.
const MAX_BYTES: usize = 16 * 1024 * 1024;

struct Flight {
    publication: Publication,
    settled: bool,
    sent_before: bool,
}

/// A message to write now.
pub(super) struct ToWrite<'a> {
    pub(super) packet_id: u16,
    pub(super) publication: &'a Publication,
    /// Sent on an earlier connection too.
    pub(super) again: bool,
    /// The DUP flag: sent before, and the broker still has the session.
    pub(super) dup: bool,
}

/// Messages without their PUBACK, oldest first, at most `size` of them.
pub(super) struct Window {
    flights: VecDeque<Flight>,
    /// Packet id of the oldest one, counted from 0.
    first_id: usize,
    /// How many of them, from the oldest, were written on the connection that stands.
    written: usize,
    bytes: usize,
    size: usize,
    /// What the broker of the connection that stands allows.
    limit: usize,
    session_present: bool,
}

impl Window {
    pub(super) fn new(size: u16) -> Self {
        let size = usize::from(size);
        Self {
            flights: VecDeque::new(),
            first_id: 0,
            written: 0,
            bytes: 0,
            size,
            limit: size,
            session_present: false,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.flights.len() < self.size && self.bytes < MAX_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// The message that waits longest.
    pub(super) fn oldest(&self) -> Option<&Publication> {
        self.flights.front().map(|flight| &flight.publication)
    }

    /// Takes a message. The caller has asked for room.
    pub(super) fn push(&mut self, publication: Publication) {
        self.bytes += publication.weight();
        self.flights.push_back(Flight { publication, settled: false, sent_before: false });
    }

    /// A new connection stands: all that has no PUBACK is to be written on it, at most `receive_maximum` at a time.
    pub(super) fn connected(&mut self, session_present: bool, receive_maximum: u16) {
        self.written = 0;
        self.limit = self.size.min(usize::from(receive_maximum));
        self.session_present = session_present;
    }

    /// The next message to write. Asking for it counts as writing it.
    pub(super) fn next_to_write(&mut self) -> Option<ToWrite<'_>> {
        while self.written < self.flights.len().min(self.limit) {
            let index = self.written;
            self.written += 1;
            if !self.flights[index].settled {
                let packet_id = self.packet_id(index);
                let flight = &mut self.flights[index];
                let again = std::mem::replace(&mut flight.sent_before, true);
                let dup = again && self.session_present;
                return Some(ToWrite { packet_id, publication: &flight.publication, again, dup });
            }
        }
        None
    }

    /// The message `packet_id` is done with. Answers with its running number, or none if no message of this connection
    /// waits under this id.
    pub(super) fn settle(&mut self, packet_id: u16) -> Option<u64> {
        let id = usize::from(packet_id).checked_sub(1)?;
        let index = (id + PACKET_IDS - self.first_id) % PACKET_IDS;
        if index >= self.written || self.flights[index].settled {
            return None;
        }
        let flight = &mut self.flights[index];
        flight.settled = true;
        let number = flight.publication.number;
        while self.flights.front().is_some_and(|flight| flight.settled) {
            if let Some(flight) = self.flights.pop_front() {
                self.bytes -= flight.publication.weight();
            }
            self.first_id = (self.first_id + 1) % PACKET_IDS;
            self.written = self.written.saturating_sub(1);
        }
        Some(number)
    }

    fn packet_id(&self, index: usize) -> u16 {
        u16::try_from((self.first_id + index) % PACKET_IDS + 1).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Duration;

    fn publication(number: u64) -> Publication {
        Publication::new(number, Duration::ZERO, Bytes::new(), Bytes::from_static(b"12"))
    }

    fn write_all(window: &mut Window) -> Vec<(u16, u64, bool)> {
        let mut out = Vec::new();
        while let Some(next) = window.next_to_write() {
            out.push((next.packet_id, next.publication.number, next.dup));
        }
        out
    }

    #[test]
    fn after_a_broken_connection_all_without_a_puback_goes_out_again_in_order_with_dup() {
        let mut window = Window::new(4);
        window.connected(false, u16::MAX);
        (1..=4).for_each(|number| window.push(publication(number)));
        assert!(!window.has_room());
        assert_eq!(write_all(&mut window), [(1, 1, false), (2, 2, false), (3, 3, false), (4, 4, false)]);
        assert_eq!(window.settle(1), Some(1));
        assert_eq!(window.settle(3), Some(3));
        assert_eq!(window.settle(3), None, "a second PUBACK for the same message counts nothing");

        window.connected(true, u16::MAX);
        assert_eq!(window.settle(2), None, "not written on this connection yet");
        window.push(publication(5));
        assert_eq!(write_all(&mut window), [(2, 2, true), (4, 4, true), (5, 5, false)]);

        window.connected(false, 1);
        assert_eq!(write_all(&mut window), [(2, 2, false)], "one at a time, and no DUP without a session");
    }

    proptest! {
        #[test]
        fn every_message_is_settled_once_and_ids_in_flight_are_unique(
            size in 1u16..20, steps in proptest::collection::vec((0u8..4, any::<u16>()), 0..400),
        ) {
            let mut window = Window::new(size);
            window.first_id = PACKET_IDS - 5;
            window.connected(false, u16::MAX);
            let mut waiting: BTreeMap<u16, u64> = BTreeMap::new();
            let (mut next, mut settled) = (0, Vec::new());
            for (step, pick) in steps {
                match step {
                    0 if window.has_room() => { next += 1; window.push(publication(next)); }
                    1 => for (id, number, _) in write_all(&mut window) {
                        prop_assert!(id > 0);
                        prop_assert_eq!(waiting.insert(id, number), None);
                    },
                    2 => if let Some((&id, &number)) = waiting.iter().nth(usize::from(pick) % waiting.len().max(1)) {
                        waiting.remove(&id);
                        prop_assert_eq!(window.settle(id), Some(number));
                        prop_assert_eq!(window.settle(id), None);
                        settled.push(number);
                    },
                    _ => if pick % 8 == 0 { window.connected(true, u16::MAX); waiting.clear(); },
                }
                prop_assert!(window.flights.len() <= usize::from(size));
            }
            window.connected(true, u16::MAX);
            for (id, number, _) in write_all(&mut window) {
                prop_assert_eq!(window.settle(id), Some(number));
                settled.push(number);
            }
            prop_assert!(window.is_empty() && window.bytes == 0);
            settled.sort_unstable();
            prop_assert_eq!(settled, (1..=next).collect::<Vec<_>>());
        }
    }
}

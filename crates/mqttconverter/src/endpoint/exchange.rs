//! Publishes at QoS 2 from their PUBLISH to their PUBREL: pure state, no socket, no clock.
//!
//! ```text
//!             PUBLISH            acknowledged downstream         PUBREL             forgotten durably
//!  (nothing) ─────────► InPipeline ─────────► Stored: PUBREC ─────────► Releasing ─────────► PUBCOMP
//!                         ▲      │                                         ▲
//!          PUBLISH again, │      │ not taken downstream                    │ PUBREL
//!          the same id    │      ▼                                         │
//!                         └─── Unsent ◄── loaded at start ─────────────────┘
//! ```
//!
//! A packet identifier that is held means one message under one id, whether its PUBLISH comes again with DUP or
//! without [MQTT-4.3.3-2]. `Unsent` says that this process does not know whether the message is stored: it is
//! published again under the same id, and whoever knows the id already stores nothing.

use super::store::Held;
use super::window::Sequence;
use hashbrown::HashMap;
use messagepipeline::MessageId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    InPipeline(Sequence),
    Stored,
    Unsent,
    Releasing,
}

#[derive(Clone, Copy, Debug)]
struct Exchange {
    message_id: MessageId,
    fingerprint: u64,
    stage: Stage,
    /// Its PUBREC was written on the present connection.
    received: bool,
}

/// What a PUBLISH at QoS 2 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// One not seen before. The message that its packet identifier stood for, if any, is given up by the device.
    New { replaces: bool },
    /// One to be published again under this id.
    Again(MessageId),
    /// One whose message is in the pipeline.
    InFlight(Sequence),
    /// One whose message is stored; its PUBREC is owed.
    Stored,
    /// One that no client may send now.
    Violation,
}

/// A packet identifier that is to be forgotten, as long as it stands for this message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) packet_id: u16,
    message_id: MessageId,
}

/// What a PUBREL brings about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// The identifier is to be forgotten durably, then PUBCOMP.
    Due(Released),
    /// Nothing is known of it; PUBCOMP at once.
    Unknown,
    /// Its PUBREC has not been written, so the client cannot have seen one.
    Violation,
}

/// The packet identifiers in use, at most 65,535.
#[derive(Debug, Default)]
pub(super) struct Exchanges {
    by_packet_id: HashMap<u16, Exchange>,
    /// Those with a PUBREC written on the present connection and no PUBCOMP.
    awaiting_release: usize,
}

impl Exchanges {
    pub(super) fn restore(&mut self, held: &[Held]) {
        for held in held {
            self.insert(held.packet_id, held.message_id, held.fingerprint, Stage::Unsent);
        }
    }

    fn insert(&mut self, packet_id: u16, message_id: MessageId, fingerprint: u64, stage: Stage) {
        let exchange = Exchange { message_id, fingerprint, stage, received: false };
        if let Some(former) = self.by_packet_id.insert(packet_id, exchange) {
            self.awaiting_release -= usize::from(former.received);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_packet_id.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_packet_id.len()
    }

    /// Those that count against the receive maximum beside the replies owed (MQTT 5, section 4.9).
    pub(super) fn awaiting_release(&self) -> usize {
        self.awaiting_release
    }

    pub(super) fn meaning(&self, packet_id: u16, fingerprint: u64) -> Meaning {
        let Some(exchange) = self.by_packet_id.get(&packet_id) else {
            return Meaning::New { replaces: false };
        };
        match exchange.stage {
            // Before PUBCOMP the identifier is not free, and after PUBREL its PUBLISH does not come again.
            Stage::Releasing => Meaning::Violation,
            _ if exchange.fingerprint != fingerprint => Meaning::New { replaces: true },
            Stage::InPipeline(sequence) => Meaning::InFlight(sequence),
            Stage::Stored => Meaning::Stored,
            Stage::Unsent => Meaning::Again(exchange.message_id),
        }
    }

    /// The message is on its way into the pipeline.
    pub(super) fn begin(
        &mut self,
        packet_id: u16,
        message_id: MessageId,
        fingerprint: u64,
        sequence: Sequence,
    ) {
        self.insert(packet_id, message_id, fingerprint, Stage::InPipeline(sequence));
    }

    /// Notes the verdict, unless the packet identifier has another meaning by now.
    pub(super) fn settle(&mut self, packet_id: u16, sequence: Sequence, stored: bool) {
        if let Some(exchange) = self.by_packet_id.get_mut(&packet_id)
            && exchange.stage == Stage::InPipeline(sequence)
        {
            exchange.stage = if stored { Stage::Stored } else { Stage::Unsent };
        }
    }

    /// The PUBREC is to be written; false if there is nothing that it could mean.
    pub(super) fn received(&mut self, packet_id: u16) -> bool {
        let exchange = self.by_packet_id.get_mut(&packet_id);
        let Some(exchange) = exchange.filter(|exchange| exchange.stage == Stage::Stored) else {
            return false;
        };
        self.awaiting_release += usize::from(!exchange.received);
        exchange.received = true;
        true
    }

    pub(super) fn release(&mut self, packet_id: u16) -> Release {
        let Some(exchange) = self.by_packet_id.get_mut(&packet_id) else { return Release::Unknown };
        if matches!(exchange.stage, Stage::InPipeline(_)) {
            return Release::Violation;
        }
        exchange.stage = Stage::Releasing;
        Release::Due(Released { packet_id, message_id: exchange.message_id })
    }

    /// Whether `held` is still what its packet identifier stands for.
    pub(super) fn holds(&self, held: &Held) -> bool {
        self.by_packet_id.get(&held.packet_id).is_some_and(|exchange| exchange.message_id == held.message_id)
    }

    fn find(&mut self, released: &Released) -> Option<&mut Exchange> {
        let exchange = self.by_packet_id.get_mut(&released.packet_id);
        exchange.filter(|exchange| exchange.message_id == released.message_id)
    }

    /// Whether there is something to forget. It may have been kept meanwhile, when an earlier connection failed to
    /// forget it.
    pub(super) fn is_to_release(&mut self, released: &Released) -> bool {
        let Some(exchange) = self.find(released) else { return false };
        exchange.stage = Stage::Releasing;
        true
    }

    /// What was to be forgotten is forgotten durably.
    pub(super) fn released(&mut self, released: &Released) {
        if self.find(released).is_some() {
            self.remove(released.packet_id);
        }
    }

    /// It could not be forgotten; the PUBREL will come again.
    pub(super) fn keep(&mut self, released: &Released) {
        if let Some(exchange) = self.find(released) {
            exchange.stage = Stage::Stored;
        }
    }

    /// `held` could not be made durable: as if its PUBLISH had not come.
    pub(super) fn abandon(&mut self, held: &Held) {
        if self.holds(held) {
            self.remove(held.packet_id);
        }
    }

    fn remove(&mut self, packet_id: u16) {
        if let Some(exchange) = self.by_packet_id.remove(&packet_id) {
            self.awaiting_release -= usize::from(exchange.received);
        }
    }

    /// A new connection: the receive maximum begins anew.
    pub(super) fn detach(&mut self) {
        if self.awaiting_release > 0 {
            self.by_packet_id.values_mut().for_each(|exchange| exchange.received = false);
            self.awaiting_release = 0;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn shrink(&mut self) {
        if self.by_packet_id.is_empty() {
            self.by_packet_id = HashMap::new();
        }
    }
}

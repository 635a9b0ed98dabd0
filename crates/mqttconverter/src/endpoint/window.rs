//! What one session holds unacknowledged: pure state, no socket, no clock.
//!
//! Two lists, since a message may outlive the connection it came on:
//!
//! ```text
//!  taken    every message in the pipeline, by sequence number; settled in any order
//!  replies  PUBACKs and PUBRECs owed on the present connection, in order of receipt; written only from the front
//!           [MQTT-4.6.0-2] [MQTT-4.6.0-3]
//! ```
//!
//! A publish that comes again with DUP after a reconnect finds its first copy in `taken`, by packet identifier and
//! fingerprint, and only a new reply is queued for it. The fingerprint is needed because a device that lost its
//! memory reuses identifiers: the same identifier with other bytes is another message.
//!
//! That memory ends with the PUBACK. At QoS 2 it goes on until PUBREL, and stands in a third list, [`Exchanges`].

use super::exchange::{Exchanges, Meaning, Release};
use super::store::Held;
use messagepipeline::{MessageId, Verdict};
use std::collections::VecDeque;

/// A position in one of the lists; counts up for the life of the session and wraps.
pub(super) type Sequence = u32;

/// A message taken from the session, until its verdict and its PUBACK.
#[derive(Clone, Copy, Debug)]
struct Taken {
    fingerprint: u64,
    weight: u32,
    /// 0 where no PUBLISH that comes again can mean this one: QoS 0, wills, a session started clean.
    packet_id: u16,
    /// QoS 2: `packet_id` stands in the exchanges.
    exactly_once: bool,
    state: TakenState,
    /// Where its reply stands in `replies`, if one is owed on the present connection.
    reply: Option<Sequence>,
}

impl Taken {
    /// Whether a PUBLISH with DUP may still ask for it, and none has on the present connection.
    fn is_unclaimed(&self) -> bool {
        self.packet_id != 0
            && !self.exactly_once
            && self.reply.is_none()
            && self.state != TakenState::Finished
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TakenState {
    InPipeline,
    /// Durable downstream, and its PUBACK not written.
    Stored,
    /// Nothing is left to do.
    Finished,
}

#[derive(Clone, Copy, Debug)]
struct Reply {
    packet_id: u16,
    exactly_once: bool,
    /// Reason code, once it may be written.
    code: Option<u8>,
    /// The message it answers, unless it refuses one that was never taken.
    taken: Option<Sequence>,
}

/// A PUBACK, or at QoS 2 a PUBREC, that may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) packet_id: u16,
    /// Reason code; 0 is success.
    pub(super) code: u8,
    pub(super) exactly_once: bool,
}

/// What becomes of a PUBLISH at QoS 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taking {
    /// Its mapping is to be made durable, then it enters the pipeline.
    New { sequence: Sequence, replaces: bool },
    /// It enters the pipeline again, under the id that it has.
    Again { sequence: Sequence, message_id: MessageId },
    /// Only its PUBREC is owed.
    Repeated,
    /// No client may send it now.
    Violation,
    /// No further packet identifier may be held.
    Full,
}

/// What a verdict brought about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// Bytes the message counted for; nothing when the verdict was a second one.
    pub(super) weight: Option<u32>,
    /// A reply can be written now.
    pub(super) reply_ready: bool,
    /// The message failed while its reply is owed on the present connection, which must now end without it.
    pub(super) failed: bool,
    /// The message failed and nobody will send it again (QoS 0, will).
    pub(super) lost: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Window {
    taken: VecDeque<Taken>,
    first_taken: Sequence,
    in_pipeline: usize,
    /// Entries in `taken` of earlier connections that may still be sent again. While there are none, which is nearly
    /// always, no list is searched.
    unclaimed: usize,
    replies: VecDeque<Reply>,
    first_reply: Sequence,
    exchanges: Exchanges,
    /// Set by a connection that reads no further until there is room, and wants to be told.
    pub(super) waits_for_room: bool,
    /// Most replies owed at once.
    receive_maximum: usize,
    /// Most entries in `taken`, which bounds the distance between the newest and the oldest message.
    limit: usize,
}

impl Window {
    /// A window for `receive_maximum` unacknowledged messages at QoS 1 and 2, and as many others beside them.
    pub(super) fn new(receive_maximum: u16) -> Self {
        let receive_maximum = usize::from(receive_maximum);
        Self {
            taken: VecDeque::new(),
            first_taken: 0,
            in_pipeline: 0,
            unclaimed: 0,
            replies: VecDeque::new(),
            first_reply: 0,
            exchanges: Exchanges::default(),
            waits_for_room: false,
            receive_maximum,
            limit: 2 * receive_maximum,
        }
    }

    /// A new connection takes the session over. With `clean` nothing that comes on it can mean an older message.
    pub(super) fn attach(&mut self, clean: bool) {
        self.detach();
        if clean {
            for taken in &mut self.taken {
                taken.packet_id = 0;
                if taken.state == TakenState::Stored {
                    taken.state = TakenState::Finished;
                }
            }
            self.unclaimed = 0;
            self.exchanges.clear();
            self.compact();
        }
    }

    /// What an earlier process held at QoS 2.
    pub(super) fn restore(&mut self, held: &[Held]) {
        self.exchanges.restore(held);
    }

    /// The connection is gone: no reply can be written any more, and what was taken on it is remembered.
    pub(super) fn detach(&mut self) {
        let count = u32::try_from(self.replies.len()).unwrap_or(0);
        self.first_reply = self.first_reply.wrapping_add(count);
        self.replies.clear();
        self.replies.shrink_to_fit();
        for taken in &mut self.taken {
            taken.reply = None;
        }
        self.exchanges.detach();
        self.unclaimed = self.taken.iter().filter(|taken| taken.is_unclaimed()).count();
        self.compact();
    }

    /// How many further replies may be owed.
    pub(super) fn reply_room(&self) -> usize {
        self.receive_maximum.saturating_sub(self.replies.len())
    }

    /// How many further publishes at QoS 1 and 2 an MQTT 5 client may send: one at QoS 2 counts until its PUBCOMP
    /// (section 4.9).
    pub(super) fn send_quota(&self) -> usize {
        self.reply_room().saturating_sub(self.exchanges.awaiting_release())
    }

    /// The state of what came at QoS 2.
    pub(super) fn exchanges(&mut self) -> &mut Exchanges {
        &mut self.exchanges
    }

    /// How many further messages may be taken, whatever their quality of service.
    pub(super) fn room(&self) -> usize {
        self.limit.saturating_sub(self.taken.len())
    }

    /// Messages that have no verdict yet.
    pub(super) fn in_pipeline(&self) -> usize {
        self.in_pipeline
    }

    /// Takes a message; a PUBACK is owed for it if `packet_id` is not 0.
    pub(super) fn take(&mut self, packet_id: u16, fingerprint: u64, weight: u32) -> Sequence {
        self.forget_identifier(packet_id);
        self.push(packet_id, fingerprint, weight, false)
    }

    fn push(&mut self, packet_id: u16, fingerprint: u64, weight: u32, exactly_once: bool) -> Sequence {
        let sequence = self.first_taken.wrapping_add(u32::try_from(self.taken.len()).unwrap_or(0));
        let reply = (packet_id != 0).then(|| self.owe(packet_id, exactly_once, None, Some(sequence)));
        let state = TakenState::InPipeline;
        self.taken.push_back(Taken { fingerprint, weight, packet_id, exactly_once, state, reply });
        self.in_pipeline += 1;
        if self.unclaimed > 0 {
            self.compact();
        }
        sequence
    }

    /// Takes a PUBLISH at QoS 2, which would have the id `new_id` if it is a new message, unless the session would then
    /// hold more than `most` packet identifiers.
    pub(super) fn take_exactly_once(
        &mut self,
        packet_id: u16,
        fingerprint: u64,
        weight: u32,
        new_id: MessageId,
        most: usize,
    ) -> Taking {
        let meaning = self.exchanges.meaning(packet_id, fingerprint);
        let message_id = match meaning {
            Meaning::Violation => return Taking::Violation,
            Meaning::InFlight(sequence) => {
                self.owe_again(packet_id, sequence);
                return Taking::Repeated;
            }
            Meaning::Stored => {
                self.owe(packet_id, true, Some(0), None);
                return Taking::Repeated;
            }
            // The device would take the first one's PUBREC for the second one's.
            Meaning::New { replaces: true } if self.owes_receipt(packet_id) => return Taking::Violation,
            Meaning::New { replaces: false } if self.exchanges.len() >= most => return Taking::Full,
            Meaning::New { .. } => new_id,
            Meaning::Again(message_id) => message_id,
        };
        self.forget_identifier(packet_id);
        let sequence = self.push(packet_id, fingerprint, weight, true);
        self.exchanges.begin(packet_id, message_id, fingerprint, sequence);
        match meaning {
            Meaning::New { replaces } => Taking::New { sequence, replaces },
            _ => Taking::Again { sequence, message_id },
        }
    }

    /// A message that is in the pipeline came again, perhaps on a new connection: one PUBREC is owed for it there.
    fn owe_again(&mut self, packet_id: u16, sequence: Sequence) {
        let index = sequence.wrapping_sub(self.first_taken) as usize;
        if self.taken.get(index).is_some_and(|taken| taken.reply.is_none()) {
            let reply = self.owe(packet_id, true, None, Some(sequence));
            self.taken[index].reply = Some(reply);
        }
    }

    fn owes_receipt(&self, packet_id: u16) -> bool {
        self.replies.iter().any(|reply| reply.exactly_once && reply.packet_id == packet_id)
    }

    /// A PUBREL came.
    pub(super) fn release(&mut self, packet_id: u16) -> Release {
        self.exchanges.release(packet_id)
    }

    /// If a PUBLISH with DUP repeats a message that is still held, owes its PUBACK on this connection and answers
    /// true; nothing is to be taken then.
    pub(super) fn repeat(&mut self, packet_id: u16, fingerprint: u64) -> bool {
        let found = self.taken.iter().rposition(|taken| {
            taken.packet_id == packet_id
                && !taken.exactly_once
                && taken.fingerprint == fingerprint
                && taken.state != TakenState::Finished
        });
        let Some(index) = found else { return false };
        if self.taken[index].reply.is_none() {
            let sequence = self.first_taken.wrapping_add(u32::try_from(index).unwrap_or(0));
            self.unclaimed -= 1;
            let code = (self.taken[index].state == TakenState::Stored).then_some(0);
            self.taken[index].reply = Some(self.owe(packet_id, false, code, Some(sequence)));
        }
        true
    }

    /// Owes a reply that refuses the PUBLISH `packet_id` for good.
    pub(super) fn refuse(&mut self, packet_id: u16, exactly_once: bool, code: u8) {
        self.owe(packet_id, exactly_once, Some(code), None);
    }

    /// Notes the verdict for a message.
    pub(super) fn settle(&mut self, sequence: Sequence, verdict: Verdict) -> Settled {
        let index = sequence.wrapping_sub(self.first_taken) as usize;
        let Some(taken) = self.taken.get_mut(index).filter(|taken| taken.state == TakenState::InPipeline)
        else {
            return Settled::default();
        };
        self.in_pipeline -= 1;
        let mut settled = Settled { weight: Some(taken.weight), ..Settled::default() };
        let (reply, remembered) = (taken.reply, taken.packet_id != 0);
        let was_unclaimed = taken.is_unclaimed();
        let packet_id = taken.packet_id;
        if taken.exactly_once {
            taken.state = TakenState::Finished;
            let stored = verdict == Verdict::Ack;
            self.exchanges.settle(packet_id, sequence, stored);
            settled.reply_ready = stored && self.make_ready(reply);
            settled.failed = !stored && reply.is_some();
            settled.lost = !stored && !remembered && reply.is_none();
        } else if verdict == Verdict::Ack && (reply.is_some() || remembered) {
            taken.state = TakenState::Stored;
            settled.reply_ready = self.make_ready(reply);
        } else {
            taken.state = TakenState::Finished;
            self.unclaimed -= usize::from(was_unclaimed);
            settled.failed = verdict != Verdict::Ack && reply.is_some();
            settled.lost = verdict != Verdict::Ack && !remembered && reply.is_none();
        }
        if index == 0 {
            self.compact();
        }
        settled
    }

    /// Hands the replies that may be written now to `write`, in order of receipt.
    pub(super) fn write_ready(&mut self, mut write: impl FnMut(Answer)) {
        while let Some(Reply { packet_id, exactly_once, code: Some(code), taken }) =
            self.replies.front().copied()
        {
            // The answer to a PUBLISH sent twice may be outlived by its PUBREL. The device would take it for the answer
            // to whatever it sends next under this identifier.
            if !exactly_once || code != 0 || self.exchanges.received(packet_id) {
                write(Answer { packet_id, code, exactly_once });
            }
            self.replies.pop_front();
            self.first_reply = self.first_reply.wrapping_add(1);
            let index = taken.map(|sequence| sequence.wrapping_sub(self.first_taken) as usize);
            if let Some(taken) = index.and_then(|index| self.taken.get_mut(index)) {
                taken.state = TakenState::Finished;
            }
        }
        self.compact();
    }

    /// Gives back memory of a burst that is over.
    pub(super) fn shrink(&mut self) {
        if self.taken.is_empty() && self.replies.is_empty() {
            self.taken = VecDeque::new();
            self.replies = VecDeque::new();
        }
        self.exchanges.shrink();
    }

    fn owe(
        &mut self,
        packet_id: u16,
        exactly_once: bool,
        code: Option<u8>,
        taken: Option<Sequence>,
    ) -> Sequence {
        let sequence = self.first_reply.wrapping_add(u32::try_from(self.replies.len()).unwrap_or(0));
        self.replies.push_back(Reply { packet_id, exactly_once, code, taken });
        sequence
    }

    /// Answers whether the reply is at the front, so that something can be written.
    fn make_ready(&mut self, reply: Option<Sequence>) -> bool {
        let Some(sequence) = reply else { return false };
        let index = sequence.wrapping_sub(self.first_reply) as usize;
        if let Some(reply) = self.replies.get_mut(index) {
            reply.code = Some(0);
        }
        index == 0
    }

    /// A new message under an identifier says that the device is done with the older one of this identifier.
    fn forget_identifier(&mut self, packet_id: u16) {
        if packet_id == 0 || self.unclaimed == 0 {
            return;
        }
        for taken in &mut self.taken {
            if taken.packet_id == packet_id && taken.is_unclaimed() {
                self.unclaimed -= 1;
                taken.packet_id = 0;
                if taken.state == TakenState::Stored {
                    taken.state = TakenState::Finished;
                }
            }
        }
        self.compact();
    }

    /// Drops what is finished at the front; when there is no room, also what is stored there and was not asked for
    /// again, so that a device that never repeats it cannot block the session.
    fn compact(&mut self) {
        while let Some(front) = self.taken.front() {
            let is_spare = front.state == TakenState::Stored && front.reply.is_none();
            if front.state != TakenState::Finished && !(is_spare && self.taken.len() >= self.limit) {
                return;
            }
            self.unclaimed -= usize::from(is_spare);
            self.taken.pop_front();
            self.first_taken = self.first_taken.wrapping_add(1);
        }
    }
}

#[cfg(test)]
mod exactly_once;
#[cfg(test)]
mod tests;

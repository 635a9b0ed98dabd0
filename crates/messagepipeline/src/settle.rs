//! Settlement: who owes a verdict, and how it is given.
//!
//! A consumer hands over a [`Chunk`]. Whoever owns the chunk owes each message one verdict. The services note
//! verdicts and report them in bulk through [`Settle`]; only who holds a message longer than the chunk takes an
//! [`Ack`], which is settled by value. `Chunk` and `Ack` nack on drop whatever has no verdict, so a panic, an
//! early return or a cancelled task becomes a redelivery and never a silent loss.

use crate::Message;
use std::fmt;
use std::sync::Arc;

/// The adapter's own name for one delivery of one message. Two deliveries of a message have different tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The next stage has it durably, or it was given up on durably. Never delivered again.
    Ack,
    /// It failed: deliver it again, later, with its attempt count raised by one.
    Nack,
    /// It was not at fault (shutdown, a neighbour's panic, an outage): deliver it again, attempt count unchanged.
    Return,
}

/// One verdict for one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// Which delivery.
    pub token: Token,
    /// What became of it.
    pub verdict: Verdict,
}

/// The consumer's side of settlement.
///
/// # Contract
/// - `settle` never blocks and never waits; it may be called from any thread, also from `Drop`.
/// - At most one verdict per token takes effect. A second verdict, or one for a token of a connection or lease that
///   is gone, is ignored.
/// - It reports nothing back: a verdict that did not reach the source becomes a redelivery. What must be known is
///   known from [`crate::Consumer::close`].
pub trait Settle: Send + Sync {
    /// Takes verdicts in bulk.
    fn settle(&self, settlements: &[Settlement]);
}

/// A message and the token under which it is settled.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// The adapter's name for this delivery.
    pub token: Token,
}

/// Deliveries handed over together, with one way to settle them. Nacks on drop what was not taken out.
pub struct Chunk {
    deliveries: Vec<Delivery>,
    settle: Arc<dyn Settle>,
}

impl Chunk {
    /// A chunk of `deliveries` that are settled through `settle`.
    #[must_use]
    pub fn new(settle: Arc<dyn Settle>, deliveries: Vec<Delivery>) -> Self {
        Self { deliveries, settle }
    }

    /// The deliveries.
    #[must_use]
    pub fn deliveries(&self) -> &[Delivery] {
        &self.deliveries
    }

    /// How many deliveries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.deliveries.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// Takes the chunk apart. The caller now owes every delivery its verdict.
    #[must_use]
    pub fn into_parts(mut self) -> (Arc<dyn Settle>, Vec<Delivery>) {
        (Arc::clone(&self.settle), std::mem::take(&mut self.deliveries))
    }

    /// One [`Ack`] per message, for who holds messages longer than the chunk.
    #[must_use]
    pub fn into_acks(self) -> Vec<(Message, Ack)> {
        let (settle, deliveries) = self.into_parts();
        deliveries.into_iter().map(|d| (d.message, Ack::new(Arc::clone(&settle), d.token))).collect()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.deliveries.is_empty() {
            return;
        }
        let nacks: Vec<_> =
            self.deliveries.iter().map(|d| Settlement { token: d.token, verdict: Verdict::Nack }).collect();
        self.settle.settle(&nacks);
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk").field("deliveries", &self.deliveries.len()).finish_non_exhaustive()
    }
}

/// The right, and the duty, to settle one delivery. Settled by value, so at most once; dropping it nacks.
#[must_use = "dropping an Ack nacks the message"]
pub struct Ack {
    settle: Option<Arc<dyn Settle>>,
    token: Token,
}

impl Ack {
    /// The handle of the delivery `token`.
    pub fn new(settle: Arc<dyn Settle>, token: Token) -> Self {
        Self { settle: Some(settle), token }
    }

    /// The next stage has the message durably.
    pub fn ack(self) {
        self.finish(Verdict::Ack);
    }

    /// The message failed; it is delivered again with a raised attempt count.
    pub fn nack(self) {
        self.finish(Verdict::Nack);
    }

    /// The message is given back as it came.
    pub fn give_back(self) {
        self.finish(Verdict::Return);
    }

    fn finish(mut self, verdict: Verdict) {
        if let Some(settle) = self.settle.take() {
            settle.settle(&[Settlement { token: self.token, verdict }]);
        }
    }
}

impl Drop for Ack {
    fn drop(&mut self) {
        if let Some(settle) = self.settle.take() {
            settle.settle(&[Settlement { token: self.token, verdict: Verdict::Nack }]);
        }
    }
}

impl fmt::Debug for Ack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ack").field("token", &self.token).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IdGenerator, Timestamp};
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Settlement>>);

    impl Settle for Recorder {
        fn settle(&self, settlements: &[Settlement]) {
            self.0.lock().extend_from_slice(settlements);
        }
    }

    fn chunk(recorder: &Arc<Recorder>, count: u64) -> Chunk {
        let ids = IdGenerator::default();
        let deliveries = (0..count)
            .map(|n| Delivery {
                message: Message::new(ids.next_id(), "x", Timestamp::default()),
                token: Token(n),
            })
            .collect();
        Chunk::new(Arc::clone(recorder) as Arc<dyn Settle>, deliveries)
    }

    #[test]
    fn dropping_a_chunk_nacks_every_message_in_it() {
        let recorder = Arc::new(Recorder::default());
        drop(chunk(&recorder, 3));
        let expected: Vec<_> =
            (0..3).map(|n| Settlement { token: Token(n), verdict: Verdict::Nack }).collect();
        assert_eq!(*recorder.0.lock(), expected);
    }

    #[test]
    fn an_ack_settles_once_and_nacks_when_dropped() {
        let recorder = Arc::new(Recorder::default());
        let mut acks = chunk(&recorder, 4).into_acks().into_iter().map(|(_, ack)| ack);
        acks.next().unwrap().ack();
        acks.next().unwrap().nack();
        acks.next().unwrap().give_back();
        drop(acks.next().unwrap());
        let verdicts: Vec<_> = recorder.0.lock().iter().map(|s| s.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ack, Verdict::Nack, Verdict::Return, Verdict::Nack]);
    }
}

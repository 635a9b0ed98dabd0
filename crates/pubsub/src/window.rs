//! What was handed out and has no verdict, without any I/O.

use messagepipeline::MessageId;
use std::collections::VecDeque;

/// How far the newest message handed out may be from the oldest without a verdict.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) messages: usize,
    /// Counted as [`messagepipeline::Message::weight`] does.
    pub(crate) bytes: usize,
}

impl Limits {
    /// Whether a message of `weight` bytes may be added to `messages` that weigh `bytes`. One may always be in flight.
    pub(crate) fn admit(self, messages: usize, bytes: usize, weight: usize) -> bool {
        messages == 0 || (messages < self.messages && bytes.saturating_add(weight) <= self.bytes)
    }
}

/// Deliveries from the oldest that is not finished to the newest. `H` is what settles one.
#[derive(Debug)]
pub(crate) struct Window<H> {
    /// Token of the first slot.
    first: u64,
    slots: VecDeque<Slot<H>>,
    weight: usize,
    unfinished: (usize, usize),
}

#[derive(Debug)]
struct Slot<H> {
    id: MessageId,
    weight: usize,
    /// `None` once a verdict was given.
    handle: Option<H>,
    is_finished: bool,
}

impl<H> Default for Window<H> {
    fn default() -> Self {
        Self { first: 0, slots: VecDeque::new(), weight: 0, unfinished: (0, 0) }
    }
}

impl<H> Window<H> {
    /// Messages from the oldest unfinished to the newest.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many of them are not finished, and their bytes.
    pub(crate) fn unfinished(&self) -> (usize, usize) {
        self.unfinished
    }

    /// Their bytes.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    /// Adds a delivery and answers with its token.
    pub(crate) fn push(&mut self, id: MessageId, weight: usize, handle: H) -> u64 {
        self.weight += weight;
        self.unfinished = (self.unfinished.0 + 1, self.unfinished.1 + weight);
        self.slots.push_back(Slot { id, weight, handle: Some(handle), is_finished: false });
        self.first + (self.slots.len() - 1) as u64
    }

    /// Takes the handle of a delivery for its verdict; `None` when it had one, or is gone.
    pub(crate) fn take(&mut self, token: u64) -> Option<(MessageId, H)> {
        let slot = self.slot(token)?;
        let handle = slot.handle.take()?;
        Some((slot.id, handle))
    }

    /// A delivery whose handle was taken is finished; it and what follows it makes room.
    pub(crate) fn finish(&mut self, token: u64) {
        if let Some(slot) = self.slot(token)
            && !std::mem::replace(&mut slot.is_finished, true)
        {
            let weight = slot.weight;
            self.unfinished = (self.unfinished.0 - 1, self.unfinished.1 - weight);
        }
        while self.slots.front().is_some_and(|slot| slot.is_finished) {
            if let Some(slot) = self.slots.pop_front() {
                self.weight -= slot.weight;
            }
            self.first += 1;
        }
    }

    /// Takes all handles without a verdict. Their tokens mean nothing any more.
    pub(crate) fn clear(&mut self) -> Vec<H> {
        self.slots.iter_mut().filter_map(|slot| slot.handle.take()).collect()
    }

    fn slot(&mut self, token: u64) -> Option<&mut Slot<H>> {
        let position = usize::try_from(token.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id() -> MessageId {
        MessageId::from_bytes([7; 16])
    }

    proptest! {
        #[test]
        fn length_and_weight_are_the_distance_from_the_oldest_unfinished_whatever_the_order(
            steps in proptest::collection::vec((any::<bool>(), 0usize..40, 1usize..100), 0..200),
        ) {
            let mut window = Window::default();
            let mut model: Vec<(u64, usize, bool)> = Vec::new();
            for (push, pick, weight) in steps {
                if push || model.is_empty() {
                    let token = window.push(id(), weight, weight);
                    prop_assert_eq!(token, model.len() as u64);
                    model.push((token, weight, false));
                } else {
                    let at = pick % model.len();
                    let (token, weight, finished) = model[at];
                    let taken = window.take(token).map(|(_, handle)| handle);
                    prop_assert_eq!(taken, (!finished).then_some(weight));
                    window.finish(token);
                    model[at].2 = true;
                }
                let oldest = model.iter().position(|(_, _, finished)| !finished).unwrap_or(model.len());
                prop_assert_eq!(window.len(), model.len() - oldest);
                prop_assert_eq!(window.weight(), model[oldest..].iter().map(|(_, weight, _)| weight).sum::<usize>());
            }
            let open = model.iter().filter(|(_, _, finished)| !finished).count();
            let weight = model.iter().filter(|(_, _, finished)| !finished).map(|(_, weight, _)| weight).sum::<usize>();
            prop_assert_eq!(window.unfinished(), (open, weight));
            prop_assert_eq!(window.clear().len(), open);
        }
    }

    #[test]
    fn one_message_is_admitted_however_heavy_and_then_none_beyond_a_bound() {
        let limits = Limits { messages: 2, bytes: 100 };
        assert!(limits.admit(0, 0, 1_000));
        assert!(limits.admit(1, 60, 40) && !limits.admit(1, 60, 41) && !limits.admit(2, 2, 1));
    }
}

//! The batching service's view of the batchers: whole chunks in, groups out.

use crate::owed::Owed;
use crate::stage::Stage;
use crate::{BatchLimits, Batcher, Delivery, Flush, FlushReason, Item, KeyedBatcher, Settle};
use std::collections::VecDeque;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use tokio::time::Instant;

/// Messages with their values, ready to be grouped.
pub(crate) struct Emitted<T> {
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) values: Vec<T>,
    pub(crate) origin: usize,
}

impl<T> Emitted<T> {
    fn into_items(self) -> impl Iterator<Item = Item<T>> {
        let origin = self.origin;
        self.deliveries.into_iter().zip(self.values).map(move |(delivery, value)| Item {
            message: delivery.message,
            value,
            token: delivery.token,
            origin,
        })
    }
}

/// A batcher of either kind.
pub(crate) trait Grouping<T>: Send {
    /// Groups a chunk; full groups go to `full`. Answers with items whose key could not be told.
    fn add_all(
        &mut self,
        emitted: Emitted<T>,
        now: Instant,
        full: &mut VecDeque<Flush<Item<T>>>,
    ) -> Vec<Item<T>>;
    fn pop_due(&mut self, now: Instant) -> Option<Flush<Item<T>>>;
    fn pop_over_budget(&mut self, elsewhere: usize) -> Option<Flush<Item<T>>>;
    fn pop_oldest(&mut self, reason: FlushReason) -> Option<Flush<Item<T>>>;
    fn next_deadline(&self) -> Option<Instant>;
    fn oldest(&self) -> Option<Instant>;
    fn bytes(&self) -> usize;
    fn groups(&self) -> usize;
}

impl<T: Send> Grouping<T> for Batcher<Item<T>> {
    fn add_all(
        &mut self,
        emitted: Emitted<T>,
        now: Instant,
        full: &mut VecDeque<Flush<Item<T>>>,
    ) -> Vec<Item<T>> {
        let weights: Vec<_> = emitted.deliveries.iter().map(|delivery| delivery.message.weight()).collect();
        self.extend(emitted.into_items(), weights.into_iter(), now, |flush| full.push_back(flush));
        Vec::new()
    }

    fn pop_due(&mut self, now: Instant) -> Option<Flush<Item<T>>> {
        Batcher::pop_due(self, now)
    }

    fn pop_over_budget(&mut self, elsewhere: usize) -> Option<Flush<Item<T>>> {
        Batcher::pop_over_budget(self, elsewhere)
    }

    fn pop_oldest(&mut self, reason: FlushReason) -> Option<Flush<Item<T>>> {
        Batcher::pop_oldest(self, reason)
    }

    fn next_deadline(&self) -> Option<Instant> {
        Batcher::next_deadline(self)
    }

    fn oldest(&self) -> Option<Instant> {
        Batcher::oldest(self)
    }

    fn bytes(&self) -> usize {
        Batcher::bytes(self)
    }

    fn groups(&self) -> usize {
        usize::from(!self.is_empty())
    }
}

/// The key-aware batcher with its key function.
pub(crate) struct Keyed<K, T, F> {
    batcher: KeyedBatcher<K, Item<T>>,
    key: F,
}

impl<K: Hash + Eq, T, F> Keyed<K, T, F> {
    pub(crate) fn new(limits: BatchLimits, key: F) -> Self {
        Self { batcher: KeyedBatcher::new(limits), key }
    }
}

impl<K, T, F> Grouping<T> for Keyed<K, T, F>
where
    K: Hash + Eq + Send,
    T: Send,
    F: Fn(&Item<T>) -> K + Send,
{
    fn add_all(
        &mut self,
        emitted: Emitted<T>,
        now: Instant,
        full: &mut VecDeque<Flush<Item<T>>>,
    ) -> Vec<Item<T>> {
        let mut faulty = Vec::new();
        for item in emitted.into_items() {
            match catch_unwind(AssertUnwindSafe(|| (self.key)(&item))) {
                Ok(key) => {
                    let bytes = item.message.weight();
                    self.batcher.add(key, item, bytes, now, |_, flush| full.push_back(flush));
                }
                Err(_) => faulty.push(item),
            }
        }
        faulty
    }

    fn pop_due(&mut self, now: Instant) -> Option<Flush<Item<T>>> {
        self.batcher.pop_due(now).map(|(_, flush)| flush)
    }

    fn pop_over_budget(&mut self, elsewhere: usize) -> Option<Flush<Item<T>>> {
        self.batcher.pop_over_budget(elsewhere).map(|(_, flush)| flush)
    }

    fn pop_oldest(&mut self, reason: FlushReason) -> Option<Flush<Item<T>>> {
        self.batcher.pop_oldest(reason).map(|(_, flush)| flush)
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.batcher.next_deadline()
    }

    fn oldest(&self) -> Option<Instant> {
        self.batcher.oldest()
    }

    fn bytes(&self) -> usize {
        self.batcher.bytes()
    }

    fn groups(&self) -> usize {
        self.batcher.groups()
    }
}

/// Whom to tell the verdicts of grouped items. Items name their origin by a number, so that grouping touches no
/// reference count per message.
#[derive(Default)]
pub(crate) struct Origins(Vec<Origin>);

struct Origin {
    settle: Arc<dyn Settle>,
    /// Items in groups.
    open: usize,
}

impl Origins {
    /// The number of `settle`, for `count` more items.
    pub(crate) fn intern(&mut self, settle: Arc<dyn Settle>, count: usize) -> usize {
        let known = self.0.iter().position(|origin| Arc::ptr_eq(&origin.settle, &settle));
        let unused = || self.0.iter().position(|origin| origin.open == 0);
        match known.or_else(unused) {
            Some(index) => {
                self.0[index].settle = settle;
                self.0[index].open += count;
                index
            }
            None => {
                self.0.push(Origin { settle, open: count });
                self.0.len() - 1
            }
        }
    }

    /// The debt for `items`, which have left their groups.
    pub(crate) fn owed<T>(&mut self, stage: &Arc<Stage>, items: Vec<Item<T>>) -> Owed<Item<T>> {
        let mut ends = Vec::new();
        let mut end = 0;
        for run in items.chunk_by(|one, other| one.origin == other.origin) {
            let origin = &mut self.0[run[0].origin];
            origin.open -= run.len();
            end += run.len();
            ends.push((Arc::clone(&origin.settle), end));
        }
        Owed::from_origins(stage, items, ends)
    }
}

//! Grouping by key, as pure state: a function of what is added and of the `now` handed in.
//!
//! Groups stand in a slab and are linked in the order in which they were opened. Since all have the same age limit
//! and time does not run backwards, the head of the list is at once the group that is due next and the oldest one,
//! which the byte budget takes first. (Flushing the oldest makes larger objects than flushing the largest, and it
//! bounds the age.)

use crate::batcher::{BatchLimits, Flush, FlushReason, Group};
use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::{BuildHasher, Hash};
use tokio::time::Instant;

/// One group per key, all with the same limits.
#[derive(Debug)]
pub struct KeyedBatcher<K, T> {
    limits: BatchLimits,
    hasher: DefaultHashBuilder,
    places: HashTable<usize>,
    slab: Vec<Option<Node<K, T>>>,
    free: Vec<usize>,
    oldest: Option<usize>,
    newest: Option<usize>,
    bytes: usize,
}

#[derive(Debug)]
struct Node<K, T> {
    hash: u64,
    key: K,
    group: Group<T>,
    older: Option<usize>,
    newer: Option<usize>,
}

impl<K: Hash + Eq, T> KeyedBatcher<K, T> {
    /// An empty batcher.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            hasher: DefaultHashBuilder::default(),
            places: HashTable::new(),
            slab: Vec::new(),
            free: Vec::new(),
            oldest: None,
            newest: None,
            bytes: 0,
        }
    }

    /// Adds an item that counts for `bytes` to the group of `key`; hands every group that is full thereby to
    /// `flushed`.
    pub fn add(&mut self, key: K, item: T, bytes: usize, now: Instant, mut flushed: impl FnMut(K, Flush<T>)) {
        let hash = self.hasher.hash_one(&key);
        let mut place = self.find(hash, &key);
        if let Some(open) = place
            && !self.node(open).is_some_and(|node| node.group.fits(bytes, &self.limits))
        {
            if let Some((key, flush)) = self.remove(open, FlushReason::Bytes) {
                flushed(key, flush);
            }
            place = None;
        }
        let place = place.unwrap_or_else(|| self.open(hash, key, now));
        let limits = self.limits;
        let Some(node) = self.slab.get_mut(place).and_then(Option::as_mut) else { return };
        let full = node.group.push(item, bytes, &limits);
        self.bytes = self.bytes.saturating_add(bytes);
        if let Some(reason) = full
            && let Some((key, flush)) = self.remove(place, reason)
        {
            flushed(key, flush);
        }
    }

    /// The oldest group, if it has reached its age.
    pub fn pop_due(&mut self, now: Instant) -> Option<(K, Flush<T>)> {
        let oldest = self.oldest?;
        if !self.node(oldest)?.group.is_due(&self.limits, now) {
            return None;
        }
        self.remove(oldest, FlushReason::Age)
    }

    /// The oldest group, if all groups and `elsewhere` bytes have reached the budget.
    pub fn pop_over_budget(&mut self, elsewhere: usize) -> Option<(K, Flush<T>)> {
        let is_over = self.bytes.saturating_add(elsewhere) >= self.limits.budget;
        if is_over { self.pop_oldest(FlushReason::Memory) } else { None }
    }

    /// The oldest group, if there is one.
    pub fn pop_oldest(&mut self, reason: FlushReason) -> Option<(K, Flush<T>)> {
        self.remove(self.oldest?, reason)
    }

    /// When the next group reaches its age.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.node(self.oldest?)?.group.deadline(&self.limits)
    }

    /// When the oldest group was opened.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        Some(self.node(self.oldest?)?.group.opened())
    }

    /// Bytes in all groups.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many groups are open.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.places.len()
    }

    /// Whether no group is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn node(&self, place: usize) -> Option<&Node<K, T>> {
        self.slab.get(place)?.as_ref()
    }

    fn find(&self, hash: u64, key: &K) -> Option<usize> {
        let is_key = |place: &usize| self.node(*place).is_some_and(|node| node.key == *key);
        self.places.find(hash, is_key).copied()
    }

    fn open(&mut self, hash: u64, key: K, now: Instant) -> usize {
        // Where keys are many most groups stay small; the default first capacity would be four items.
        let node = Node { hash, key, group: Group::open(now, 1), older: self.newest, newer: None };
        let place = match self.free.pop() {
            Some(place) => {
                self.slab[place] = Some(node);
                place
            }
            None => {
                self.slab.push(Some(node));
                self.slab.len() - 1
            }
        };
        let slab = &self.slab;
        let hash_of = |place: &usize| slab[*place].as_ref().map_or(0, |node| node.hash);
        self.places.insert_unique(hash, place, hash_of);
        self.link(self.newest, Some(place));
        self.newest = Some(place);
        place
    }

    /// Makes `newer` follow `older` in the list; the ends of the list are `None`.
    fn link(&mut self, older: Option<usize>, newer: Option<usize>) {
        match older.and_then(|place| self.slab[place].as_mut()) {
            Some(node) => node.newer = newer,
            None => self.oldest = newer,
        }
        match newer.and_then(|place| self.slab[place].as_mut()) {
            Some(node) => node.older = older,
            None => self.newest = older,
        }
    }

    fn remove(&mut self, place: usize, reason: FlushReason) -> Option<(K, Flush<T>)> {
        let node = self.slab.get_mut(place)?.take()?;
        self.link(node.older, node.newer);
        if let Ok(entry) = self.places.find_entry(node.hash, |other| *other == place) {
            entry.remove();
        }
        self.free.push(place);
        self.bytes -= node.group.bytes();
        Some((node.key, node.group.flush(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batcher;
    use proptest::prelude::*;
    use std::time::Duration;

    const LIMITS: BatchLimits =
        BatchLimits { count: 4, bytes: 50, age: Duration::from_millis(20), budget: 120 };

    #[derive(Clone, Debug)]
    enum Step {
        Add(u8, usize),
        Wait(u64),
        Due,
        Memory(usize),
        Oldest,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0u8..6, 0usize..60).prop_map(|(key, bytes)| Step::Add(key, bytes)),
            2 => (0u64..15).prop_map(Step::Wait),
            2 => Just(Step::Due),
            1 => (0usize..150).prop_map(Step::Memory),
            1 => Just(Step::Oldest),
        ];
        proptest::collection::vec(step, 0..120)
    }

    /// The same rules in the simplest form: groups in a list, searched from the front.
    #[derive(Default)]
    struct Model(Vec<(u8, Vec<u32>, usize, Duration)>);

    impl Model {
        fn bytes(&self) -> usize {
            self.0.iter().map(|group| group.2).sum()
        }

        fn take(&mut self, index: usize, reason: FlushReason) -> (u8, Flush<u32>) {
            let (key, items, bytes, _) = self.0.remove(index);
            (key, Flush { items, bytes, reason })
        }

        fn add(&mut self, key: u8, item: u32, bytes: usize, now: Duration, out: &mut Vec<(u8, Flush<u32>)>) {
            if let Some(index) = self.0.iter().position(|g| g.0 == key && g.2 + bytes > LIMITS.bytes) {
                out.push(self.take(index, FlushReason::Bytes));
            }
            let index = self.0.iter().position(|group| group.0 == key).unwrap_or_else(|| {
                self.0.push((key, Vec::new(), 0, now));
                self.0.len() - 1
            });
            self.0[index].1.push(item);
            self.0[index].2 += bytes;
            if self.0[index].1.len() >= LIMITS.count {
                out.push(self.take(index, FlushReason::Count));
            } else if self.0[index].2 >= LIMITS.bytes {
                out.push(self.take(index, FlushReason::Bytes));
            }
        }

        fn due(&mut self, now: Duration) -> Option<(u8, Flush<u32>)> {
            let oldest = self.0.first()?;
            (oldest.3 + LIMITS.age <= now).then(|| self.take(0, FlushReason::Age))
        }
    }

    proptest! {
        #[test]
        fn groups_by_key_behave_like_a_list_of_groups(steps in steps()) {
            let start = Instant::now();
            let mut elapsed = Duration::ZERO;
            let (mut batcher, mut model) = (KeyedBatcher::new(LIMITS), Model::default());
            for (item, step) in (0u32..).zip(&steps) {
                let now = start + elapsed;
                let (mut got, mut expected) = (Vec::new(), Vec::new());
                match *step {
                    Step::Add(key, bytes) => {
                        batcher.add(key, item, bytes, now, |key, flush| got.push((key, flush)));
                        model.add(key, item, bytes, elapsed, &mut expected);
                    }
                    Step::Wait(millis) => elapsed += Duration::from_millis(millis),
                    Step::Due => {
                        got.extend(batcher.pop_due(now));
                        expected.extend(model.due(elapsed));
                    }
                    Step::Memory(elsewhere) => {
                        got.extend(batcher.pop_over_budget(elsewhere));
                        if model.bytes() + elsewhere >= LIMITS.budget && !model.0.is_empty() {
                            expected.push(model.take(0, FlushReason::Memory));
                        }
                    }
                    Step::Oldest => {
                        got.extend(batcher.pop_oldest(FlushReason::Idle));
                        if !model.0.is_empty() {
                            expected.push(model.take(0, FlushReason::Idle));
                        }
                    }
                }
                prop_assert_eq!(got, expected);
                prop_assert_eq!((batcher.bytes(), batcher.groups()), (model.bytes(), model.0.len()));
                let deadline = model.0.first().map(|group| start + group.3 + LIMITS.age);
                prop_assert_eq!(batcher.next_deadline(), deadline);
            }
        }

        #[test]
        fn the_plain_batcher_is_the_keyed_one_with_a_single_key(steps in steps()) {
            let mut now = Instant::now();
            let (mut plain, mut keyed) = (Batcher::new(LIMITS), KeyedBatcher::new(LIMITS));
            for (item, step) in (0u32..).zip(&steps) {
                let (mut one, mut other) = (Vec::new(), Vec::new());
                match *step {
                    Step::Add(_, bytes) => {
                        plain.add(item, bytes, now, |flush| one.push(flush));
                        keyed.add((), item, bytes, now, |(), flush| other.push(flush));
                    }
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                    Step::Due => {
                        one.extend(plain.pop_due(now));
                        other.extend(keyed.pop_due(now).map(|((), flush)| flush));
                    }
                    Step::Memory(elsewhere) => {
                        one.extend(plain.pop_over_budget(elsewhere));
                        other.extend(keyed.pop_over_budget(elsewhere).map(|((), flush)| flush));
                    }
                    Step::Oldest => {
                        one.extend(plain.pop_oldest(FlushReason::Idle));
                        other.extend(keyed.pop_oldest(FlushReason::Idle).map(|((), flush)| flush));
                    }
                }
                prop_assert_eq!(one, other);
                prop_assert_eq!(plain.next_deadline(), keyed.next_deadline());
                prop_assert_eq!(plain.bytes(), keyed.bytes());
            }
        }
    }
}

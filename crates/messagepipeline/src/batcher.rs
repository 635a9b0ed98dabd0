//! Grouping without keys, as pure state: a function of what is added and of the `now` handed in.

use std::iter::Peekable;
use std::time::Duration;
use tokio::time::Instant;

/// When a group is flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchLimits {
    /// Items in a group, at most; zero counts as one.
    pub count: usize,
    /// Bytes in a group, at most; an item that alone is larger makes a group of its own.
    pub bytes: usize,
    /// Time from a group's first item until it is flushed, at most. Zero: no lingering, a group is flushed as soon as
    /// the consumer has nothing ready at once.
    pub age: Duration,
    /// Bytes that the service holds in open groups and in calls in flight, together. At this budget the oldest group
    /// is flushed, and nothing more is received until a call has ended.
    pub budget: usize,
}

impl BatchLimits {
    /// Limits of a stage that publishes: whole chunks go out at once, and several publishes are under way, because a
    /// bus shares one sync among them. `budget` is the bytes of the whole service.
    #[must_use]
    pub fn publishing(budget: usize) -> Self {
        Self { count: 2_000, bytes: 4 << 20, age: Duration::ZERO, budget }
    }
}

impl Default for BatchLimits {
    /// 1,000 items (a commit or a request costs the same for one item as for hundreds), 4 MiB (below the request
    /// limits of the services we write to), 1 s, 64 MiB.
    fn default() -> Self {
        Self { count: 1_000, bytes: 4 << 20, age: Duration::from_secs(1), budget: 64 << 20 }
    }
}

/// Why a group was flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FlushReason {
    /// It reached its count.
    Count,
    /// It reached its bytes.
    Bytes,
    /// It reached its age.
    Age,
    /// It was the oldest when all groups together reached the byte budget, or when the consumer had nearly come as far
    /// ahead of it as it goes.
    Memory,
    /// The consumer had nothing ready at once.
    Idle,
    /// The service stops, or its source has ended.
    Shutdown,
}

impl FlushReason {
    /// All of them, in the order of their declaration.
    pub(crate) const ALL: [Self; 6] =
        [Self::Count, Self::Bytes, Self::Age, Self::Memory, Self::Idle, Self::Shutdown];

    /// The word in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Memory => "memory",
            Self::Idle => "idle",
            Self::Shutdown => "shutdown",
        }
    }
}

/// A group that was flushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flush<T> {
    /// Its items, in the order in which they were added.
    pub items: Vec<T>,
    /// Their bytes.
    pub bytes: usize,
    /// Why it was flushed.
    pub reason: FlushReason,
}

/// A group that is open, and the rules that close it; both batchers are made of these.
#[derive(Debug)]
pub(crate) struct Group<T> {
    items: Vec<T>,
    bytes: usize,
    opened: Instant,
}

impl<T> Group<T> {
    /// A group that will probably hold `items` items.
    pub(crate) fn open(now: Instant, items: usize) -> Self {
        Self { items: Vec::with_capacity(items), bytes: 0, opened: now }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn opened(&self) -> Instant {
        self.opened
    }

    /// Whether an item of `bytes` bytes still fits; the first one always does.
    pub(crate) fn fits(&self, bytes: usize, limits: &BatchLimits) -> bool {
        self.items.is_empty() || self.has_room(bytes, limits)
    }

    fn has_room(&self, bytes: usize, limits: &BatchLimits) -> bool {
        self.bytes.saturating_add(bytes) <= limits.bytes
    }

    /// Adds an item; answers why the group is full now, if it is.
    #[inline]
    pub(crate) fn push(&mut self, item: T, bytes: usize, limits: &BatchLimits) -> Option<FlushReason> {
        self.items.push(item);
        self.bytes = self.bytes.saturating_add(bytes);
        self.full_with(self.items.len(), limits)
    }

    /// Why the group is full with `items` items, if it is.
    fn full_with(&self, items: usize, limits: &BatchLimits) -> Option<FlushReason> {
        if items >= limits.count {
            Some(FlushReason::Count)
        } else if self.bytes >= limits.bytes {
            Some(FlushReason::Bytes)
        } else {
            None
        }
    }

    /// Takes the bytes of as many items as fit; answers how many these are, and why the group is full with them, if
    /// it is. The caller adds the items.
    fn take_bytes(
        &mut self,
        weights: &mut Peekable<impl Iterator<Item = usize>>,
        limits: &BatchLimits,
    ) -> (usize, Option<FlushReason>) {
        let mut count = 0;
        while let Some(bytes) =
            weights.next_if(|bytes| count + self.items.len() == 0 || self.has_room(*bytes, limits))
        {
            count += 1;
            self.bytes = self.bytes.saturating_add(bytes);
            let full = self.full_with(self.items.len() + count, limits);
            if full.is_some() {
                return (count, full);
            }
        }
        (count, None)
    }

    /// When it reaches its age; `None` if it never does.
    pub(crate) fn deadline(&self, limits: &BatchLimits) -> Option<Instant> {
        if limits.age.is_zero() { None } else { self.opened.checked_add(limits.age) }
    }

    pub(crate) fn is_due(&self, limits: &BatchLimits, now: Instant) -> bool {
        self.deadline(limits).is_some_and(|deadline| deadline <= now)
    }

    pub(crate) fn flush(self, reason: FlushReason) -> Flush<T> {
        Flush { items: self.items, bytes: self.bytes, reason }
    }
}

/// One group at a time, without keys.
#[derive(Debug)]
pub struct Batcher<T> {
    limits: BatchLimits,
    group: Option<Group<T>>,
    /// Items of the last group: the guess for the next one.
    last: usize,
}

impl<T> Batcher<T> {
    /// An empty batcher.
    #[must_use]
    pub fn new(limits: BatchLimits) -> Self {
        Self { limits, group: None, last: 0 }
    }

    /// Adds an item that counts for `bytes`; hands every group that is full thereby to `flushed`.
    #[inline]
    pub fn add(&mut self, item: T, bytes: usize, now: Instant, mut flushed: impl FnMut(Flush<T>)) {
        if let Some(full) = self.group.take_if(|group| !group.fits(bytes, &self.limits)) {
            self.last = full.items.len();
            flushed(full.flush(FlushReason::Bytes));
        }
        let group = self.group.get_or_insert_with(|| Group::open(now, self.last));
        if let Some(reason) = group.push(item, bytes, &self.limits)
            && let Some(full) = self.group.take()
        {
            self.last = full.items.len();
            flushed(full.flush(reason));
        }
    }

    /// Adds items one after the other, as [`Batcher::add`] does. Each is moved once only, because first it is looked
    /// up how many of them go into the same group: `weights` are their bytes.
    pub(crate) fn extend(
        &mut self,
        mut items: impl Iterator<Item = T>,
        weights: impl Iterator<Item = usize>,
        now: Instant,
        mut flushed: impl FnMut(Flush<T>),
    ) {
        let mut weights = weights.peekable();
        while let Some(&first) = weights.peek() {
            if let Some(full) = self.group.take_if(|group| !group.fits(first, &self.limits)) {
                self.last = full.items.len();
                flushed(full.flush(FlushReason::Bytes));
            }
            let group = self.group.get_or_insert_with(|| Group::open(now, self.last));
            let (count, reason) = group.take_bytes(&mut weights, &self.limits);
            group.items.extend(items.by_ref().take(count));
            if let Some(reason) = reason
                && let Some(full) = self.group.take()
            {
                self.last = full.items.len();
                flushed(full.flush(reason));
            }
        }
    }

    /// The group, if it has reached its age.
    pub fn pop_due(&mut self, now: Instant) -> Option<Flush<T>> {
        let due = self.group.take_if(|group| group.is_due(&self.limits, now))?;
        self.last = due.items.len();
        Some(due.flush(FlushReason::Age))
    }

    /// The group, if it and `elsewhere` bytes have reached the budget.
    pub fn pop_over_budget(&mut self, elsewhere: usize) -> Option<Flush<T>> {
        let is_over = self.bytes().saturating_add(elsewhere) >= self.limits.budget;
        if is_over { self.pop_oldest(FlushReason::Memory) } else { None }
    }

    /// The group, if there is one.
    pub fn pop_oldest(&mut self, reason: FlushReason) -> Option<Flush<T>> {
        let group = self.group.take()?;
        self.last = group.items.len();
        Some(group.flush(reason))
    }

    /// When the group reaches its age.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        self.group.as_ref()?.deadline(&self.limits)
    }

    /// When the group was opened.
    #[must_use]
    pub fn oldest(&self) -> Option<Instant> {
        self.group.as_ref().map(Group::opened)
    }

    /// Bytes in the group.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.group.as_ref().map_or(0, Group::bytes)
    }

    /// Whether no group is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.group.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn items_added_at_once_are_grouped_like_items_added_singly(
            chunks in proptest::collection::vec(proptest::collection::vec(0..120usize, 0..12), 0..8),
        ) {
            let limits = BatchLimits { count: 5, bytes: 200, ..BatchLimits::default() };
            let now = Instant::now();
            let (mut single, mut whole) = (Batcher::new(limits), Batcher::new(limits));
            let (mut expected, mut got) = (Vec::new(), Vec::new());
            for chunk in chunks {
                for bytes in &chunk {
                    single.add(*bytes, *bytes, now, |flush| expected.push(flush));
                }
                whole.extend(chunk.iter().copied(), chunk.iter().copied(), now, |flush| got.push(flush));
                prop_assert_eq!(&got, &expected);
                prop_assert_eq!((whole.bytes(), whole.is_empty()), (single.bytes(), single.is_empty()));
            }
            prop_assert_eq!(whole.pop_oldest(FlushReason::Idle), single.pop_oldest(FlushReason::Idle));
        }
    }
}

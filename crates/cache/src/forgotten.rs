//! Which keys were invalidated lately, so that a look-up that began before does not put an old value back.

use std::collections::{HashSet, VecDeque};

/// Invalidations that are remembered; a look-up during which more came keeps nothing.
const REMEMBERED: usize = 1_024;

/// The latest invalidations, in order.
#[derive(Debug, Default)]
pub(crate) struct Forgotten {
    /// How many there were in all.
    count: u64,
    /// The last of them; `None` stands for all keys.
    recent: VecDeque<Option<Box<str>>>,
}

impl Forgotten {
    /// The moment now, to be handed to [`retain`](Self::retain) later.
    pub(crate) fn moment(&self) -> u64 {
        self.count
    }

    /// Remembers that `key` was invalidated, or everything.
    pub(crate) fn record(&mut self, key: Option<&str>) {
        self.count += 1;
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(key.map(Box::from));
    }

    /// Takes out of `entries` what was invalidated since `moment`.
    pub(crate) fn retain<T>(&self, moment: u64, entries: &mut Vec<(Box<str>, T)>) {
        let since = usize::try_from(self.count - moment).unwrap_or(usize::MAX);
        if since == 0 {
            return;
        }
        let Some(first) = self.recent.len().checked_sub(since) else { return entries.clear() };
        let keys: HashSet<Option<&str>> = self.recent.iter().skip(first).map(Option::as_deref).collect();
        if keys.contains(&None) {
            entries.clear();
        } else {
            entries.retain(|(key, _)| !keys.contains(&Some(&**key)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exactly_what_was_invalidated_since_is_taken_out(
            before in proptest::collection::vec(proptest::option::of("[a-d]"), 0..3),
            after in proptest::collection::vec(proptest::option::weighted(0.9, "[a-d]"), 0..4),
        ) {
            let mut forgotten = Forgotten::default();
            before.iter().for_each(|key| forgotten.record(key.as_deref()));
            let moment = forgotten.moment();
            after.iter().for_each(|key| forgotten.record(key.as_deref()));
            let mut entries: Vec<(Box<str>, ())> = ["a", "b", "c", "d"].map(|key| (key.into(), ())).into();
            forgotten.retain(moment, &mut entries);
            for key in ["a", "b", "c", "d"] {
                let gone = after.iter().any(|one| one.as_deref().is_none_or(|one| one == key));
                prop_assert_eq!(!gone, entries.iter().any(|(one, ())| &**one == key));
            }
        }
    }

    #[test]
    fn when_more_came_than_is_remembered_nothing_is_kept() {
        let mut forgotten = Forgotten::default();
        for _ in 0..=REMEMBERED {
            forgotten.record(Some("other"));
        }
        for (moment, kept) in [(0, 0), (1, 1)] {
            let mut entries: Vec<(Box<str>, ())> = vec![("a".into(), ())];
            forgotten.retain(moment, &mut entries);
            assert_eq!(entries.len(), kept);
        }
        assert_eq!(forgotten.recent.len(), REMEMBERED);
    }
}

//! A set of numbers as runs.

use std::collections::BTreeMap;

/// A set of numbers, kept as runs without gaps. Inserted runs may overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    /// First number to last number; neither overlapping nor touching.
    runs: BTreeMap<u64, u64>,
    len: u64,
}

impl Runs {
    /// Adds `first` to `last`, both included.
    pub(super) fn insert(&mut self, first: u64, last: u64) {
        let (mut first, mut last) = (first, last);
        let touching = self.runs.range(..=last.saturating_add(1)).rev();
        let touching: Vec<_> =
            touching.take_while(|(_, end)| **end >= first.saturating_sub(1)).map(|(a, b)| (*a, *b)).collect();
        for (start, end) in touching {
            self.runs.remove(&start);
            self.len -= end - start + 1;
            first = first.min(start);
            last = last.max(end);
        }
        self.runs.insert(first, last);
        self.len += last - first + 1;
    }

    /// Whether `number` is in it.
    pub(super) fn contains(&self, number: u64) -> bool {
        self.runs.range(..=number).next_back().is_some_and(|(_, last)| *last >= number)
    }

    /// The lowest run.
    pub(super) fn first(&self) -> Option<(u64, u64)> {
        self.runs.first_key_value().map(|(first, last)| (*first, *last))
    }

    /// Takes the lowest run out.
    pub(super) fn remove_first(&mut self) {
        if let Some((first, last)) = self.runs.pop_first() {
            self.len -= last - first + 1;
        }
    }

    /// How many numbers.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn runs_hold_exactly_the_inserted_numbers(inserted in proptest::collection::vec((0_u64..60, 0_u64..6), 0..30)) {
            let mut runs = Runs::default();
            let mut model = BTreeSet::new();
            for (first, more) in inserted {
                runs.insert(first, first + more);
                model.extend(first..=first + more);
            }
            prop_assert_eq!(runs.len(), model.len() as u64);
            for number in 0..70 {
                prop_assert_eq!(runs.contains(number), model.contains(&number));
            }
            let mut read = BTreeSet::new();
            while let Some((first, last)) = runs.first() {
                read.extend(first..=last);
                runs.remove_first();
            }
            prop_assert_eq!(read, model);
        }
    }
}

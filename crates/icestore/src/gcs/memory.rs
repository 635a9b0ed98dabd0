//! What this process knows of the bucket: pure state, bounded.

use crate::{ArchiveObject, LineRef};
use messagepipeline::{MessageId, Timestamp};
use std::collections::{HashMap, HashSet};

/// Folders remembered as doubtful. Beyond it their doubts become one about all folders.
const MAX_FOLDERS: usize = 10_000;

/// Ids of archived messages, the objects they came from, and until when messages may be archived unknown to us.
///
/// Two generations: when the young one is full the old one is forgotten and the young one becomes old. An object and
/// its ids lie in one generation, so an object that counts as seen has its ids remembered.
#[derive(Debug)]
pub(super) struct Memory {
    young: Generation,
    old: Generation,
    /// Ids in one generation.
    capacity: usize,
    /// Messages received until then, in whatever folder, may have been archived by somebody before us.
    unknown_until: Timestamp,
    /// The last messages of objects that seemed to fail and may be there, by folder.
    doubts: HashMap<String, Timestamp>,
    /// The same of folders that are too many to tell apart.
    doubtful_until: Timestamp,
    /// Ids of objects that are on their way.
    claimed: HashSet<MessageId>,
}

#[derive(Debug, Default)]
struct Generation {
    ids: HashMap<MessageId, u64>,
    objects: HashSet<String>,
}

/// Whether an object may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Its ids are claimed until they are [released](Memory::release).
    Granted,
    /// Some of its ids are archived.
    Overlaps,
    /// Some of its ids are on their way in another object.
    Busy,
}

impl Memory {
    /// Keeps `remembered` ids at most. What was received until `unknown_until` may be in the bucket already.
    pub(super) fn new(remembered: usize, unknown_until: Timestamp) -> Self {
        Self {
            young: Generation::default(),
            old: Generation::default(),
            capacity: (remembered / 2).max(1),
            unknown_until,
            doubts: HashMap::new(),
            doubtful_until: Timestamp::from_micros(i64::MIN),
            claimed: HashSet::new(),
        }
    }

    /// The fingerprint under which a message is archived.
    pub(super) fn fingerprint(&self, id: &MessageId) -> Option<u64> {
        self.young.ids.get(id).or_else(|| self.old.ids.get(id)).copied()
    }

    pub(super) fn overlaps(&self, object: &ArchiveObject) -> bool {
        object.lines.iter().any(|line| self.fingerprint(&line.id).is_some())
    }

    /// The messages of `object` that are remembered, as they are archived.
    pub(super) fn archived(&self, object: &ArchiveObject) -> Vec<LineRef> {
        let archived =
            |line: &LineRef| Some(LineRef { id: line.id, fingerprint: self.fingerprint(&line.id)? });
        object.lines.iter().filter_map(archived).collect()
    }

    pub(super) fn claim(&mut self, object: &ArchiveObject) -> Claim {
        if self.overlaps(object) {
            return Claim::Overlaps;
        }
        if object.lines.iter().any(|line| self.claimed.contains(&line.id)) {
            return Claim::Busy;
        }
        self.claimed.extend(object.lines.iter().map(|line| line.id));
        Claim::Granted
    }

    pub(super) fn release(&mut self, ids: impl IntoIterator<Item = MessageId>) {
        for id in ids {
            self.claimed.remove(&id);
        }
    }

    /// Remembers what is in the object `name`.
    pub(super) fn record(&mut self, name: &str, lines: &[LineRef]) {
        if !self.young.ids.is_empty() && self.young.ids.len() + lines.len() > self.capacity {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.ids.extend(lines.iter().map(|line| (line.id, line.fingerprint)));
        self.young.objects.insert(name.to_owned());
    }

    /// Remembers lines as the youngest, whatever object they are in.
    pub(super) fn remember(&mut self, lines: &[LineRef]) {
        self.young.ids.extend(lines.iter().map(|line| (line.id, line.fingerprint)));
    }

    /// Whether the ids of the object `name` are remembered.
    pub(super) fn has_seen(&self, name: &str) -> bool {
        self.young.objects.contains(name) || self.old.objects.contains(name)
    }

    /// Whether messages, the first of them received at `first_received`, may have been archived before we started.
    pub(super) fn is_from_before(&self, first_received: Timestamp) -> bool {
        first_received <= self.unknown_until
    }

    /// Whether messages of `folder`, the first of them received at `first_received`, may be in an object of ours that
    /// seemed to fail.
    pub(super) fn is_doubtful(&self, folder: &str, first_received: Timestamp) -> bool {
        first_received <= self.doubtful_until
            || self.doubts.get(folder).is_some_and(|until| first_received <= *until)
    }

    /// An object of `folder` seemed to fail and may be there, or come to be there: its messages, the last of them
    /// received at `last_received`, are looked for whenever they come.
    pub(super) fn doubt(&mut self, folder: &str, last_received: Timestamp) {
        if !self.doubts.contains_key(folder) && self.doubts.len() >= MAX_FOLDERS {
            let doubts = std::mem::take(&mut self.doubts);
            self.doubtful_until = doubts.into_values().fold(self.doubtful_until, Ord::max);
        }
        let until = self.doubts.entry(folder.to_owned()).or_insert(last_received);
        *until = last_received.max(*until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::IdGenerator;
    use proptest::prelude::*;

    fn lines(count: usize) -> Vec<LineRef> {
        let ids = IdGenerator::default();
        (0..count).map(|n| LineRef { id: ids.next_id(), fingerprint: n as u64 }).collect()
    }

    proptest! {
        #[test]
        fn it_stays_bounded_and_an_object_it_has_seen_has_all_its_ids_remembered(
            sizes in proptest::collection::vec(1_usize..40, 1..40),
        ) {
            let mut memory = Memory::new(100, at(0));
            let objects: Vec<_> = sizes.into_iter().map(lines).collect();
            for (at, object) in objects.iter().enumerate() {
                memory.record(&at.to_string(), object);
                prop_assert!(memory.has_seen(&at.to_string()));
                prop_assert!(memory.young.ids.len() <= 50 && memory.old.ids.len() <= 50);
                for (before, lines) in objects[..=at].iter().enumerate() {
                    if memory.has_seen(&before.to_string()) {
                        for line in lines {
                            prop_assert_eq!(memory.fingerprint(&line.id), Some(line.fingerprint));
                        }
                    }
                }
            }
        }
    }

    fn at(second: usize) -> Timestamp {
        Timestamp::from_micros(second as i64 * 1_000_000)
    }

    #[test]
    fn what_was_received_before_the_start_may_be_archived_and_is_not_for_that_in_doubt() {
        let memory = Memory::new(100, at(10));
        assert!(memory.is_from_before(at(9)) && memory.is_from_before(at(10)));
        assert!(!memory.is_from_before(at(11)) && !memory.is_doubtful("loc", at(9)));
    }

    #[test]
    fn folders_are_bounded_and_no_doubt_is_ever_forgotten() {
        let mut memory = Memory::new(100, at(0));
        for number in 1..=2 * MAX_FOLDERS + 1 {
            memory.doubt(&number.to_string(), at(number));
            memory.doubt(&number.to_string(), at(1));
        }
        assert!(memory.doubts.len() <= MAX_FOLDERS);
        for number in 1..=2 * MAX_FOLDERS + 1 {
            assert!(memory.is_doubtful(&number.to_string(), at(number)));
        }
        assert!(!memory.is_doubtful("1", at(2 * MAX_FOLDERS + 2)));
    }
}

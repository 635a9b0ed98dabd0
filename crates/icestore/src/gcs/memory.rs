//! What this process knows of the bucket: pure state, bounded.

use crate::{ArchiveObject, LineRef};
use messagepipeline::MessageId;
use std::collections::{HashMap, HashSet};

/// Folders remembered as looked into. Beyond it all are forgotten, which costs a list each.
const MAX_FOLDERS: usize = 10_000;

/// Ids of archived messages, the objects they came from, and the folders that were looked into.
///
/// Two generations: when the young one is full the old one is forgotten and the young one becomes old. An object and
/// its ids lie in one generation, so an object that counts as seen has its ids remembered.
#[derive(Debug)]
pub(super) struct Memory {
    young: Generation,
    old: Generation,
    /// Ids in one generation.
    capacity: usize,
    looked: HashSet<String>,
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
    pub(super) fn new(remembered: usize) -> Self {
        Self {
            young: Generation::default(),
            old: Generation::default(),
            capacity: (remembered / 2).max(1),
            looked: HashSet::new(),
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

    pub(super) fn has_looked(&self, folder: &str) -> bool {
        self.looked.contains(folder)
    }

    pub(super) fn looked(&mut self, folder: &str) {
        if self.looked.len() >= MAX_FOLDERS {
            self.looked.clear();
        }
        self.looked.insert(folder.to_owned());
    }

    /// The next object of `folder` looks again: one that seemed to fail may be there.
    pub(super) fn doubt(&mut self, folder: &str) {
        self.looked.remove(folder);
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
            let mut memory = Memory::new(100);
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

    #[test]
    fn folders_are_bounded_and_a_doubtful_one_is_looked_into_again() {
        let mut memory = Memory::new(100);
        for number in 0..=MAX_FOLDERS {
            memory.looked(&number.to_string());
        }
        assert!(memory.looked.len() <= MAX_FOLDERS);
        let last = MAX_FOLDERS.to_string();
        assert!(memory.has_looked(&last));
        memory.doubt(&last);
        assert!(!memory.has_looked(&last));
    }
}

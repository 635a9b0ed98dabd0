//! What this process knows to be stored, so that a redelivery to it makes no second row.

use crate::{Columns, Row, Source, Value};
use messagepipeline::MessageId;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

/// The ids stored last, and those on their way.
#[derive(Debug)]
pub(super) struct Memory {
    /// Position of the first column that holds the payload.
    payload: Option<usize>,
    capacity: usize,
    hasher: RandomState,
    ids: Mutex<Ids>,
}

#[derive(Debug, Default)]
struct Ids {
    /// Fingerprint of the payload; `None` where only the id is known.
    stored: HashMap<MessageId, Option<u64>>,
    order: VecDeque<MessageId>,
    under_way: HashSet<MessageId>,
}

/// What a row is, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// To be stored.
    New,
    /// Stored before.
    Stored,
    /// Its id was stored with another payload.
    Conflict,
    /// Another call is storing its id at this moment.
    UnderWay,
    /// The same row stands at this place of the same call.
    RepeatOf(usize),
    /// Its id stands at this place of the same call, with another payload.
    ConflictWith(usize),
}

impl Memory {
    pub(super) fn new(columns: &Columns, capacity: usize) -> Self {
        let payload = columns.iter().position(|column| column.sources == [Source::Payload]);
        Self { payload, capacity, hasher: RandomState::new(), ids: Mutex::default() }
    }

    /// Notes that `ids` are stored, with payloads unknown.
    pub(super) fn recall(&self, ids: impl IntoIterator<Item = MessageId>) {
        let mut known = self.ids.lock();
        for id in ids {
            known.remember(id, None, self.capacity);
        }
    }

    /// Judges `rows` and claims the new ones until the claim is dropped.
    pub(super) fn claim(&self, rows: &[Row]) -> Claim<'_> {
        let prints: Vec<_> = rows.iter().map(|row| self.fingerprint(row)).collect();
        let mut standings = Vec::with_capacity(rows.len());
        let mut claimed: HashMap<MessageId, usize> = HashMap::with_capacity(rows.len());
        let mut known = self.ids.lock();
        for (at, row) in rows.iter().enumerate() {
            let standing = match (claimed.get(&row.id), known.stored.get(&row.id).copied()) {
                (Some(first), _) if prints[*first] == prints[at] => Standing::RepeatOf(*first),
                (Some(first), _) => Standing::ConflictWith(*first),
                (None, Some(None)) => Standing::Stored,
                (None, Some(stored)) if stored == prints[at] => Standing::Stored,
                (None, Some(_)) => Standing::Conflict,
                (None, None) if known.under_way.insert(row.id) => {
                    claimed.insert(row.id, at);
                    Standing::New
                }
                (None, None) => Standing::UnderWay,
            };
            standings.push(standing);
        }
        drop(known);
        Claim { memory: self, ids: claimed.into_keys().collect(), prints, standings }
    }

    fn fingerprint(&self, row: &Row) -> Option<u64> {
        let bytes: &[u8] = match row.values.get(self.payload?)? {
            Value::Bytes(bytes) => bytes,
            Value::String(text) | Value::Json(text) => text.as_bytes(),
            _ => &[],
        };
        Some(self.hasher.hash_one(bytes))
    }
}

impl Ids {
    fn remember(&mut self, id: MessageId, fingerprint: Option<u64>, capacity: usize) {
        if self.stored.insert(id, fingerprint).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > capacity {
            if let Some(oldest) = self.order.pop_front() {
                self.stored.remove(&oldest);
            }
        }
    }
}

/// Rows of one call. Dropping it frees the ids that were claimed and not stored.
#[derive(Debug)]
pub(super) struct Claim<'m> {
    memory: &'m Memory,
    ids: Vec<MessageId>,
    prints: Vec<Option<u64>>,
    standings: Vec<Standing>,
}

impl Claim<'_> {
    pub(super) fn standings(&self) -> &[Standing] {
        &self.standings
    }

    /// Notes that the rows at `places` of the call are stored.
    pub(super) fn stored(&self, rows: &[Row], places: impl Iterator<Item = usize>) {
        let mut known = self.memory.ids.lock();
        for at in places {
            known.remember(rows[at].id, self.prints[at], self.memory.capacity);
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut known = self.memory.ids.lock();
        for id in &self.ids {
            known.under_way.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RowMapper;
    use messagepipeline::{IdGenerator, Message, Timestamp};

    fn row(id: MessageId, payload: &'static str) -> Row {
        RowMapper::new(Columns::default()).map(&Message::new(id, payload, Timestamp::default())).unwrap()
    }

    #[test]
    fn an_id_is_stored_under_way_or_free_and_compared_by_its_payload() {
        let memory = Memory::new(&Columns::default(), 10);
        let ids = IdGenerator::default();
        let (a, b) = (ids.next_id(), ids.next_id());
        let rows = [row(a, "1"), row(a, "1"), row(a, "2"), row(b, "3")];
        let claim = memory.claim(&rows);
        use Standing::*;
        assert_eq!(claim.standings(), [New, RepeatOf(0), ConflictWith(0), New]);
        assert_eq!(memory.claim(&rows[3..]).standings(), [UnderWay]);
        claim.stored(&rows, [0].into_iter());
        drop(claim);
        let claim = memory.claim(&[row(a, "1"), row(a, "2"), row(b, "3")]);
        assert_eq!(claim.standings(), [Stored, Conflict, New], "what was not stored is free again");
        memory.recall([b]);
        assert_eq!(memory.claim(&[row(b, "other")]).standings(), [Stored], "nothing to compare with");
    }

    #[test]
    fn the_oldest_ids_are_forgotten_beyond_the_bound() {
        let memory = Memory::new(&Columns::default(), 2);
        let ids = IdGenerator::default();
        let rows: Vec<_> = (0..3).map(|_| row(ids.next_id(), "x")).collect();
        let claim = memory.claim(&rows);
        claim.stored(&rows, 0..3);
        drop(claim);
        assert_eq!(memory.claim(&rows).standings(), [Standing::New, Standing::Stored, Standing::Stored]);
        assert_eq!(memory.ids.lock().stored.len(), 2);
    }
}

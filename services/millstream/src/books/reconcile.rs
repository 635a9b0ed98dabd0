//! Comparing stores by message id: one pass over sorted id streams.
//!
//! Every store gives its ids in rising order. The pass takes the smallest id that is left, notes which stores have
//! it, and judges it: for each destination, the id is stored there, or ended earlier (dead letter, skip), or is still
//! on its way; else it is unaccounted for. Memory does not grow with the number of ids.

use messagepipeline::{Digest, MessageId, Timestamp};
use serde::Serialize;

/// What a store says about the ids it lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Set {
    /// Published to topic `raw`.
    Raw,
    /// Published to topic `enriched`.
    Enriched,
    /// A row of the warehouse.
    Warehouse,
    /// A line of the archive.
    Archive,
    /// Ended (dead letter, skip, dropped by a person) before topic `raw`.
    EndedIngestion,
    /// Ended at enrichment.
    EndedEnrichment,
    /// Ended at the warehouse.
    EndedWarehouse,
    /// Ended at the archive.
    EndedArchive,
    /// Not settled by enrichment.
    PendingEnrichment,
    /// Not settled by the warehouse.
    PendingWarehouse,
    /// Not settled by the archive.
    PendingArchive,
    /// Parked until its device is known.
    Parked,
}

const SETS: usize = 12;

/// The sets an id is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Membership(u16);

impl Membership {
    /// Adds `set`.
    pub(crate) fn insert(&mut self, set: Set) {
        self.0 |= 1 << set as u8;
    }

    /// Whether the id is in `set`.
    #[must_use]
    fn has(self, set: Set) -> bool {
        self.0 & (1 << set as u8) != 0
    }

    fn has_any(self, sets: &[Set]) -> bool {
        sets.iter().any(|set| self.has(*set))
    }

    fn missing(self) -> Vec<&'static str> {
        use Set::{
            Archive, EndedArchive, EndedEnrichment, EndedIngestion, EndedWarehouse, Enriched, Parked,
            PendingArchive, PendingEnrichment, PendingWarehouse, Raw, Warehouse,
        };
        let letters = [EndedIngestion, EndedEnrichment, EndedWarehouse, EndedArchive];
        if !self.has_any(&[Raw, Enriched, Warehouse, Archive]) && self.has_any(&letters) {
            // Refused before it entered, or a letter about an id that stands for another message: it has an id of
            // its own, and the letter is its outcome.
            return Vec::new();
        }
        // An ending excuses what lies behind its stage only if the message did not pass that stage all the same.
        let ended_before = (self.has(EndedIngestion) && !self.has(Raw))
            || (self.has(EndedEnrichment) && !self.has(Enriched));
        let on_the_way = self.has_any(&[PendingEnrichment, Parked]);
        let mut missing = Vec::new();
        if !(ended_before || on_the_way || self.has_any(&[Warehouse, EndedWarehouse, PendingWarehouse])) {
            missing.push("warehouse");
        }
        if !(ended_before || on_the_way || self.has_any(&[Archive, EndedArchive, PendingArchive])) {
            missing.push("archive");
        }
        if !self.has_any(&[Raw, EndedIngestion]) {
            missing.push("topic raw");
        } else if !(ended_before || on_the_way || self.has(Enriched)) {
            missing.push("topic enriched");
        }
        missing
    }

    /// Whether every destination has its outcome and nothing is on its way any more.
    pub(crate) fn is_finished(self) -> bool {
        !self.is_pending() && self.missing().is_empty()
    }

    /// Whether sinks hold it and nothing else knows it.
    fn is_only_stored(self) -> bool {
        self.has_any(&[Set::Warehouse, Set::Archive])
            && !self.has_any(&[Set::Raw, Set::Enriched, Set::EndedIngestion])
    }

    fn is_pending(self) -> bool {
        self.has_any(&[Set::PendingEnrichment, Set::PendingWarehouse, Set::PendingArchive, Set::Parked])
    }

    fn last_seen(self) -> String {
        let places = [
            (Set::Archive, "archive"),
            (Set::Warehouse, "warehouse"),
            (Set::EndedArchive, "dead letters of icestore"),
            (Set::EndedWarehouse, "dead letters of bigquery"),
            (Set::Enriched, "topic enriched"),
            (Set::EndedEnrichment, "dead letters of enrichment"),
            (Set::Raw, "topic raw"),
        ];
        let seen: Vec<_> = places.iter().filter(|(set, _)| self.has(*set)).map(|(_, name)| *name).collect();
        if seen.is_empty() { "nowhere".to_owned() } else { seen.join(", ") }
    }
}

/// An id that has no final outcome in some destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unaccounted {
    /// The message.
    pub message_id: String,
    /// Where it was last seen, furthest first.
    pub last_seen: String,
    /// Where it should be and is not.
    pub missing_from: Vec<&'static str>,
}

/// The ids of one store, in rising order.
pub(super) struct Source<'a, E> {
    /// What they mean.
    pub(super) set: Set,
    /// The ids.
    pub(super) ids: Box<dyn Iterator<Item = Result<MessageId, E>> + 'a>,
}

/// What retention has forgotten, as far as the sinks should still hold it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Past {
    /// Forgotten ids were settled before; `None` when none is forgotten.
    pub(super) horizon: Option<Timestamp>,
    /// Forgotten ids whose rows are there.
    pub(super) rows: Digest,
    /// Forgotten ids whose lines are there.
    pub(super) lines: Digest,
    /// All lines of the archive's sound objects; `None` when the archive lists each one.
    pub(super) objects: Option<Digest>,
}

/// What the pass found.
#[derive(Debug, Default)]
pub(super) struct Reconciled {
    digests: [Digest; SETS],
    /// Ids that only sinks know, by sink.
    only_stored: [Digest; SETS],
    /// Those of them that are too young to be forgotten ones, by sink and by name.
    foreign: [Digest; SETS],
    foreign_named: Vec<Unaccounted>,
    foreign_count: u64,
    /// Sinks that do not hold what was forgotten, for people.
    pub(super) disagreements: Vec<String>,
    /// Ids without a final outcome.
    pub(super) unaccounted: Vec<Unaccounted>,
    /// How many ids are unaccounted for, also beyond those listed.
    pub(super) unaccounted_count: u64,
    /// Ids that are still on their way somewhere, also those that are missing elsewhere.
    pub(super) pending: u64,
}

impl Reconciled {
    /// Whether every id that is unaccounted for is named.
    #[must_use]
    pub(super) fn names_all(&self) -> bool {
        self.unaccounted.len() as u64 == self.unaccounted_count
    }

    /// Distinct ids of `set`.
    #[must_use]
    pub(super) fn digest(&self, set: Set) -> Digest {
        self.digests[set as usize]
    }

    /// Distinct ids of the sink `set` that the ledger still knows.
    pub(super) fn known(&self, set: Set) -> Digest {
        self.digests[set as usize] - self.only_stored[set as usize]
    }

    /// Compares what only the sinks know with what was forgotten.
    fn compare_with(&mut self, past: &Past) {
        let objects = past.objects.unwrap_or(self.digest(Set::Archive));
        let rows = self.only_stored[Set::Warehouse as usize];
        let lines = objects - self.known(Set::Archive);
        if (rows, lines) == (past.rows, past.lines) {
            return;
        }
        self.unaccounted_count += self.foreign_count;
        let room = MAX_NAMED.saturating_sub(self.unaccounted.len());
        self.unaccounted.extend(self.foreign_named.drain(..).take(room));
        self.disagree("warehouse", "rows", rows - self.foreign[Set::Warehouse as usize], past.rows);
        self.disagree("archive", "lines", lines - self.foreign[Set::Archive as usize], past.lines);
    }

    /// Notes that `place` holds `found` where `expected` is right.
    pub(super) fn disagree(&mut self, place: &str, what: &str, found: Digest, expected: Digest) {
        if found == expected {
            return;
        }
        self.unaccounted_count += found.count.abs_diff(expected.count).max(1);
        self.disagreements.push(format!(
            "{place}: of the messages whose ids retention has forgotten it holds {found} {what}, and {expected} are right"
        ));
    }
}

/// At most this many unaccounted ids are kept by name; more are counted. A person acts on the first few, and a
/// destination that was deleted must not fill the memory.
const MAX_NAMED: usize = 100_000;

/// Compares the stores.
///
/// # Errors
/// The first error of a source.
pub(super) fn reconcile<E>(sources: Vec<Source<'_, E>>, past: &Past) -> Result<Reconciled, E> {
    let mut found = Reconciled::default();
    let mut heads = Vec::with_capacity(sources.len());
    for mut source in sources {
        let head = source.ids.next().transpose()?;
        heads.push((source, head));
    }
    while let Some(id) = heads.iter().filter_map(|(_, head)| *head).min() {
        let membership = take(&mut heads, id, &mut found)?;
        judge(id, membership, past, &mut found);
    }
    found.compare_with(past);
    Ok(found)
}

/// Removes `id` from the head of every source that has it.
fn take<E>(
    heads: &mut [(Source<'_, E>, Option<MessageId>)],
    id: MessageId,
    found: &mut Reconciled,
) -> Result<Membership, E> {
    let mut membership = Membership::default();
    let digest = Digest::of(&id);
    for (source, head) in heads {
        // A source may list an id more than once (two rules ended it); it counts once.
        while *head == Some(id) {
            if !membership.has(source.set) {
                membership.insert(source.set);
                found.digests[source.set as usize] += digest;
            }
            *head = source.ids.next().transpose()?;
        }
    }
    Ok(membership)
}

fn judge(id: MessageId, membership: Membership, past: &Past, found: &mut Reconciled) {
    found.pending += u64::from(membership.is_pending());
    let missing = membership.missing();
    if missing.is_empty() {
        return;
    }
    let lost = || Unaccounted {
        message_id: id.to_string(),
        last_seen: membership.last_seen(),
        missing_from: missing,
    };
    if membership.is_only_stored() {
        let foreign = is_too_young(id, past.horizon);
        for set in [Set::Warehouse, Set::Archive].into_iter().filter(|set| membership.has(*set)) {
            found.only_stored[set as usize].insert(&id);
            if foreign {
                found.foreign[set as usize].insert(&id);
            }
        }
        if foreign {
            found.foreign_count += 1;
            if found.foreign_named.len() < MAX_NAMED {
                found.foreign_named.push(lost());
            }
        }
        return;
    }
    found.unaccounted_count += 1;
    if found.unaccounted.len() < MAX_NAMED {
        found.unaccounted.push(lost());
    }
}

/// Whether the id was made after all that is forgotten. An id that tells no time may be of any age.
fn is_too_young(id: MessageId, horizon: Option<Timestamp>) -> bool {
    let Some(horizon) = horizon else { return true };
    let uuid = id.uuid();
    let Some(time) = uuid.get_timestamp().filter(|_| uuid.get_version_num() == 7) else { return false };
    let (seconds, nanos) = time.to_unix();
    let millis = seconds.saturating_mul(1_000).saturating_add(u64::from(nanos) / 1_000_000);
    i64::try_from(millis).is_ok_and(|millis| millis >= horizon.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn id(n: u8) -> MessageId {
        MessageId::from_bytes([n; 16])
    }

    fn source(set: Set, ids: &[u8]) -> Source<'static, Infallible> {
        let ids: Vec<_> = ids.iter().map(|n| Ok(id(*n))).collect();
        Source { set, ids: Box::new(ids.into_iter()) }
    }

    fn run(sources: Vec<Source<'static, Infallible>>) -> Reconciled {
        reconcile(sources, &Past::default()).unwrap_or_else(|never| match never {})
    }

    #[test]
    fn stored_dead_lettered_skipped_and_pending_ids_are_accounted_for() {
        let found = run(vec![
            source(Set::Raw, &[1, 2, 3, 4, 5]),
            source(Set::Enriched, &[1, 3, 5]),
            source(Set::Warehouse, &[1, 5]),
            source(Set::Archive, &[1, 3]),
            source(Set::EndedEnrichment, &[2]),
            source(Set::EndedWarehouse, &[3, 3]),
            source(Set::PendingEnrichment, &[4]),
            source(Set::PendingArchive, &[5]),
            source(Set::EndedIngestion, &[9]),
        ]);
        assert_eq!(found.unaccounted, []);
        assert_eq!(found.pending, 2);
        assert_eq!(found.digest(Set::EndedWarehouse).count, 1);
    }

    #[test]
    fn a_lost_id_is_named_with_where_it_was_last_seen() {
        let found = run(vec![
            source(Set::Raw, &[1, 2, 3]),
            source(Set::Enriched, &[1, 2]),
            source(Set::Warehouse, &[1]),
            source(Set::Archive, &[1, 2]),
        ]);
        let names: Vec<_> =
            found.unaccounted.iter().map(|u| (u.last_seen.as_str(), &u.missing_from[..])).collect();
        assert_eq!(
            names,
            [
                ("archive, topic enriched, topic raw", &["warehouse"][..]),
                ("topic raw", &["warehouse", "archive", "topic enriched"][..]),
            ]
        );
    }

    #[test]
    fn a_message_on_its_way_to_one_sink_and_missing_from_the_other_is_both() {
        let found =
            run(vec![source(Set::Raw, &[1]), source(Set::Enriched, &[1]), source(Set::PendingArchive, &[1])]);
        assert_eq!((found.unaccounted_count, found.pending), (1, 1));
        assert_eq!(found.unaccounted[0].missing_from, ["warehouse"]);
    }

    #[test]
    fn a_row_that_nobody_sent_is_unaccounted_for() {
        let found = run(vec![
            source(Set::Raw, &[1]),
            source(Set::Enriched, &[1]),
            source(Set::Warehouse, &[1, 7]),
            source(Set::Archive, &[1, 7]),
        ]);
        assert_eq!(found.unaccounted.len(), 1);
        assert_eq!(found.unaccounted[0].missing_from, ["topic raw"]);
    }

    #[test]
    fn a_letter_with_an_id_of_its_own_is_its_own_outcome() {
        let found = run(vec![
            source(Set::Raw, &[1]),
            source(Set::Enriched, &[1]),
            source(Set::Warehouse, &[1]),
            source(Set::Archive, &[1]),
            source(Set::EndedWarehouse, &[8]),
        ]);
        assert_eq!(found.unaccounted, []);
    }

    #[test]
    fn an_ending_does_not_excuse_a_message_that_went_on_behind_it() {
        let found = run(vec![
            source(Set::Raw, &[1, 2]),
            source(Set::EndedIngestion, &[1]),
            source(Set::EndedEnrichment, &[2]),
            source(Set::Enriched, &[1, 2]),
        ]);
        assert_eq!(found.unaccounted_count, 2);
    }
}

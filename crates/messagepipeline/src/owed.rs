//! Messages that a service owes a verdict, and how it pays in bulk.

use crate::stage::{Fate, Stage, Tally};
use crate::{Chunk, Delivery, Item, Message, Settle, Settlement, StageError, Token};
use std::ops::Range;
use std::sync::Arc;

/// Something that holds one delivery.
pub(crate) trait Entry {
    fn token(&self) -> Token;
    fn message(&self) -> &Message;
}

impl Entry for Delivery {
    fn token(&self) -> Token {
        self.token
    }

    fn message(&self) -> &Message {
        &self.message
    }
}

impl<T> Entry for Item<T> {
    fn token(&self) -> Token {
        self.token
    }

    fn message(&self) -> &Message {
        &self.message
    }
}

/// Messages with the debt of one verdict each. What has none when this is dropped is given back.
///
/// The two fields are apart so that futures can borrow the entries while verdicts are noted.
pub(crate) struct Owed<E: Entry> {
    pub(crate) entries: Vec<E>,
    pub(crate) ledger: Ledger,
}

/// Who is told about which entries: each origin up to its end, not included.
pub(crate) type Origins = Vec<(Arc<dyn Settle>, usize)>;

/// The verdicts of an [`Owed`]: noted one by one, reported in bulk.
pub(crate) struct Ledger {
    stage: Arc<Stage>,
    origins: Origins,
    /// Which entries have their verdict; as long as the last entry that has one.
    decided: Vec<bool>,
    noted: Vec<Settlement>,
    noted_origin: usize,
    /// The entries of that origin.
    noted_range: Range<usize>,
    tally: Tally,
}

impl Owed<Delivery> {
    pub(crate) fn from_chunk(stage: &Arc<Stage>, chunk: Chunk) -> Self {
        let (settle, entries) = chunk.into_parts();
        let count = entries.len();
        stage.received(count);
        let mut owed = Self::empty(stage);
        owed.entries = entries;
        owed.ledger.decided.reserve_exact(count);
        owed.ledger.noted.reserve_exact(count);
        owed.ledger.origins.push((settle, count));
        owed
    }

    /// Hands the debt over to the caller.
    pub(crate) fn into_parts(mut self) -> (Vec<Delivery>, Origins) {
        (std::mem::take(&mut self.entries), std::mem::take(&mut self.ledger.origins))
    }
}

impl<E: Entry> Owed<E> {
    pub(crate) fn empty(stage: &Arc<Stage>) -> Self {
        let ledger = Ledger {
            stage: Arc::clone(stage),
            origins: Vec::new(),
            decided: Vec::new(),
            noted: Vec::new(),
            noted_origin: 0,
            noted_range: 0..0,
            tally: Tally::default(),
        };
        Self { entries: Vec::new(), ledger }
    }

    /// Takes over entries from several origins.
    pub(crate) fn from_origins(stage: &Arc<Stage>, entries: Vec<E>, origins: Origins) -> Self {
        let mut owed = Self::empty(stage);
        owed.ledger.origins = origins;
        owed.entries = entries;
        owed
    }

    pub(crate) fn stage(&self) -> &Arc<Stage> {
        &self.ledger.stage
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn messages(&self) -> impl Iterator<Item = &Message> {
        self.entries.iter().map(Entry::message)
    }

    /// Notes the verdict on the entry at `index`.
    pub(crate) fn note(&mut self, index: usize, fate: Fate) {
        self.ledger.note(index, self.entries[index].token(), fate);
    }

    /// One verdict for all that have none.
    pub(crate) fn settle_all(mut self, fate: Fate) {
        self.settle_rest(fate);
    }

    /// Nothing is left that would need a mark of its verdict.
    fn settle_rest(&mut self, fate: Fate) {
        self.ledger.report();
        let Ledger { stage, origins, decided, noted, tally, .. } = &mut self.ledger;
        let verdict = fate.verdict();
        let mut start = 0;
        for (settle, end) in origins.iter() {
            noted.reserve(end - start);
            let is_open = |index: usize| !decided.get(index).is_some_and(|is_decided| *is_decided);
            let open = self.entries[start..*end].iter().zip(start..).filter(|(_, index)| is_open(*index));
            noted.extend(open.map(|(entry, _)| Settlement { token: entry.token(), verdict }));
            if !noted.is_empty() {
                tally.add_many(fate, noted.len());
                settle.settle(noted);
                noted.clear();
            }
            start = *end;
        }
        if !tally.is_empty() {
            stage.settled(&std::mem::take(tally));
        }
        self.entries.clear();
    }

    /// Gives up on the entries at these indices for the reasons beside them.
    pub(crate) async fn bury(&mut self, dead: Vec<(usize, StageError)>) {
        if dead.is_empty() {
            return;
        }
        let indices: Vec<_> = dead.iter().map(|(index, _)| *index).collect();
        let given_up =
            dead.into_iter().map(|(index, error)| (self.entries[index].message(), error)).collect();
        let fate = self.ledger.stage.bury(given_up).await;
        for index in indices {
            self.note(index, fate);
        }
        self.ledger.report();
    }

    /// Reports what was noted and divides the undecided rest: what `is_left` says first, the others second.
    pub(crate) fn divide(mut self, mut is_left: impl FnMut(usize) -> bool) -> (Self, Self) {
        self.ledger.report();
        let (mut left, mut right) = (Self::empty(self.stage()), Self::empty(self.stage()));
        let decided = std::mem::take(&mut self.ledger.decided);
        let mut origin = 0;
        for (index, entry) in std::mem::take(&mut self.entries).into_iter().enumerate() {
            while self.ledger.origins[origin].1 <= index {
                origin += 1;
            }
            if !decided.get(index).is_some_and(|is_decided| *is_decided) {
                let side = if is_left(index) { &mut left } else { &mut right };
                side.push(entry, &self.ledger.origins[origin].0);
            }
        }
        (left, right)
    }

    /// Two halves.
    pub(crate) fn split(self) -> (Self, Self) {
        let middle = self.len() / 2;
        self.divide(|index| index < middle)
    }

    fn push(&mut self, entry: E, settle: &Arc<dyn Settle>) {
        self.entries.push(entry);
        let end = self.entries.len();
        match self.ledger.origins.last_mut() {
            Some((last, last_end)) if Arc::ptr_eq(last, settle) => *last_end = end,
            _ => self.ledger.origins.push((Arc::clone(settle), end)),
        }
    }
}

impl Ledger {
    /// Notes the verdict on the entry at `index`, which has the token `token`.
    #[inline]
    pub(crate) fn note(&mut self, index: usize, token: Token, fate: Fate) {
        if !self.noted_range.contains(&index) {
            self.report();
            self.turn_to_origin_of(index);
        }
        if self.decided.len() <= index {
            self.decided.resize(index + 1, false);
        }
        self.decided[index] = true;
        self.tally.add(fate);
        self.noted.push(Settlement { token, verdict: fate.verdict() });
    }

    #[cold]
    fn turn_to_origin_of(&mut self, index: usize) {
        self.noted_origin = self.origins.partition_point(|(_, end)| *end <= index);
        let start = self.noted_origin.checked_sub(1).map_or(0, |before| self.origins[before].1);
        self.noted_range = start..self.origins[self.noted_origin].1;
    }

    /// Gives all noted verdicts to their origin.
    pub(crate) fn report(&mut self) {
        if self.noted.is_empty() {
            return;
        }
        self.origins[self.noted_origin].0.settle(&self.noted);
        self.noted.clear();
        self.stage.settled(&std::mem::take(&mut self.tally));
    }
}

impl<E: Entry> Drop for Owed<E> {
    fn drop(&mut self) {
        if !self.entries.is_empty() {
            self.settle_rest(Fate::Returned);
        }
    }
}

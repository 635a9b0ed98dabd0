//! Which messages of a subscription are out, which come again and when: pure state, functions of `now`.
//!
//! ```text
//!   settled │◄───────────── window ─────────────►│ not read yet
//!  ─────────┼──────┬──────┬───────┬──────┬───────┼───────────────► sequence numbers
//!        cursor   leased settled waiting leased  next          head
//! ```
//!
//! The window holds one small slot per message between the oldest unsettled one and the newest handed out. Its
//! length, in messages and in bytes, is the bound on what is outstanding; the backlog beyond it is only on disk.

use super::runs::Runs;
use messagepipeline::{Settlement, Token, Verdict};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Bounds and delays of one subscription.
#[derive(Clone, Copy, Debug)]
pub(super) struct LeaseLimits {
    pub(super) max_messages: usize,
    pub(super) max_bytes: usize,
    pub(super) lease: Duration,
    pub(super) nack_delay: Duration,
    pub(super) nack_delay_max: Duration,
}

/// Returns of one message without a delay; later ones wait, so that a message nobody can take does not spin.
const FREE_RETURNS: u8 = 3;
/// Delay of the first return that has one; it doubles from there to the longest delay of a nack.
const RETURN_DELAY: Duration = Duration::from_millis(50);

/// Sequence number and delivery number share a token: 48 and 16 bits.
const DELIVERY_BITS: u32 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Handed out under the slot's grant.
    Leased,
    /// To be handed out again; the heap of due times says when.
    Waiting,
    Settled,
}

#[derive(Debug)]
struct Slot {
    grant: u64,
    weight: u32,
    attempt: u32,
    delivery: u16,
    returns: u8,
    state: State,
}

/// Messages handed out together; they expire together.
#[derive(Debug)]
struct Grant {
    until: Instant,
    consumer: u64,
    /// Messages of it that are still leased.
    open: usize,
    seqs: Vec<u64>,
}

/// What to read next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// These messages again.
    Again(Vec<u64>),
    /// Messages from this number to that, at most so many bytes of them, the first one in any case.
    Fresh { from: u64, to: u64, bytes: usize },
    /// Nothing until then, or until something happens.
    Idle(Option<Instant>),
}

/// A message as it is handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) token: Token,
    pub(super) attempt: u32,
}

/// What must be written so that the state survives.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Everything up to it is settled.
    pub(super) cursor: u64,
    /// Settled above the cursor, both ends included.
    pub(super) runs: Vec<(u64, u64)>,
    /// Counted attempts of messages that come again.
    pub(super) attempts: Vec<(u64, u32)>,
    /// Version of the state that these changes bring to the disk.
    pub(super) version: u64,
}

/// The state of one subscription.
#[derive(Debug)]
pub(super) struct Leases {
    limits: LeaseLimits,
    cursor: u64,
    window: VecDeque<Slot>,
    window_bytes: usize,
    /// Settled ones in the window.
    window_settled: u64,
    /// Settled beyond the window: known from the store, or settled for this subscription before they are read.
    beyond: Runs,
    /// Attempts counted before this start, for messages not read yet.
    attempts: HashMap<u64, u32>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    grants: VecDeque<Grant>,
    /// Number of the first grant in `grants`.
    first_grant: u64,
    /// Somebody reads what the last plan said.
    reading: bool,
    newly_settled: Vec<u64>,
    newly_counted: Vec<(u64, u32)>,
    version: u64,
    saved: u64,
    expired: u64,
}

impl Leases {
    /// The state as the store has it: everything up to `cursor` and in `settled` is settled.
    pub(super) fn new(limits: LeaseLimits, cursor: u64, settled: Runs, attempts: HashMap<u64, u32>) -> Self {
        let mut leases = Self {
            limits,
            cursor,
            window: VecDeque::new(),
            window_bytes: 0,
            window_settled: 0,
            beyond: settled,
            attempts,
            due: BinaryHeap::new(),
            grants: VecDeque::new(),
            first_grant: 0,
            reading: false,
            newly_settled: Vec::new(),
            newly_counted: Vec::new(),
            version: 0,
            saved: 0,
            expired: 0,
        };
        leases.absorb();
        leases.advance();
        leases
    }

    /// Other bounds and delays from now on; what is out stays out.
    pub(super) fn set_limits(&mut self, limits: LeaseLimits) {
        self.limits = limits;
    }

    /// What to read, given that the topic ends at `head`. After a plan to read, [`Leases::grant`] or
    /// [`Leases::give_up_reading`] must follow; until then further plans are idle.
    pub(super) fn plan(&mut self, now: Instant, head: u64, most: usize) -> Plan {
        self.expire(now);
        if self.reading {
            return Plan::Idle(self.next_event());
        }
        let again = self.take_due(now, most);
        if !again.is_empty() {
            self.reading = true;
            return Plan::Again(again);
        }
        self.absorb();
        let messages = self.limits.max_messages.saturating_sub(self.window.len()).min(most);
        let bytes = self.limits.max_bytes.saturating_sub(self.window_bytes);
        let room = messages > 0 && (bytes > 0 || self.window.is_empty());
        if !room || self.next() > head {
            return Plan::Idle(self.next_event());
        }
        self.reading = true;
        let from = self.next();
        Plan::Fresh { from, to: head.min(from + messages as u64 - 1), bytes }
    }

    /// Hands out what was read under the last plan: `read` holds number and weight of every message found, in rising
    /// order, and `found_to` the last number that the reading has looked at. The answer has one entry per message
    /// read; `None` is for one that was settled meanwhile and must not be handed out.
    pub(super) fn grant(
        &mut self,
        now: Instant,
        consumer: u64,
        read: &[(u64, u32)],
        found_to: u64,
    ) -> Vec<Option<Granted>> {
        self.reading = false;
        let number = self.first_grant + self.grants.len() as u64;
        let mut grant =
            Grant { until: now + self.limits.lease, consumer, open: 0, seqs: Vec::with_capacity(read.len()) };
        let mut answer = Vec::with_capacity(read.len());
        for &(seq, weight) in read {
            self.extend_to(seq);
            let granted = self.lease(seq, weight, number);
            if granted.is_some() {
                grant.open += 1;
                grant.seqs.push(seq);
            }
            answer.push(granted);
        }
        if found_to >= self.next() {
            self.extend_to(found_to);
            self.settle_gap(found_to);
        }
        if grant.open > 0 {
            self.grants.push_back(grant);
        }
        self.advance();
        answer
    }

    /// Takes back the last plan, because reading failed.
    pub(super) fn give_up_reading(&mut self, now: Instant, plan: Plan) {
        self.reading = false;
        if let Plan::Again(seqs) = plan {
            self.due.extend(seqs.into_iter().map(|seq| Reverse((now, seq))));
        }
    }

    /// Takes verdicts. Those for deliveries that are gone are ignored.
    pub(super) fn settle(&mut self, now: Instant, settlements: &[Settlement]) {
        for settlement in settlements {
            let seq = sequence(settlement.token);
            let limits = self.limits;
            let Some(slot) = self.slot(seq) else { continue };
            if slot.state != State::Leased || token(seq, slot.delivery) != settlement.token {
                continue;
            }
            match settlement.verdict {
                Verdict::Ack => self.settle_slot(seq),
                Verdict::Nack => {
                    slot.attempt = slot.attempt.saturating_add(1);
                    slot.returns = 0;
                    let attempt = slot.attempt;
                    let delay =
                        doubled(limits.nack_delay, attempt.saturating_sub(2)).min(limits.nack_delay_max);
                    self.newly_counted.push((seq, attempt));
                    self.version += 1;
                    self.wait(seq, now + delay);
                }
                Verdict::Return => {
                    slot.returns = slot.returns.saturating_add(1);
                    let delay = match slot.returns.checked_sub(FREE_RETURNS + 1) {
                        Some(more) => doubled(RETURN_DELAY, more.into()).min(limits.nack_delay_max),
                        None => Duration::ZERO,
                    };
                    self.wait(seq, now + delay);
                }
            }
        }
        self.advance();
    }

    /// Settles `seq` whether or not it is out; for what is settled in the store by another way than a verdict.
    pub(super) fn settle_elsewhere(&mut self, seq: u64) {
        if seq <= self.cursor {
            return;
        }
        if seq >= self.next() {
            self.beyond.insert(seq, seq);
            self.version += 1;
            self.newly_settled.push(seq);
        } else {
            self.settle_slot(seq);
        }
        self.absorb();
        self.advance();
    }

    /// Gives back all that `consumer` has without a verdict.
    pub(super) fn release(&mut self, now: Instant, consumer: u64) {
        let numbers = self.first_grant..;
        let open =
            numbers.zip(&self.grants).filter(|(_, grant)| grant.consumer == consumer && grant.open > 0);
        let open: Vec<_> =
            open.flat_map(|(number, grant)| grant.seqs.iter().map(move |seq| (number, *seq))).collect();
        for (number, seq) in open {
            if self.slot(seq).is_some_and(|slot| slot.state == State::Leased && slot.grant == number) {
                self.wait(seq, now);
            }
        }
        self.advance();
    }

    /// The next moment at which [`Leases::plan`] may have something new by itself.
    fn next_event(&self) -> Option<Instant> {
        let due = if self.reading { None } else { self.due.peek().map(|Reverse((at, _))| *at) };
        let expiry = self.grants.front().map(|grant| grant.until);
        due.into_iter().chain(expiry).min()
    }

    /// What is not on the disk yet, if anything. [`Leases::saved`] or [`Leases::restore`] must follow.
    pub(super) fn take_changes(&mut self) -> Option<Changes> {
        if self.version == self.saved {
            return None;
        }
        let mut seqs = std::mem::take(&mut self.newly_settled);
        seqs.retain(|seq| *seq > self.cursor);
        seqs.sort_unstable();
        let mut attempts = std::mem::take(&mut self.newly_counted);
        attempts.retain(|(seq, _)| *seq > self.cursor);
        Some(Changes { cursor: self.cursor, runs: runs_of(&seqs), attempts, version: self.version })
    }

    /// The changes are on the disk.
    pub(super) fn saved(&mut self, version: u64) {
        self.saved = self.saved.max(version);
    }

    /// The changes did not reach the disk; they will be among the next ones.
    pub(super) fn restore(&mut self, changes: Changes) {
        self.newly_settled.extend(changes.runs.iter().flat_map(|&(first, last)| first..=last));
        let mut counted = changes.attempts;
        counted.append(&mut self.newly_counted);
        self.newly_counted = counted;
    }

    /// Whether anything waits to be written.
    pub(super) fn is_dirty(&self) -> bool {
        self.version != self.saved
    }

    /// Versions of the state: now, and on the disk.
    pub(super) fn versions(&self) -> (u64, u64) {
        (self.version, self.saved)
    }

    /// Everything up to this number is settled.
    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Messages of a topic that ends at `head` that are not settled.
    pub(super) fn unsettled(&self, head: u64) -> u64 {
        head.saturating_sub(self.cursor).saturating_sub(self.window_settled + self.beyond.len())
    }

    /// Messages handed out without a verdict.
    pub(super) fn outstanding(&self) -> u64 {
        self.grants.iter().map(|grant| grant.open as u64).sum()
    }

    /// Leases that ran out since the last call.
    pub(super) fn take_expired(&mut self) -> u64 {
        std::mem::take(&mut self.expired)
    }

    /// The first number beyond the window.
    fn next(&self) -> u64 {
        self.cursor + 1 + self.window.len() as u64
    }

    fn slot(&mut self, seq: u64) -> Option<&mut Slot> {
        let index = seq.checked_sub(self.cursor + 1)?;
        self.window.get_mut(usize::try_from(index).ok()?)
    }

    /// Takes numbers that are settled already into the window while they come next.
    fn absorb(&mut self) {
        while let Some((first, last)) = self.beyond.first()
            && first <= self.next()
        {
            self.beyond.remove_first();
            for _ in self.next()..=last {
                self.push(State::Settled);
                self.window_settled += 1;
            }
            // An empty window need not hold them.
            if self.window_settled == self.window.len() as u64 {
                self.advance();
            }
        }
    }

    fn push(&mut self, state: State) {
        self.window.push_back(Slot {
            grant: u64::MAX,
            weight: 0,
            attempt: 1,
            delivery: 0,
            returns: 0,
            state,
        });
    }

    /// Makes the window reach `seq`. Numbers on the way that the reading did not find hold nothing to deliver.
    fn extend_to(&mut self, seq: u64) {
        self.absorb();
        while self.next() <= seq {
            if self.next() < seq {
                self.newly_settled.push(self.next());
                self.version += 1;
                self.push(State::Settled);
                self.window_settled += 1;
            } else {
                let attempt = self.attempts.remove(&seq).unwrap_or(0).saturating_add(1);
                self.push(State::Waiting);
                if let Some(slot) = self.window.back_mut() {
                    slot.attempt = attempt;
                }
            }
            self.absorb();
        }
    }

    /// Settles the number to which the window was just extended, because nothing was found there.
    fn settle_gap(&mut self, seq: u64) {
        if self.slot(seq).is_some_and(|slot| slot.state == State::Waiting && slot.delivery == 0) {
            self.settle_slot(seq);
        }
    }

    fn lease(&mut self, seq: u64, weight: u32, number: u64) -> Option<Granted> {
        let slot = self.slot(seq)?;
        if slot.state != State::Waiting {
            return None;
        }
        slot.state = State::Leased;
        slot.grant = number;
        slot.delivery = slot.delivery.wrapping_add(1);
        let granted = Granted { token: token(seq, slot.delivery), attempt: slot.attempt };
        let first = slot.weight == 0;
        if first {
            slot.weight = weight;
            self.window_bytes += weight as usize;
        }
        Some(granted)
    }

    fn settle_slot(&mut self, seq: u64) {
        let Some(slot) = self.slot(seq) else { return };
        let (state, grant) = (slot.state, slot.grant);
        if state == State::Settled {
            return;
        }
        slot.state = State::Settled;
        if state == State::Leased {
            self.close_one(grant);
        }
        self.window_settled += 1;
        self.newly_settled.push(seq);
        self.version += 1;
    }

    fn wait(&mut self, seq: u64, until: Instant) {
        let Some(slot) = self.slot(seq) else { return };
        slot.state = State::Waiting;
        let grant = slot.grant;
        self.close_one(grant);
        self.due.push(Reverse((until, seq)));
    }

    fn close_one(&mut self, grant: u64) {
        let index = grant.checked_sub(self.first_grant).and_then(|index| usize::try_from(index).ok());
        if let Some(grant) = index.and_then(|index| self.grants.get_mut(index)) {
            grant.open = grant.open.saturating_sub(1);
        }
    }

    fn expire(&mut self, now: Instant) {
        self.drop_closed_grants();
        while let Some(grant) = self.grants.front()
            && grant.until <= now
        {
            let number = self.first_grant;
            for seq in grant.seqs.clone() {
                if self.slot(seq).is_some_and(|slot| slot.state == State::Leased && slot.grant == number) {
                    self.wait(seq, now);
                    self.expired += 1;
                }
            }
            self.drop_closed_grants();
        }
    }

    fn drop_closed_grants(&mut self) {
        while self.grants.front().is_some_and(|grant| grant.open == 0) {
            self.grants.pop_front();
            self.first_grant += 1;
        }
    }

    fn take_due(&mut self, now: Instant, most: usize) -> Vec<u64> {
        let mut seqs = Vec::new();
        while seqs.len() < most
            && let Some(&Reverse((at, seq))) = self.due.peek()
            && at <= now
        {
            self.due.pop();
            if self.slot(seq).is_some_and(|slot| slot.state == State::Waiting) {
                seqs.push(seq);
            }
        }
        seqs.sort_unstable();
        seqs
    }

    /// Moves the cursor over what is settled at the front of the window.
    fn advance(&mut self) {
        while self.window.front().is_some_and(|slot| slot.state == State::Settled)
            && let Some(slot) = self.window.pop_front()
        {
            self.cursor += 1;
            self.window_settled -= 1;
            self.window_bytes -= slot.weight as usize;
        }
        self.drop_closed_grants();
        // While the disk is full nothing takes these away; only those above the cursor matter.
        if self.newly_settled.len() > 2 * self.limits.max_messages.max(1_024) {
            self.newly_settled.retain(|seq| *seq > self.cursor);
        }
    }
}

/// The sequence number, in its topic, of the message that a consumer of the bus delivered under `token`.
#[must_use]
pub fn sequence(token: Token) -> u64 {
    token.0 >> DELIVERY_BITS
}

fn token(seq: u64, delivery: u16) -> Token {
    Token((seq << DELIVERY_BITS) | u64::from(delivery))
}

/// `base` doubled `times` times, saturating.
fn doubled(base: Duration, times: u32) -> Duration {
    base.saturating_mul(2_u32.saturating_pow(times))
}

fn runs_of(sorted: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &seq in sorted {
        match runs.last_mut() {
            Some((_, last)) if seq <= *last + 1 => *last = seq,
            _ => runs.push((seq, seq)),
        }
    }
    runs
}

#[cfg(test)]
mod tests;

//! Sessions by client identifier, and the way from a verdict to the connection that owes the PUBACK.
//!
//! A token is `slot (20 bits) | generation (12 bits) | sequence (32 bits)`. A slot belongs to one session and is
//! given to another only when no message of the first is in the pipeline, under a new generation.

mod attachment;

use super::budget::Budget;
use super::reason::Reason;
use super::store::{SessionKey, StoredSession};
use super::telemetry::Telemetry;
use super::window::{Sequence, Window};
use attachment::Bond;
pub(super) use attachment::{Attachment, Sequel, Standing};
use hashbrown::HashMap;
use hashbrown::hash_map::EntryRef;
use messagepipeline::{Settle, Settlement, Token};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const SLOT_BITS: u32 = 20;
const GENERATION_BITS: u32 = 12;
const SEQUENCE_BITS: u32 = 32;

/// Packet identifiers of QoS 2 that a session may hold unreleased, in receive maxima. An MQTT 5 client may use one of
/// them on each of its connections; a client of 3.1.1 knows of no bound, but must release before it can go on for ever.
const HELD_PER_RECEIVE_MAXIMUM: usize = 4;

/// At least as many, however small the receive maximum: clients of 3.1.1 have windows of their own, often of 100.
const LEAST_HELD: usize = 256;

/// Where a session stands in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    slot: u32,
    generation: u16,
}

impl Place {
    fn token(self, sequence: Sequence) -> Token {
        let high = (u64::from(self.slot) << GENERATION_BITS) | u64::from(self.generation);
        Token((high << SEQUENCE_BITS) | u64::from(sequence))
    }

    fn of(token: Token) -> (Self, Sequence) {
        #[expect(clippy::cast_possible_truncation, reason = "the three parts are cut out of the token")]
        {
            let high = token.0 >> SEQUENCE_BITS;
            let generation = (high as u16) & ((1 << GENERATION_BITS) - 1);
            (Self { slot: (high >> GENERATION_BITS) as u32, generation }, token.0 as Sequence)
        }
    }
}

/// One client's session.
pub(super) struct Session {
    pub(super) client_id: Arc<str>,
    place: Place,
    pub(super) state: Mutex<State>,
    /// Held over every call to the store for this session, so that they come in the order of what they say.
    pub(super) store_turn: tokio::sync::Mutex<()>,
}

/// What the session store has of a session.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) key: SessionKey,
    pub(super) expiry: Duration,
    /// It may have packet state that the session no longer has: a clean start that is not written yet.
    pub(super) is_stale: bool,
}

impl Session {
    fn new(client_id: Arc<str>, place: Place, receive_maximum: u16) -> Self {
        let state = State {
            window: Window::new(receive_maximum),
            epoch: 0,
            bond: None,
            is_admitted: false,
            former: None,
            failed: false,
            expiry: Duration::ZERO,
            detached: None,
            forgotten: false,
            kept: None,
        };
        Self { client_id, place, state: Mutex::new(state), store_turn: tokio::sync::Mutex::default() }
    }
}

pub(super) struct State {
    pub(super) window: Window,
    /// Raised by every connection; an older connection sees that it was replaced.
    pub(super) epoch: u32,
    /// With the present connection, or the last one, which may wait for its client before it publishes a will.
    bond: Option<Arc<Bond>>,
    /// That connection's CONNECT was accepted.
    is_admitted: bool,
    /// With the connection before it, until it is known whether its client is back: its CONNECT may yet be refused.
    former: Option<Arc<Bond>>,
    /// A message of the present connection failed downstream.
    failed: bool,
    /// How long it is remembered after the present connection, or was to be after the last one.
    expiry: Duration,
    detached: Option<Detached>,
    /// No longer in the table of client identifiers; its place is free when the pipeline holds nothing of it.
    forgotten: bool,
    /// Present if the session outlives this process.
    pub(super) kept: Option<Kept>,
}

impl State {
    /// The bond of another connection, whose session is a new one or the one there was.
    fn succeed(&mut self, is_new: bool) -> Arc<Bond> {
        let bond = Arc::<Bond>::default();
        if let Some(last) = self.bond.replace(Arc::clone(&bond)) {
            last.woken.notify_one();
            if self.is_admitted {
                self.former = Some(last);
            }
        }
        self.is_admitted = false;
        if is_new && let Some(former) = self.former.take() {
            former.tell(Sequel::Ended);
        }
        bond
    }
}

/// A session without a connection.
#[derive(Clone, Copy, Debug)]
struct Detached {
    /// Until when it is remembered.
    expires: Instant,
    rank: Rank,
}

/// The order in which sessions without a connection are forgotten when they are too many: those that hold no packet
/// identifier first, of those the ones that have been without a connection for longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    holds: bool,
    since: u64,
}

/// What all sessions together may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) receive_maximum: u16,
    /// Sessions without a connection beyond this number are forgotten, in the order of their [`Rank`].
    pub(super) detached: usize,
    /// Packet identifiers of QoS 2 held by all sessions.
    pub(super) held: usize,
}

/// All sessions.
pub(super) struct Sessions {
    by_client: Mutex<ByClient>,
    slots: RwLock<Slots>,
    /// Stands at slot 0.
    nameless: Arc<Session>,
    budget: Arc<Budget>,
    telemetry: Arc<Telemetry>,
    bounds: Bounds,
    /// Packet identifiers held at QoS 2.
    held: AtomicUsize,
    /// Forgotten sessions that the session store may still have; of each client one, since a new one is opened clean.
    ended: Mutex<HashMap<Arc<str>, SessionKey>>,
}

#[derive(Default)]
struct ByClient {
    sessions: HashMap<Arc<str>, Arc<Session>>,
    detached: BTreeMap<Rank, Arc<Session>>,
    /// Counts sessions that were detached.
    clock: u64,
}

impl ByClient {
    /// Notes that `session` has no connection.
    fn line_up(&mut self, session: &Arc<Session>, state: &mut State) {
        self.clock += 1;
        let rank = Rank { holds: !state.window.exchanges().is_empty(), since: self.clock };
        state.detached = Some(Detached { expires: Instant::now() + state.expiry, rank });
        self.detached.insert(rank, Arc::clone(session));
    }
}

struct Slots {
    table: Vec<Slot>,
    free: Vec<u32>,
}

#[derive(Default)]
struct Slot {
    generation: u16,
    session: Option<Arc<Session>>,
}

impl Sessions {
    pub(super) fn new(budget: Arc<Budget>, telemetry: Arc<Telemetry>, bounds: Bounds) -> Self {
        let nameless =
            Arc::new(Session::new("".into(), Place { slot: 0, generation: 0 }, bounds.receive_maximum));
        let first = Slot { generation: 0, session: Some(Arc::clone(&nameless)) };
        Self {
            by_client: Mutex::default(),
            slots: RwLock::new(Slots { table: vec![first], free: Vec::new() }),
            nameless,
            budget,
            telemetry,
            bounds,
            held: AtomicUsize::new(0),
            ended: Mutex::default(),
        }
    }

    /// Takes over what an earlier process kept. A session's time begins with this process, as it is not known when its
    /// connection ended.
    pub(super) fn restore(&self, stored: Vec<StoredSession>) -> Result<(), Reason> {
        for StoredSession { key, client_id, expiry, held } in stored {
            let mut by_client = self.by_client.lock();
            let session = self.add(&mut by_client, &client_id)?;
            let mut state = session.state.lock();
            state.window.restore(&held);
            self.recount(0, &mut state.window);
            state.expiry = expiry;
            state.kept = Some(Kept { key, expiry, is_stale: false });
            by_client.line_up(&session, &mut state);
            drop(state);
            self.forget_surplus(&mut by_client);
        }
        Ok(())
    }

    /// Notes that a window held `before` packet identifiers at QoS 2 when it was last counted.
    pub(super) fn recount(&self, before: usize, window: &mut Window) {
        let now = window.exchanges().len();
        if now > before {
            self.held.fetch_add(now - before, Ordering::Relaxed);
        } else if now < before {
            self.held.fetch_sub(before - now, Ordering::Relaxed);
        }
    }

    /// How many packet identifiers a session may hold that holds `now` of them.
    pub(super) fn most_held(&self, now: usize) -> usize {
        let room = self.bounds.held.saturating_sub(self.held.load(Ordering::Relaxed));
        let most = HELD_PER_RECEIVE_MAXIMUM * usize::from(self.bounds.receive_maximum);
        (now + room).min(most.max(LEAST_HELD))
    }

    /// Sessions that the store is to forget, at most `limit`. They are named until [`Sessions::ended`].
    pub(super) fn some_ended(&self, limit: usize) -> Vec<(Arc<str>, SessionKey)> {
        let ended = self.ended.lock();
        ended.iter().take(limit).map(|(client_id, key)| (Arc::clone(client_id), *key)).collect()
    }

    /// The session of `client_id` that the store is to forget.
    pub(super) fn ended_of(&self, client_id: &str) -> Option<SessionKey> {
        self.ended.lock().get(client_id).copied()
    }

    /// The store has forgotten the session `key` of `client_id`.
    pub(super) fn ended(&self, client_id: &str, key: SessionKey) {
        if let EntryRef::Occupied(entry) = self.ended.lock().entry_ref(client_id)
            && *entry.get() == key
        {
            entry.remove();
        }
    }

    /// Gives the session of `client_id` to a new connection, and takes it from an older one. The second answer is
    /// the Session Present flag. Until [`Attachment::admit`] a session that was there keeps its expiry, and a new
    /// one has none, so that a CONNECT that is refused changes nothing and leaves nothing.
    pub(super) fn attach(&self, client_id: &str, clean: bool) -> Result<(Attachment, bool), Reason> {
        let mut by_client = self.by_client.lock();
        let known = by_client.sessions.get(client_id).cloned();
        let (session, is_known) = match known {
            Some(session) => (session, true),
            None => (self.add(&mut by_client, client_id)?, false),
        };
        let mut state = session.state.lock();
        let is_alive = match state.detached.take() {
            Some(detached) => {
                by_client.detached.remove(&detached.rank);
                detached.expires > Instant::now()
            }
            // This ends the connection that it has [MQTT-3.1.4-3], and with it what was to end then (section 3.1.2.11.2).
            None => !state.expiry.is_zero(),
        };
        let present = is_known && !clean && is_alive;
        if !present {
            state.expiry = Duration::ZERO;
        }
        state.epoch = state.epoch.wrapping_add(1);
        state.failed = false;
        if !present
            && !state.window.exchanges().is_empty()
            && let Some(kept) = &mut state.kept
        {
            kept.is_stale = true;
        }
        let held = state.window.exchanges().len();
        state.window.attach(!present);
        self.recount(held, &mut state.window);
        let bond = state.succeed(!present);
        let epoch = state.epoch;
        drop(state);
        Ok((Attachment { session, epoch, bond }, present))
    }

    /// The session that no client identifier leads to, for wills: they outlive the session of their client.
    pub(super) fn nameless(&self) -> Attachment {
        Attachment { session: Arc::clone(&self.nameless), epoch: 0, bond: Arc::default() }
    }

    fn add(&self, by_client: &mut ByClient, client_id: &str) -> Result<Arc<Session>, Reason> {
        let client_id: Arc<str> = client_id.into();
        let session = self.place(Arc::clone(&client_id))?;
        by_client.sessions.insert(client_id, Arc::clone(&session));
        Ok(session)
    }

    fn place(&self, client_id: Arc<str>) -> Result<Arc<Session>, Reason> {
        let mut slots = self.slots.write();
        let slot = match slots.free.pop() {
            Some(slot) => slot,
            None => {
                let next = u32::try_from(slots.table.len()).ok().filter(|next| *next < 1 << SLOT_BITS);
                let next = next.ok_or(Reason::QuotaExceeded)?;
                slots.table.push(Slot::default());
                next
            }
        };
        let entry = &mut slots.table[slot as usize];
        let place = Place { slot, generation: entry.generation };
        let session = Arc::new(Session::new(client_id, place, self.bounds.receive_maximum));
        entry.session = Some(Arc::clone(&session));
        Ok(session)
    }

    /// The connection is gone; its session is remembered for its expiry.
    pub(super) fn detach(&self, attachment: &Attachment) {
        let mut by_client = self.by_client.lock();
        let mut state = attachment.session.state.lock();
        if state.epoch != attachment.epoch {
            return;
        }
        state.window.detach();
        state.window.shrink();
        if state.expiry.is_zero() {
            by_client.sessions.remove(&attachment.session.client_id);
            self.forget(&attachment.session, &mut state);
        } else {
            by_client.line_up(&attachment.session, &mut state);
            drop(state);
            self.forget_surplus(&mut by_client);
        }
    }

    /// Forgets sessions without a connection that are too many.
    fn forget_surplus(&self, by_client: &mut ByClient) {
        while by_client.detached.len() > self.bounds.detached {
            let Some((rank, session)) = by_client.detached.pop_first() else { return };
            by_client.sessions.remove(&session.client_id);
            self.forget(&session, &mut session.state.lock());
            if self.telemetry.refused_for("too-many-sessions") && rank.holds {
                tracing::warn!(
                    client_id = &*session.client_id,
                    most = self.bounds.detached,
                    "forgot a session with half-done messages at QoS 2, because more sessions than \
                     max_connections are without a connection; what its device sends again is stored again"
                );
            }
        }
    }

    /// Forgets sessions whose time has passed.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut by_client = self.by_client.lock();
        let ByClient { sessions, detached, .. } = &mut *by_client;
        detached.retain(|_, session| {
            let mut state = session.state.lock();
            if state.detached.is_none_or(|detached| detached.expires > now) {
                return true;
            }
            sessions.remove(&session.client_id);
            self.forget(session, &mut state);
            false
        });
    }

    fn forget(&self, session: &Session, state: &mut State) {
        state.forgotten = true;
        for bond in state.former.take().iter().chain(&state.bond) {
            bond.tell(Sequel::Ended);
        }
        if let Some(kept) = state.kept.take() {
            self.ended.lock().insert(Arc::clone(&session.client_id), kept.key);
        }
        let held = state.window.exchanges().len();
        state.window.exchanges().clear();
        self.recount(held, &mut state.window);
        if state.window.in_pipeline() == 0 {
            self.free(session.place);
        }
    }

    fn free(&self, place: Place) {
        let mut slots = self.slots.write();
        let Some(entry) = slots.table.get_mut(place.slot as usize) else { return };
        if entry.generation != place.generation || entry.session.take().is_none() {
            return;
        }
        entry.generation = (entry.generation + 1) & ((1 << GENERATION_BITS) - 1);
        slots.free.push(place.slot);
    }

    fn find(&self, place: Place) -> Option<Arc<Session>> {
        let slots = self.slots.read();
        let entry = slots.table.get(place.slot as usize)?;
        if entry.generation == place.generation { entry.session.clone() } else { None }
    }

    /// Settles verdicts that all belong to the session at `place`.
    fn settle_run(&self, place: Place, run: &[Settlement]) {
        let Some(session) = self.find(place) else { return };
        let (mut messages, mut bytes, mut lost, mut wake) = (0, 0, 0, false);
        let mut state = session.state.lock();
        for settlement in run {
            let settled = state.window.settle(Place::of(settlement.token).1, settlement.verdict);
            if let Some(weight) = settled.weight {
                messages += 1;
                bytes += weight as usize;
            }
            lost += usize::from(settled.lost);
            state.failed |= settled.failed;
            wake |= settled.reply_ready || settled.failed;
        }
        wake |= messages > 0 && state.window.waits_for_room;
        if wake && let Some(bond) = &state.bond {
            bond.woken.notify_one();
        }
        if state.forgotten && state.window.in_pipeline() == 0 {
            self.free(place);
        }
        drop(state);
        self.budget.release(messages, bytes);
        if lost > 0 && self.telemetry.refused_for("given-up-without-sender") {
            tracing::warn!(
                client_id = &*session.client_id,
                messages = lost,
                "messages at QoS 0 or wills failed downstream; nobody sends them again"
            );
        }
    }
}

impl Settle for Sessions {
    fn settle(&self, settlements: &[Settlement]) {
        let mut rest = settlements;
        while let Some(first) = rest.first() {
            let (place, _) = Place::of(first.token);
            let count = rest.iter().take_while(|settlement| Place::of(settlement.token).0 == place).count();
            let (run, tail) = rest.split_at(count);
            self.settle_run(place, run);
            rest = tail;
        }
    }
}

#[cfg(test)]
mod tests;

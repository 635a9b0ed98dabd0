//! What every store of MQTT sessions must show, and the double that shows it first.

use futures_util::future::{BoxFuture, ready};
use messagepipeline::{MessageId, StageError};
use mqttconverter::endpoint::{Held, SessionKey, SessionStore, StoredSession};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Sessions in memory. Clones share them, so that an endpoint started on a clone is one started after a crash.
#[derive(Clone, Debug)]
pub struct MemorySessions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sessions: Mutex<BTreeMap<SessionKey, Stored>>,
    last_key: Mutex<i64>,
    writes: AtomicUsize,
    failing: Mutex<bool>,
    gate: Semaphore,
}

#[derive(Debug)]
struct Stored {
    client_id: Box<str>,
    expiry: Duration,
    held: BTreeMap<u16, Held>,
}

impl Default for MemorySessions {
    fn default() -> Self {
        Self(Arc::new(Inner {
            sessions: Mutex::default(),
            last_key: Mutex::default(),
            writes: AtomicUsize::new(0),
            failing: Mutex::new(false),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        }))
    }
}

impl MemorySessions {
    /// From now on every write fails, or no longer.
    pub fn fail(&self, failing: bool) {
        *self.0.failing.lock() = failing;
    }

    /// From now on writes wait for [`open_gate`](Self::open_gate).
    pub fn close_gate(&self) {
        self.0.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    /// Lets waiting and coming writes through again.
    pub fn open_gate(&self) {
        self.0.gate.add_permits(Semaphore::MAX_PERMITS);
    }

    /// How many writes came.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.0.writes.load(Ordering::SeqCst)
    }

    /// What is kept, in order of the keys; what is held in order of the packet identifiers.
    #[must_use]
    pub fn all(&self) -> Vec<StoredSession> {
        let sessions = self.0.sessions.lock();
        let all = sessions.iter().map(|(key, stored)| StoredSession {
            key: *key,
            client_id: stored.client_id.clone(),
            expiry: stored.expiry,
            held: stored.held.values().copied().collect(),
        });
        all.collect()
    }

    fn write<'a, T: Send + 'a>(
        &'a self,
        work: impl FnOnce(&Inner) -> Result<T, StageError> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, StageError>> {
        Box::pin(async move {
            self.0.writes.fetch_add(1, Ordering::SeqCst);
            drop(self.0.gate.acquire().await.expect("the gate is never closed for good"));
            if *self.0.failing.lock() {
                return Err(StageError::transient("store-down", "the session store is down"));
            }
            work(&self.0)
        })
    }
}

impl SessionStore for MemorySessions {
    fn load(&self) -> BoxFuture<'_, Result<Vec<StoredSession>, StageError>> {
        Box::pin(ready(Ok(self.all())))
    }

    fn open<'a>(
        &'a self,
        client_id: &'a str,
        expiry: Duration,
        clean: bool,
    ) -> BoxFuture<'a, Result<SessionKey, StageError>> {
        self.write(move |inner| {
            let mut sessions = inner.sessions.lock();
            let expiry = Duration::from_secs(expiry.as_secs());
            if clean {
                sessions.retain(|_, stored| *stored.client_id != *client_id);
            } else if let Some((key, stored)) =
                sessions.iter_mut().find(|(_, stored)| *stored.client_id == *client_id)
            {
                stored.expiry = expiry;
                return Ok(*key);
            }
            let mut last = inner.last_key.lock();
            *last += 1;
            let key = SessionKey(*last);
            sessions.insert(key, Stored { client_id: client_id.into(), expiry, held: BTreeMap::new() });
            Ok(key)
        })
    }

    fn update(
        &self,
        session: SessionKey,
        held: Vec<Held>,
        released: Vec<u16>,
    ) -> BoxFuture<'_, Result<(), StageError>> {
        self.write(move |inner| {
            let mut sessions = inner.sessions.lock();
            let Some(stored) = sessions.get_mut(&session) else {
                return Err(StageError::transient("session-ended", "the session has ended"));
            };
            stored.held.extend(held.into_iter().map(|held| (held.packet_id, held)));
            stored.held.retain(|packet_id, _| !released.contains(packet_id));
            Ok(())
        })
    }

    fn end(&self, ended: Vec<SessionKey>) -> BoxFuture<'_, Result<(), StageError>> {
        self.write(move |inner| {
            inner.sessions.lock().retain(|key, _| !ended.contains(key));
            Ok(())
        })
    }
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn held(packet_id: u16, number: u8, fingerprint: u64) -> Held {
    Held { packet_id, message_id: MessageId::from_bytes([number; 16]), fingerprint }
}

async fn load(store: &dyn SessionStore) -> Vec<StoredSession> {
    let mut all = store.load().await.expect("sessions can be read");
    all.sort_by(|a, b| a.client_id.cmp(&b.client_id));
    all.iter_mut().for_each(|session| session.held.sort_by_key(|held| held.packet_id));
    all
}

/// What is answered is kept: `reopen` gives the store as the next process finds it.
pub async fn what_is_answered_is_there_for_the_next_process<S: SessionStore>(
    store: S,
    reopen: impl AsyncFnOnce(S) -> S,
) {
    let first = store.open("first", DAY, true).await.expect("opened");
    let second = store.open("zweites/größer", Duration::from_millis(1_999), false).await.expect("opened");
    assert_ne!(first, second);
    // All of the number ranges, so that nothing is cut off.
    let kept = vec![held(1, 1, u64::MAX), held(65_535, 2, 0)];
    store.update(first, kept.clone(), Vec::new()).await.expect("held");
    store.update(second, vec![held(1, 3, 9)], Vec::new()).await.expect("held");
    let store = reopen(store).await;
    let all = load(&store).await;
    let expected = [
        StoredSession { key: first, client_id: "first".into(), expiry: DAY, held: kept },
        StoredSession {
            key: second,
            client_id: "zweites/größer".into(),
            expiry: Duration::from_secs(1),
            held: vec![held(1, 3, 9)],
        },
    ];
    assert_eq!(all, expected);
}

/// Holding replaces, releasing forgets, both are harmless twice, and one call does both.
pub async fn an_update_holds_and_releases_and_may_come_twice(store: &dyn SessionStore) {
    let key = store.open("device", DAY, false).await.expect("opened");
    store.update(key, vec![held(1, 1, 1), held(2, 2, 2)], Vec::new()).await.expect("held");
    for _ in 0..2 {
        store.update(key, vec![held(2, 3, 3), held(4, 4, 4)], vec![1, 9]).await.expect("updated");
        assert_eq!(load(store).await[0].held, [held(2, 3, 3), held(4, 4, 4)]);
    }
}

/// A changed expiry keeps the key and what is held; a clean start forgets it, and what comes late for the old session
/// cannot reach the new one.
pub async fn a_clean_start_forgets_and_what_comes_late_for_the_old_session_is_refused(
    store: &dyn SessionStore,
) {
    let key = store.open("device", DAY, false).await.expect("opened");
    store.update(key, vec![held(1, 1, 1)], Vec::new()).await.expect("held");
    let same = store.open("device", 2 * DAY, false).await.expect("opened");
    assert_eq!(same, key);
    let all = load(store).await;
    assert_eq!((all.len(), all[0].expiry, all[0].held.len()), (1, 2 * DAY, 1));
    let fresh = store.open("device", DAY, true).await.expect("opened");
    assert_ne!(fresh, key);
    store.update(fresh, vec![held(7, 7, 7)], Vec::new()).await.expect("held");
    let late = store.update(key, vec![held(1, 1, 1)], vec![7]).await;
    assert!(late.is_err(), "the old session is gone");
    let all = load(store).await;
    assert_eq!((all.len(), &all[0].held), (1, &vec![held(7, 7, 7)]));
}

/// Ended sessions are forgotten with all they hold; ending twice is harmless; others stay; no key comes back.
pub async fn ended_sessions_are_forgotten(store: &dyn SessionStore) {
    let mut keys = Vec::new();
    for client_id in ["a", "b", "c"] {
        let key = store.open(client_id, DAY, false).await.expect("opened");
        store.update(key, vec![held(1, 1, 1)], Vec::new()).await.expect("held");
        keys.push(key);
    }
    for _ in 0..2 {
        store.end(vec![keys[0], keys[2]]).await.expect("ended");
        let left: Vec<_> = load(store).await.into_iter().map(|session| session.client_id).collect();
        assert_eq!(left, ["b".into()]);
    }
    let again = store.open("c", DAY, false).await.expect("opened");
    assert!(!keys.contains(&again));
    assert!(load(store).await[1].held.is_empty());
}

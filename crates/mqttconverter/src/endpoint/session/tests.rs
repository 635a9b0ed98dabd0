use super::*;
use crate::endpoint::store::Held;
use messagepipeline::{MessageId, Verdict};

const HOUR: Duration = Duration::from_secs(3_600);

fn sessions(detached: usize) -> Sessions {
    let budget = Arc::new(Budget::new(100, 1 << 20));
    Sessions::new(budget, Arc::new(Telemetry::new()), Bounds { receive_maximum: 10, detached, held: 100 })
}

/// Connects, holds a packet identifier if `holds`, and goes, to be remembered for an hour.
fn visit(sessions: &Sessions, client_id: &str, holds: bool) {
    let (attachment, _) = sessions.attach(client_id, false).unwrap();
    attachment.set_expiry(HOUR);
    if holds {
        let id = MessageId::from_bytes([7; 16]);
        attachment.with_window(|window| {
            window.take_exactly_once(1, 1, 1, id, 1);
            sessions.recount(0, window);
        });
    }
    sessions.detach(&attachment);
}

fn ended(sessions: &Sessions, limit: usize) -> Vec<SessionKey> {
    let mut keys: Vec<_> = sessions.some_ended(limit).into_iter().map(|(_, key)| key).collect();
    keys.sort();
    keys
}

fn stored(key: i64, client_id: &str) -> StoredSession {
    let held = vec![Held { packet_id: 1, message_id: MessageId::from_bytes([1; 16]), fingerprint: 1 }];
    StoredSession { key: SessionKey(key), client_id: client_id.into(), expiry: HOUR, held }
}

#[tokio::test(start_paused = true)]
async fn sessions_whose_time_has_passed_are_swept_from_memory_and_named_to_the_store() {
    let sessions = sessions(10);
    sessions.restore(vec![stored(1, "stays away"), stored(2, "comes back")]).unwrap();
    tokio::time::advance(HOUR / 2).await;
    let (attachment, present) = sessions.attach("comes back", false).unwrap();
    assert!(present);
    sessions.detach(&attachment);
    tokio::time::advance(HOUR / 2).await;
    sessions.sweep();
    assert_eq!(ended(&sessions, 10), [SessionKey(1)]);
    assert!(!sessions.attach("stays away", false).unwrap().1);
    assert!(sessions.attach("comes back", false).unwrap().1);
    assert_eq!(sessions.held.load(Ordering::Relaxed), 1, "what the swept one held is counted no more");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_expired_before_the_sweep_is_not_resumed() {
    let sessions = sessions(10);
    sessions.restore(vec![stored(1, "late")]).unwrap();
    tokio::time::advance(2 * HOUR).await;
    let (attachment, present) = sessions.attach("late", false).unwrap();
    assert!(!present);
    let mut state = attachment.session.state.lock();
    assert!(state.window.exchanges().is_empty());
    assert!(state.kept.unwrap().is_stale, "the store is told before the CONNACK");
}

#[tokio::test(start_paused = true)]
async fn of_too_many_sessions_without_a_connection_the_oldest_that_hold_nothing_are_forgotten_first() {
    let sessions = sessions(3);
    for (client_id, holds) in [("holds", true), ("empty", false), ("newer", false), ("newest", false)] {
        visit(&sessions, client_id, holds);
    }
    let known = |client_id: &str| sessions.by_client.lock().sessions.contains_key(client_id);
    assert_eq!(["holds", "empty", "newer", "newest"].map(known), [true, false, true, true]);
    // Once all hold something, the oldest of them goes.
    for client_id in ["a", "b", "c"] {
        visit(&sessions, client_id, true);
    }
    assert_eq!(
        ["holds", "newer", "newest", "a", "b", "c"].map(known),
        [false, false, false, true, true, true]
    );
    visit(&sessions, "empty", false);
    assert_eq!(["empty", "a", "b", "c"].map(known), [false, true, true, true]);
}

#[tokio::test(start_paused = true)]
async fn stored_sessions_that_are_too_many_are_forgotten_in_the_same_order() {
    let sessions = sessions(1);
    let empty = StoredSession { held: Vec::new(), ..stored(3, "3") };
    sessions.restore(vec![stored(1, "1"), stored(2, "2"), empty]).unwrap();
    assert_eq!(ended(&sessions, 10), [SessionKey(1), SessionKey(3)]);
    assert!(sessions.attach("2", false).unwrap().1);
}

#[tokio::test(start_paused = true)]
async fn ended_sessions_are_named_until_the_store_has_forgotten_them() {
    let sessions = sessions(0);
    sessions.restore((1..=3).map(|n| stored(n, &n.to_string())).collect()).unwrap();
    assert_eq!(ended(&sessions, 2).len(), 2);
    assert_eq!(ended(&sessions, 10).len(), 3);
    assert_eq!(sessions.ended_of("2"), Some(SessionKey(2)));
    sessions.ended("2", SessionKey(9));
    assert_eq!(sessions.ended_of("2"), Some(SessionKey(2)), "another session of the same client");
    sessions.ended("2", SessionKey(2));
    assert_eq!(ended(&sessions, 10), [SessionKey(1), SessionKey(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_not_given_away_while_the_pipeline_holds_something_of_it() {
    let sessions = sessions(10);
    let (first, _) = sessions.attach("first", true).unwrap();
    let sequence = first.with_window(|window| window.take(1, 0, 1)).unwrap();
    let token = first.token(sequence);
    sessions.detach(&first);
    let (second, _) = sessions.attach("second", true).unwrap();
    assert_ne!(first.session.place.slot, second.session.place.slot);
    sessions.settle(&[Settlement { token, verdict: Verdict::Ack }]);
    let (third, _) = sessions.attach("third", true).unwrap();
    assert_eq!(first.session.place.slot, third.session.place.slot);
    assert_ne!(first.session.place, third.session.place, "under a new generation");
}

#[test]
fn a_connect_that_another_one_overtook_is_refused_and_the_will_before_it_hears_of_the_other() {
    for (clean, sequel) in [(false, Sequel::Resumed), (true, Sequel::Ended)] {
        let sessions = sessions(10);
        let attach = |clean| sessions.attach("device", clean).unwrap().0;
        let before = attach(false);
        before.admit(HOUR).unwrap();
        let overtaken = attach(false);
        let last = attach(clean);
        assert_eq!(overtaken.admit(HOUR), Err(Reason::TakenOver));
        sessions.detach(&overtaken);
        last.admit(HOUR).unwrap();
        assert_eq!(before.sequel(), Some(sequel));
    }
}

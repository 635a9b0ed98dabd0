use super::*;
use crate::endpoint::store::Held;
use messagepipeline::{MessageId, Verdict};

const HOUR: Duration = Duration::from_secs(3_600);

fn sessions(max_detached: usize) -> Sessions {
    let budget = Arc::new(Budget::new(100, 1 << 20));
    Sessions::new(budget, Arc::new(Telemetry::new()), 10, max_detached)
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
    sessions.detach(&attachment, HOUR);
    tokio::time::advance(HOUR / 2).await;
    sessions.sweep();
    assert_eq!(sessions.take_ended(10), [SessionKey(1)]);
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
async fn no_more_sessions_without_a_connection_are_kept_than_there_may_be_connections() {
    let sessions = sessions(2);
    sessions.restore((1..=3).map(|n| stored(n, &n.to_string())).collect()).unwrap();
    assert_eq!(sessions.take_ended(10), [SessionKey(3)]);
    let (attachment, _) = sessions.attach("4", false).unwrap();
    sessions.detach(&attachment, HOUR);
    assert!(!sessions.attach("4", false).unwrap().1);
    assert!(sessions.attach("1", false).unwrap().1);
}

#[tokio::test(start_paused = true)]
async fn ended_sessions_that_the_store_could_not_forget_are_named_again() {
    let sessions = sessions(0);
    sessions.restore((1..=3).map(|n| stored(n, &n.to_string())).collect()).unwrap();
    let some = sessions.take_ended(2);
    assert_eq!(some.len(), 2);
    sessions.ended(some, false);
    assert!(sessions.has_ended());
    let all = sessions.take_ended(10);
    assert_eq!(all.len(), 3);
    assert!(sessions.has_ended(), "they are being forgotten, and are not forgotten yet");
    sessions.ended(all, true);
    assert!(!sessions.has_ended());
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_not_given_away_while_the_pipeline_holds_something_of_it() {
    let sessions = sessions(10);
    let (first, _) = sessions.attach("first", true).unwrap();
    let sequence = first.with_window(|window| window.take(1, 0, 1)).unwrap();
    let token = first.token(sequence);
    sessions.detach(&first, Duration::ZERO);
    let (second, _) = sessions.attach("second", true).unwrap();
    assert_ne!(first.session.place.slot, second.session.place.slot);
    sessions.settle(&[Settlement { token, verdict: Verdict::Ack }]);
    let (third, _) = sessions.attach("third", true).unwrap();
    assert_eq!(first.session.place.slot, third.session.place.slot);
    assert_ne!(first.session.place, third.session.place, "under a new generation");
}

//! The session store in the bus's file.
#![allow(clippy::unwrap_used, reason = "tests")]

use embedded::bus::{Bus, BusOptions, BusReader, BusSessions, Candidate, Finished};
use messagepipeline::{
    Attributes, BatchOutcome, Enrichment, Message, MessageId, Publisher, SystemClock, Timestamp,
};
use mqttconverter::endpoint::{Held, SessionStore};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use testkit::session_suite::{self as suite, MemorySessions};

async fn open(folder: &Path) -> (Bus, BusSessions) {
    let bus = Bus::open(folder.join("bus.db"), BusOptions::default(), Arc::new(SystemClock)).await.unwrap();
    let sessions = bus.sessions();
    (bus, sessions)
}

#[tokio::test]
async fn what_is_answered_is_there_for_the_next_process() {
    suite::what_is_answered_is_there_for_the_next_process(MemorySessions::default(), async |store| store)
        .await;
    let (folder, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_bus, sessions) = open(folder.path()).await;
    // Not closed: the next process finds the files as a crash leaves them.
    let reopen = async |_: BusSessions| {
        for file in ["bus.db", "bus.db-wal"] {
            std::fs::copy(folder.path().join(file), copied.path().join(file)).unwrap();
        }
        open(copied.path()).await.1
    };
    suite::what_is_answered_is_there_for_the_next_process(sessions, reopen).await;
}

#[tokio::test]
async fn an_update_holds_and_releases_and_may_come_twice() {
    suite::an_update_holds_and_releases_and_may_come_twice(&MemorySessions::default()).await;
    let folder = tempfile::tempdir().unwrap();
    suite::an_update_holds_and_releases_and_may_come_twice(&open(folder.path()).await.1).await;
}

#[tokio::test]
async fn a_clean_start_forgets_and_what_comes_late_for_the_old_session_is_refused() {
    suite::a_clean_start_forgets_and_what_comes_late_for_the_old_session_is_refused(
        &MemorySessions::default(),
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    let sessions = open(folder.path()).await.1;
    suite::a_clean_start_forgets_and_what_comes_late_for_the_old_session_is_refused(&sessions).await;
}

#[tokio::test]
async fn ended_sessions_are_forgotten() {
    suite::ended_sessions_are_forgotten(&MemorySessions::default()).await;
    let folder = tempfile::tempdir().unwrap();
    suite::ended_sessions_are_forgotten(&open(folder.path()).await.1).await;
}

#[tokio::test]
async fn the_id_of_a_message_that_a_device_may_send_again_stays_in_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let (bus, sessions) = open(folder.path()).await;
    let topic = bus.topic("raw").await.unwrap();
    let id = MessageId::from_bytes([7; 16]);
    let message = Message {
        id,
        payload: "once".into(),
        attributes: Attributes::default(),
        publish_time: Timestamp::from_millis(0),
        enrichment: Enrichment::none(),
        attempt: 1,
    };
    assert!(matches!(bus.publisher(&topic).publish(vec![message]).await, BatchOutcome::Done));
    let key = sessions.open("device", Duration::from_secs(60), false).await.unwrap();
    sessions
        .update(key, vec![Held { packet_id: 1, message_id: id, fingerprint: 0 }], Vec::new())
        .await
        .unwrap();
    let path = folder.path().join("bus.db");
    rusqlite::Connection::open(&path).unwrap().execute("INSERT INTO floors VALUES (1, 0, 1)", []).unwrap();
    let reader = BusReader::open(path).unwrap();
    let (horizon, all) = (Timestamp::from_millis(1), (None, MessageId::from_bytes([0xff; 16])));
    let candidate = Candidate { id, topics: vec!["raw".to_owned()], skipped_at: Vec::new() };
    let fold = async || {
        let finished = vec![Finished { candidate: candidate.clone(), stored: Vec::new() }];
        bus.id_ledger().fold(finished, horizon).await.unwrap()
    };
    assert_eq!(reader.candidates("raw", all, horizon, 10).unwrap().candidates, vec![]);
    assert_eq!(fold().await, vec![]);
    sessions.update(key, Vec::new(), vec![1]).await.unwrap();
    assert_eq!(reader.candidates("raw", all, horizon, 10).unwrap().candidates, vec![candidate.clone()]);
    assert_eq!(fold().await, vec![id]);
}

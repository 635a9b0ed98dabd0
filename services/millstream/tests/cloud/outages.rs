//! Servers that go away and come back.

use crate::common::{bag, lines_of, small_recording, until};
use crate::installation::Installation;
use std::time::Duration;
use testkit::gcs_fake::{GcsFault, GcsRequest};
use testkit::rig::RigOptions;

const MESSAGES: usize = 6_000;

/// How long a server is away.
const AWAY: Duration = Duration::from_secs(5);

#[test]
fn redis_firestore_storage_and_the_broker_go_away_and_nothing_is_lost_or_doubled() {
    let test = "redis_firestore_storage_and_the_broker_go_away_and_nothing_is_lost_or_doubled";
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", MESSAGES, 60);
    // Every device is looked up again and again.
    installation.start_all(1);
    std::thread::scope(|scope| {
        let (mqtt, folder) = (installation.mqtt_url.clone(), installation.rig.folder().to_owned());
        let feed = scope.spawn(move || {
            let file = folder.join("fleet.ndjson");
            crate::common::run(
                &folder,
                &["feed", "--broker", &mqtt, "--rate", "300/s", file.to_str().unwrap()],
            )
        });
        installation.rig.redis.kill();
        std::thread::sleep(AWAY);
        installation.rig.redis.restart();
        installation.rig.firestore.freeze();
        std::thread::sleep(AWAY);
        installation.rig.firestore.thaw();
        let storage = &installation.rig.storage;
        storage.fault(GcsRequest::Upload, [Some(GcsFault::Status(503)), Some(GcsFault::LostReply), None]);
        assert!(feed.join().unwrap().status.success());
    });
    installation.wait_for(MESSAGES);
    installation.stop_all();
    let sent = bag(lines_of(&[file]));
    assert_eq!(installation.row_payloads(), sent);
    assert_eq!(installation.line_payloads(), sent);
    installation.books(1);
}

#[test]
fn a_spool_takes_messages_while_pubsub_is_away_and_delivers_them_when_it_is_back() {
    let test = "a_spool_takes_messages_while_pubsub_is_away_and_delivers_them_when_it_is_back";
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    installation.ingestion = "  spool: {}\n".to_owned();
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", MESSAGES, 60);
    installation.start_all(1);
    installation.rig.pubsub.freeze();
    installation.feed(std::slice::from_ref(&file), "max");
    let ingestion = &installation.running[&("ingestion", 0)];
    until("the spool has taken all", || {
        ingestion.counter("millstream_messages_out_total", "ingestion") == MESSAGES as u64
    });
    installation.rig.pubsub.thaw();
    installation.wait_for(MESSAGES);
    installation.stop_all();
    let sent = bag(lines_of(&[file]));
    assert_eq!(installation.row_payloads(), sent);
    assert_eq!(installation.line_payloads(), sent);
    installation.books(1);
}

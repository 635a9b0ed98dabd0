//! Servers that go away and come back, one after the other.

use crate::common::{bag, get, lines_of, small_recording, until};
use crate::installation::Installation;
use std::path::Path;
use std::time::{Duration, Instant};
use testkit::gcs_fake::{GcsFault, GcsRequest};
use testkit::rig::DATASET;

const MESSAGES: usize = 6_000;
const DEVICES: usize = 60;

/// How long Redis, the broker and others are away.
const AWAY: Duration = Duration::from_secs(5);

/// How long Firestore is away.
fn outage() -> Duration {
    let seconds = std::env::var("MILLSTREAM_CLOUD_OUTAGE").map_or(10, |value| value.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Everything sent is in both sinks once, and the books of `replicas` replicas balance.
fn conclude(mut installation: Installation, file: &Path, replicas: usize) {
    installation.wait_for(MESSAGES);
    installation.stop_all();
    let sent = bag(lines_of(&[file.to_owned()]));
    assert_eq!(installation.row_payloads(), sent);
    assert_eq!(installation.line_payloads(), sent);
    installation.books(replicas);
}

#[test]
fn redis_and_storage_go_away_and_nothing_is_lost_or_doubled() {
    let test = "redis_and_storage_go_away_and_nothing_is_lost_or_doubled";
    let Some(mut installation) = Installation::with_long_leases(test) else { return };
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", MESSAGES, DEVICES);
    // Every device is looked up again and again, and there are many objects for faults to meet.
    installation.settings.insert("enrichment", "  cache: {max_age: 1s}\n".to_owned());
    installation.settings.insert("icestore", "  batch: {age: 1s}\n".to_owned());
    installation.start_all(1);
    installation.during_feed(&file, "400/s", |installation, _| {
        installation.rig.redis.kill();
        std::thread::sleep(AWAY);
        installation.rig.redis.restart();
        let storage = &installation.rig.storage;
        let faults = [
            Some(GcsFault::Status(503)),
            Some(GcsFault::LostReply),
            Some(GcsFault::Status(412)),
            Some(GcsFault::Cut),
            Some(GcsFault::Status(503)),
            Some(GcsFault::LostReply),
            Some(GcsFault::LostReply),
        ];
        let before = storage.requests(GcsRequest::Upload);
        storage.fault(GcsRequest::Upload, faults);
        storage.fault(GcsRequest::Metadata, [Some(GcsFault::Status(503)), Some(GcsFault::LostReply)]);
        storage.fault(GcsRequest::List, [Some(GcsFault::Status(503))]);
        until("uploads have met all faults", || {
            storage.requests(GcsRequest::Upload) >= before + faults.len() as u64
        });
    });
    conclude(installation, &file, 1);
}

/// No device is known to any cache when the registry goes away, so that every message has to wait for it. First nothing
/// is answered, then connections are refused.
#[test]
fn an_outage_of_firestore_delays_messages_and_gives_up_none() {
    let test = "an_outage_of_firestore_delays_messages_and_gives_up_none";
    let Some(mut installation) = Installation::with_long_leases(test) else { return };
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", MESSAGES, DEVICES);
    let devices: String = (0..DEVICES).map(|n| format!("dev-{n:03},acme,lyon,meter\n")).collect();
    installation.import_devices(&format!("device_id,client_id,location_id,category\n{devices}"));
    let proxy = installation.lead_through_proxy("FIRESTORE_EMULATOR_HOST");
    installation.start_all(2);
    installation.rig.firestore.freeze();
    installation.feed(std::slice::from_ref(&file), "max");
    let away = Instant::now();
    for replica in 0..2 {
        let enrichment = &installation.running[&("enrichment", replica)];
        until("readyz of enrichment says why nothing goes on", || {
            let (status, body) = get(enrichment.http(), "/readyz");
            status == 503 && body.contains("Firestore")
        });
    }
    // The length of the outage is the test's subject.
    std::thread::sleep((outage() / 2).saturating_sub(away.elapsed()));
    proxy.turn_away();
    installation.rig.firestore.thaw();
    std::thread::sleep(outage() / 2);
    assert_eq!(installation.lines().len(), 0, "nothing passes without its device's data");
    eprintln!("{test}: Firestore was away for {:?}", away.elapsed());
    proxy.let_in(installation.rig.firestore.address());
    installation.wait_for(MESSAGES);
    for replica in 0..2 {
        installation.running.get_mut(&("enrichment", replica)).unwrap().ready();
    }
    eprintln!("{test}: {}", installation.redeliveries());
    let enriched =
        format!("SELECT COUNT(DISTINCT message_id) AS n FROM `{DATASET}.messages` WHERE client_id = 'acme'");
    installation.stop_all();
    let rows = installation.rig.bigquery.query(&enriched);
    assert_eq!(rows[0]["n"].to_string().trim_matches('"'), MESSAGES.to_string());
    assert!(installation.line_payloads().keys().eq(bag(lines_of(&[file])).keys()));
    let report = installation.books(2);
    eprintln!(
        "{test}: {} copies of rows, {} of lines",
        report["warehouse"]["copies"], report["archive"]["copies"]
    );
}

#[test]
fn a_spool_takes_messages_while_pubsub_is_away_and_delivers_them_when_it_is_back() {
    let test = "a_spool_takes_messages_while_pubsub_is_away_and_delivers_them_when_it_is_back";
    let Some(mut installation) = Installation::with_long_leases(test) else { return };
    installation.settings.insert("ingestion", "  spool: {}\n".to_owned());
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", MESSAGES, DEVICES);
    installation.start_all(1);
    installation.rig.pubsub.freeze();
    installation.feed(std::slice::from_ref(&file), "max");
    let ingestion = &installation.running[&("ingestion", 0)];
    until("the spool has taken all", || {
        ingestion.counter("millstream_messages_out_total", "ingestion") == MESSAGES as u64
    });
    installation.rig.pubsub.thaw();
    conclude(installation, &file, 1);
}

//! Messages in, rows and lines out, books balanced across the processes.

use crate::common::{bag, lines_of, recordings, small_recording, texts};
use crate::installation::Installation;
use crate::service::SERVICES;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};
use std::time::Duration;
use testkit::rig::RigOptions;
use testkit::servers::SubscriptionSettings;

const DEVICES: &str = "device_id,client_id,location_id,category\n\
    A81758FFFE04B1C1,campus,tour-perret,climate\n\
    d1d1e80000000033,campus,saint-eynard,weather\n\
    0018B20000020CBC,helium,grenoble,tracker\n";

#[test]
fn real_messages_arrive_byte_for_byte_with_enriched_columns_and_the_books_balance_across_the_processes() {
    let test =
        "real_messages_arrive_byte_for_byte_with_enriched_columns_and_the_books_balance_across_the_processes";
    let Some(files) = recordings(test) else { return };
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    installation.import_devices(DEVICES);
    installation.start_all(1);
    let sent = bag(lines_of(&files));
    let count = sent.values().sum();
    installation.feed(&files, "max");
    installation.wait_for(count);
    installation.stop_all();

    assert_eq!(installation.row_payloads(), sent, "rows differ from the recordings' lines");
    assert_eq!(installation.line_payloads(), sent, "archived lines differ from the recordings' lines");
    let enriched = installation.rig.bigquery.query(
        "SELECT COUNT(*) AS n FROM `millstream.messages` WHERE device_id = 'A81758FFFE04B1C1' AND client_id = 'campus' \
         AND location_id = 'tour-perret' AND category = 'climate'",
    );
    let of_device = sent.iter().filter(|(line, _)| line.windows(16).any(|w| w == b"A81758FFFE04B1C1"));
    let of_device: usize = of_device.map(|(_, count)| count).sum();
    assert_eq!(enriched[0]["n"].to_string().trim_matches('"'), of_device.to_string());
    let report = installation.books(1);
    assert_eq!(report["ledger"]["ids"], count, "{report:#}");
    assert_eq!(report["warehouse"]["digest"], report["archive"]["digest"]);
    assert_eq!(report["ledger"]["digest"], report["archive"]["digest"]);
    assert_eq!((&report["warehouse"]["copies"], &report["archive"]["copies"]), (&0.into(), &0.into()));
}

#[test]
fn sigterm_under_load_ends_each_service_well_and_nothing_is_lost_or_doubled() {
    let test = "sigterm_under_load_ends_each_service_well_and_nothing_is_lost_or_doubled";
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", 10_000, 50);
    installation.start_all(1);
    installation.during_feed(&file, "1000/s", |installation, _| {
        for service in SERVICES {
            crate::common::until("messages flow", || {
                installation.running[&(service, 0)].counter("millstream_messages_out_total", service) > 100
            });
            let (status, log) = installation.running.remove(&(service, 0)).unwrap().stop();
            assert_eq!(status.code(), Some(0), "{service}:\n{log}");
            installation.forget_reader(service);
            installation.start(service, 0);
            installation.running.get_mut(&(service, 0)).unwrap().ready();
        }
    });
    installation.wait_for(10_000);
    installation.stop_all();
    let sent = bag(lines_of(&[file]));
    assert_eq!(installation.row_payloads(), sent);
    assert_eq!(installation.line_payloads(), sent);
    installation.books(1);
}

#[test]
fn the_archive_in_the_bucket_is_replayed_into_pubsub_under_its_ids_and_the_books_stay_balanced() {
    let test = "the_archive_in_the_bucket_is_replayed_into_pubsub_under_its_ids_and_the_books_stay_balanced";
    let Some(mut installation) = Installation::with_long_leases(test) else { return };
    let (count, devices) = (600, 7);
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", count, devices);
    installation.start_all(1);
    installation.feed(std::slice::from_ref(&file), "max");
    installation.wait_for(count);
    installation.stop_all();
    let mut archived = installation.lines();
    archived.sort_by_key(|line| (line.received_at, line.id));

    installation.rig.bus().create_subscription("seen", "raw", &SubscriptionSettings::default());
    let output = replay(&installation, "no-such-topic");
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("the topic no-such-topic is missing: create it"), "{stdout}{stderr}");
    let output = replay(&installation, "raw");
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}{stderr}");
    assert!(stdout.starts_with(&format!("{count} messages of ")), "{stdout}{stderr}");
    let mut seen = installation.rig.bus().drain("seen", count, Duration::from_secs(20));
    // The emulator numbers messages as it takes them.
    seen.sort_by_key(|message| message.message_id.parse::<u64>().unwrap());
    let again = |message: &testkit::servers::Pulled| message.attributes["millstream_again"] == "1";
    assert!(seen.iter().all(again), "the archive would not look for them");
    let replayed = seen.iter().map(|message| {
        (
            &message.attributes["device_id"],
            (message.attributes["millstream_id"].clone(), message.data.clone()),
        )
    });
    let before = archived.iter().map(|line| {
        (line.attributes.get("device_id").unwrap().to_owned(), (line.id.to_string(), line.payload.to_vec()))
    });
    assert_eq!(by_device(replayed), by_device(before));

    for service in ["enrichment", "bigquery", "icestore"] {
        installation.forget_reader(service);
        installation.start(service, 0);
        installation.running.get_mut(&(service, 0)).unwrap().ready();
    }
    for service in ["enrichment", "bigquery", "icestore"] {
        crate::common::until(&format!("{service} has the replayed messages"), || {
            installation.running[&(service, 0)].counter("millstream_messages_in_total", service)
                >= count as u64
        });
    }
    installation.stop_all();
    let ids = |lines: &[icestore::ArchivedMessage]| lines.iter().map(|line| line.id).collect::<BTreeSet<_>>();
    assert_eq!(ids(&installation.lines()), ids(&archived));
    let report = installation.books(1);
    assert_eq!(report["ledger"]["ids"], count, "{report:#}");
    assert_eq!(report["ledger"]["digest"], report["warehouse"]["digest"]);
    assert_eq!(report["ledger"]["digest"], report["archive"]["digest"]);
    assert_eq!(report["archive"]["copies"], 0, "{report:#}");
}

/// What each device has, in its order.
fn by_device<D: ToString, T>(messages: impl Iterator<Item = (D, T)>) -> BTreeMap<String, Vec<T>> {
    let mut devices = BTreeMap::<_, Vec<T>>::new();
    for (device, message) in messages {
        devices.entry(device.to_string()).or_default().push(message);
    }
    devices
}

/// `millstream replay` of the archive in the bucket.
fn replay(installation: &Installation, topic: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_millstream"))
        .arg("--config")
        .arg(installation.rig.folder().join("cloud-0.yaml"))
        .args(["replay", "--topic", topic])
        .envs(installation.environment.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap()
}

#[test]
fn one_process_with_the_embedded_bus_writes_to_sinks_on_google_cloud_and_its_books_balance() {
    let test = "one_process_with_the_embedded_bus_writes_to_sinks_on_google_cloud_and_its_books_balance";
    let Some(installation) = Installation::new(test, RigOptions::default()) else { return };
    installation.import_devices("device_id,client_id,location_id,category\ndev-001,acme,lyon,meter\n");
    let folder = installation.rig.folder();
    let file = small_recording(folder, "fleet.ndjson", 3_000, 20);
    // The sections of the four services as they are, but for the bus and the broker.
    let text = installation.rig.configuration().to_string();
    let (before, rest) = text.split_once("bus:\n").unwrap();
    let (_, after) = rest.split_once("enrichment:\n").unwrap();
    std::fs::write(folder.join("mixed.yaml"), format!("{before}enrichment:\n{after}")).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_millstream"));
    command
        .current_dir(folder)
        .args(["--config", "mixed.yaml", "up", "--mqtt-listen", "127.0.0.1:0", "--feed"])
        .arg(&file)
        .args(["--until-drained", "--report", "report.json"])
        .envs(installation.environment.iter().map(|(name, value)| (name, value)));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["balanced"], true, "{report:#}");
    assert_eq!((&report["warehouse"]["rows"], &report["archive"]["lines"]), (&3_000.into(), &3_000.into()));
    assert_eq!(report["topics"][0]["digest"], report["warehouse"]["digest"]);
    let sent = bag(lines_of(&[file]));
    assert_eq!(installation.row_payloads(), sent);
    assert_eq!(installation.line_payloads(), sent);
    let enriched = installation.rig.bigquery.query(
        "SELECT COUNT(*) AS n FROM `millstream.messages` WHERE client_id = 'acme' AND location_id = 'lyon'",
    );
    assert_eq!(enriched[0]["n"].to_string().trim_matches('"'), "150");
}

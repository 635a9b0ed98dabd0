//! `millstream replay`: what was archived goes the path again.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use common::{
    Up, archive_objects, archive_payloads, bag, books, lines_of, run, small_recording, texts, warehouse,
    warehouse_payloads,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A recording of real devices where there are some, else one made here.
fn recording(folder: &Path, test: &str) -> PathBuf {
    match std::env::var_os("MILLSTREAM_RECORDINGS") {
        Some(_) => common::recordings(test).unwrap().remove(0),
        None => small_recording(folder, "a.ndjson", 3_000, 17),
    }
}

/// Feeds `recording` into a new data folder below `folder` and lets it drain.
fn fill(folder: &Path, recording: &Path) {
    drain(folder, &["--feed", recording.to_str().unwrap()]);
}

/// Lets everything on the bus below `folder` arrive.
fn drain(folder: &Path, arguments: &[&str]) {
    let ports = ["up", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--until-drained"];
    let output = run(folder, &[&ports, arguments].concat());
    assert!(output.status.success(), "{:?}", texts(&output));
}

/// Message ids of the warehouse.
fn ids(folder: &Path) -> Vec<String> {
    let connection = warehouse(folder);
    let mut statement = connection.prepare("SELECT message_id FROM messages ORDER BY 1").unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// The payloads of each device by time of receipt, then id.
fn by_device(folder: &Path) -> BTreeMap<Option<String>, Vec<Vec<u8>>> {
    let connection = warehouse(folder);
    let sql = "SELECT device_id, CAST(payload AS BLOB) FROM messages ORDER BY received_at, message_id";
    let mut statement = connection.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let mut devices: BTreeMap<Option<String>, Vec<Vec<u8>>> = BTreeMap::new();
    for row in rows {
        let (device, payload) = row.unwrap();
        devices.entry(device).or_default().push(payload);
    }
    devices
}

/// A line of the archive, as far as the tests look.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    received_at: String,
    attributes: BTreeMap<String, String>,
    payload: serde_json::Value,
}

fn archive_lines(folder: &Path) -> impl Iterator<Item = Line> {
    lines_of(&archive_objects(folder)).into_iter().map(|line| serde_json::from_slice(&line).unwrap())
}

fn replay(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = run(folder, &[&["replay"], arguments].concat());
    let (stdout, stderr) = texts(&output);
    (output.status.code(), stdout, stderr)
}

#[test]
fn an_archive_fills_a_new_data_folder_and_what_is_there_already_is_not_doubled() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) = (old.path(), new.path());
    let recording = recording(old, "an_archive_fills_a_new_data_folder");
    fill(old, &recording);
    let sent = lines_of(&[recording]);
    let archive = old.join("data/archive");
    let (code, said, errors) = replay(new, &["--topic", "raw", archive.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}{errors}");
    assert!(said.starts_with(&format!("{} messages of ", sent.len())), "{said}");
    drain(new, &[]);
    assert_eq!(bag(warehouse_payloads(new)), bag(sent.clone()));
    assert_eq!(bag(archive_payloads(new)), bag(sent.clone()));
    assert_eq!(ids(new), ids(old));
    assert_eq!(by_device(new), by_device(old));
    assert_eq!(books(new).1, Some(0));
    // Again, from its own archive: every id is known.
    let (code, said, errors) = replay(new, &["--topic", "raw"]);
    assert_eq!(code, Some(0), "{said}{errors}");
    drain(new, &[]);
    assert_eq!(ids(new), ids(old));
    assert_eq!(archive_payloads(new).len(), sent.len());
    // With new ids they are new messages.
    let (code, said, errors) = replay(new, &["--topic", "raw", "--new-ids"]);
    assert_eq!(code, Some(0), "{said}{errors}");
    drain(new, &[]);
    assert_eq!(ids(new).len(), 2 * sent.len());
    assert_eq!(books(new).1, Some(0));
}

#[test]
fn a_broker_gets_archived_messages_on_their_topics_with_what_they_had_in_the_order_of_each_device() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) = (old.path(), new.path());
    fill(old, &small_recording(old, "a.ndjson", 600, 7));
    let up = Up::start(new, &[]);
    let (url, archive) = (format!("mqtt://127.0.0.1:{}", up.mqtt), old.join("data/archive"));
    let (code, said, errors) = replay(new, &["--broker", &url, archive.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}{errors}");
    assert!(said.contains("600 sent, 600 acknowledged"), "{said}");
    let one = replay(new, &["--broker", &url, "--device", "dev-003", archive.to_str().unwrap()]);
    assert!(one.1.contains("86 sent, 86 acknowledged"), "{one:?}");
    let (status, errors) = up.stop();
    assert!(status.success(), "{errors}");
    drain(new, &[]);
    let (before, mut after) = (by_device(old), by_device(new));
    // The one device's messages came twice, the second time after all others.
    let twice = after.get_mut(&Some("dev-003".to_owned())).unwrap();
    let second = twice.split_off(86);
    assert_eq!(*twice, second);
    assert_eq!(after, before);
    let was = |line: Line| {
        (line.payload.to_string(), line.received_at, line.attributes.get("mqtt_client_id").cloned())
    };
    let says = |line: Line| {
        let said = |name: &str| line.attributes.get(name).cloned();
        (line.payload.to_string(), said("user.received_at").unwrap_or_default(), said("user.mqtt_client_id"))
    };
    let expected: BTreeSet<_> = archive_lines(old).map(was).collect();
    assert_eq!(archive_lines(new).map(says).collect::<BTreeSet<_>>(), expected);
}

#[test]
fn what_cannot_be_replayed_is_said_with_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (arguments, code, wanted) in [
        (&["--topic", "raw", "/nowhere/archive"][..], 1, "/nowhere/archive"),
        (&["--topic", "raw", "--from", "yesterday"][..], 2, "2026-11-21"),
        (&["--topic", "raw", "--rate", "fast"][..], 2, "60x"),
        (&["--topic", "raw", "--from", "2026-03-02", "--until", "2026-03-01"][..], 2, "after --until"),
        (&[][..], 2, "--topic"),
        (&["--broker", "127.0.0.1"][..], 2, "mqtt://"),
    ] {
        let (found, said, errors) = replay(folder, arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {said}{errors}");
        assert!(errors.contains(wanted), "{arguments:?}: {errors}");
    }
    if cfg!(not(feature = "google")) {
        let (code, _, errors) = replay(folder, &["--topic", "raw", "gs://bucket/site"]);
        assert_eq!(code, Some(2), "{errors}");
        assert!(errors.contains("--features google"), "{errors}");
    } else {
        let config = folder.join("cloud.yaml");
        std::fs::write(&config, "google: {project: p}\nbus: {kind: pubsub}\n").unwrap();
        let config = config.to_str().unwrap();
        for topic in ["dead-letters", "projects/p/topics/dead-letters"] {
            let (code, _, errors) = replay(folder, &["--config", config, "--topic", topic]);
            assert_eq!(code, Some(2), "{errors}");
            assert!(errors.contains("such as raw"), "{errors}");
        }
    }
    // A folder in use is not written to.
    let up = Up::start(folder, &[]);
    let (code, _, errors) = replay(folder, &["--topic", "raw"]);
    assert_eq!(code, Some(1), "{errors}");
    drop(up);
}

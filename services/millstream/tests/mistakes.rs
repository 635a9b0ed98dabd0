//! What a new user does wrong, and what the program answers: the exit code, and a text that says what would be right.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod common;

use common::{Up, books, run, small_recording, texts, warehouse};
use std::path::Path;

const PORTS: [&str; 4] = ["--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];

/// Runs it, expects the exit code, and expects each word on standard error.
fn refused(folder: &Path, arguments: &[&str], code: i32, words: &[&str]) {
    let output = run(folder, arguments);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{stdout}\n{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{arguments:?}: no {word:?} in\n{stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

fn up_with(arguments: &[&'static str]) -> Vec<&'static str> {
    [&["up"], &PORTS[..], arguments].concat()
}

#[test]
fn a_second_up_on_the_same_folder_is_refused_and_names_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Up::start(folder.path(), &[]);
    refused(folder.path(), &up_with(&[]), 1, &["data", "process"]);
}

#[test]
fn a_folder_of_a_newer_format_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 10, 1);
    let feed = ["--until-drained", "--feed"];
    let output = run(folder.path(), &[&up_with(&feed)[..], &[file.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(0), "{:?}", texts(&output));
    let format = folder.path().join("data/format");
    std::fs::write(&format, "999\n").unwrap();
    refused(folder.path(), &up_with(&["--until-drained"]), 1, &["999", "newer"]);
    assert_eq!(std::fs::read_to_string(format).unwrap(), "999\n");
}

#[test]
fn a_column_added_to_the_configuration_is_added_to_the_existing_warehouse() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 10, 1);
    let feed = [&up_with(&["--until-drained", "--feed"])[..], &[file.to_str().unwrap()]].concat();
    assert_eq!(run(folder.path(), &feed).status.code(), Some(0));
    let columns = "bigquery:\n  columns:\n    - {name: message_id, source: id}\n    - {name: payload, source: payload}\n    \
                   - {name: note, type: string, source: /note}\n";
    std::fs::write(folder.path().join("millstream.yaml"), columns).unwrap();
    let output = run(folder.path(), &feed);
    assert_eq!(output.status.code(), Some(0), "{:?}", texts(&output));
    let count = |sql: &str| -> i64 { warehouse(folder.path()).query_row(sql, [], |row| row.get(0)).unwrap() };
    assert_eq!(count("SELECT count(*) FROM messages WHERE note LIKE 'größe %'"), 10);
    assert_eq!(count("SELECT count(*) FROM messages WHERE note IS NULL AND received_at IS NOT NULL"), 10);
    assert_eq!(books(folder.path()).1, Some(0));
}

#[test]
fn every_mistake_of_a_configuration_is_named_at_once_with_its_line_and_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let text = "\
ingestion:
  mqtt:
    lissten: 127.0.0.1:1883
    receive_maximum: many
enrichment:
  unknown_device: ignore
  cache:
    max_age: 5
icestore:
  batch:
    bytes: lots
";
    std::fs::write(folder.path().join("millstream.yaml"), text).unwrap();
    let words = [
        "millstream.yaml:3:5",
        "listen",
        "millstream.yaml:4",
        "millstream.yaml:6",
        "dead-letter",
        "millstream.yaml:8",
        "5s",
        "millstream.yaml:11",
    ];
    refused(folder.path(), &["check"], 2, &words);
    refused(folder.path(), &up_with(&[]), 2, &words);
    assert!(!folder.path().join("data").exists(), "nothing is opened before the configuration is right");
}

#[test]
fn a_type_mistake_in_one_section_does_not_hide_what_is_wrong_in_another() {
    let folder = tempfile::tempdir().unwrap();
    let text = "\
ingestion:
  routes:
    - {name: all, filter: 'a/#/b', topic: raw}
enrichment:
  keys: [device]
icestore:
  batch:
    bytes: lots
";
    std::fs::write(folder.path().join("millstream.yaml"), text).unwrap();
    let words =
        ["millstream.yaml:3", "millstream.yaml:5", "attribute:<name>", "millstream.yaml:8", "3 mistakes"];
    refused(folder.path(), &["check"], 2, &words);
}

#[test]
fn retentions_that_work_against_each_other_are_refused_with_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let text = "bus: {lease: 10m}\nretention:\n  ids: 15m\n  warehouse: 5m\n";
    std::fs::write(folder.path().join("millstream.yaml"), text).unwrap();
    let words = [
        "millstream.yaml:3",
        "twice bus.lease",
        "millstream.yaml:4",
        "shorter than retention.ids",
        "2 mistakes",
    ];
    refused(folder.path(), &["check"], 2, &words);
}

#[test]
fn a_lease_that_ends_before_a_group_is_written_is_refused_with_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    let write = |age: &str| {
        let text = format!(
            "bus: {{lease: 5m}}\nicestore:\n  batch:\n    age: {age}\nbigquery:\n  batch: {{age: 1h}}\n"
        );
        std::fs::write(folder.path().join("millstream.yaml"), text).unwrap();
    };
    write("6m");
    let words = [
        "millstream.yaml:4",
        "half of bus.lease (5m)",
        "bus.lease to 12m or more",
        "this to 2m30s or less",
        "millstream.yaml:6",
        "bus.lease to 2h or more",
        "2 mistakes",
    ];
    refused(folder.path(), &["check"], 2, &words);
    refused(folder.path(), &up_with(&[]), 2, &words);
    // Half of the lease is the most.
    write("150s");
    refused(folder.path(), &["check"], 2, &["millstream.yaml:6", "1 mistake"]);
}

#[test]
fn a_store_that_has_gone_is_named_and_not_silently_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 10, 1);
    let feed = [&up_with(&["--until-drained", "--feed"])[..], &[file.to_str().unwrap()]].concat();
    assert_eq!(run(folder.path(), &feed).status.code(), Some(0));
    for store in ["bus.db", "warehouse.db", "archive.db", "registry.db"] {
        let (path, aside) = (folder.path().join("data").join(store), folder.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        refused(folder.path(), &up_with(&["--until-drained"]), 1, &[store, "--accept-missing-stores"]);
        assert!(!path.exists(), "{store} was made anew");
        std::fs::rename(&aside, &path).unwrap();
    }
    assert_eq!(run(folder.path(), &up_with(&["--until-drained"])).status.code(), Some(0));
    std::fs::remove_file(folder.path().join("data/registry.db")).unwrap();
    let accepted = up_with(&["--until-drained", "--accept-missing-stores"]);
    assert_eq!(run(folder.path(), &accepted).status.code(), Some(0));
    assert_eq!(run(folder.path(), &up_with(&["--until-drained"])).status.code(), Some(0));
}

#[test]
fn a_report_that_cannot_be_written_does_not_hide_books_that_do_not_balance() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 10, 1);
    let feed = [&up_with(&["--until-drained", "--feed"])[..], &[file.to_str().unwrap()]].concat();
    assert_eq!(run(folder.path(), &feed).status.code(), Some(0));
    let full = up_with(&["--until-drained", "--report", "/dev/full"]);
    refused(folder.path(), &full, 1, &["/dev/full"]);
    let warehouse = rusqlite::Connection::open(folder.path().join("data/warehouse.db")).unwrap();
    warehouse
        .execute("DELETE FROM messages WHERE rowid IN (SELECT rowid FROM messages LIMIT 1)", [])
        .unwrap();
    drop(warehouse);
    refused(folder.path(), &full, 3, &["/dev/full", "unaccounted for"]);
}

#[test]
fn a_start_that_cannot_say_where_it_listens_ends_in_good_order() {
    let folder = tempfile::tempdir().unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = common::millstream(folder.path()).args(up_with(&[])).stdout(full).output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("No space left"), "{stderr}");
    let bus = rusqlite::Connection::open(folder.path().join("data/bus.db")).unwrap();
    let running: i64 = bus.query_row("SELECT running FROM starts", [], |row| row.get(0)).unwrap();
    assert_eq!(running, 0, "the bus was not closed");
    assert!(!folder.path().join("data/control.json").exists());
}

#[test]
fn a_stop_does_not_wait_for_a_publish_that_keeps_failing() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 500, 5);
    std::fs::write(
        folder.path().join("millstream.yaml"),
        "bus: {max_size: 1kB}\nenrichment: {unknown_device: park}\n",
    )
    .unwrap();
    let up = Up::start(folder.path(), &[]);
    let broker = format!("mqtt://127.0.0.1:{}", up.mqtt);
    let mut feed = common::millstream(folder.path())
        .args(["feed", "--broker", &broker, file.to_str().unwrap()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begun = std::time::Instant::now();
    while common::get(up.http, "/readyz").0 == 200 {
        assert!(begun.elapsed() < common::PATIENCE, "publishing does not fail");
    }
    let (status, stderr) = up.stop();
    feed.kill().unwrap();
    feed.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(!stderr.contains("did not end within"), "{stderr}");
}

#[test]
fn a_configuration_file_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), &["check", "--config", "nowhere.yaml"], 2, &["nowhere.yaml"]);
}

#[test]
fn broken_yaml_is_shown_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("millstream.yaml"), "data: x\ningestion: [\n").unwrap();
    refused(folder.path(), &["check"], 2, &["millstream.yaml:"]);
}

#[test]
fn a_port_in_use_is_named_with_the_setting_that_chooses_it() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let arguments = ["up", "--mqtt-listen", &address, "--http-listen", "127.0.0.1:0"];
    refused(folder.path(), &arguments, 1, &[&address, "in use"]);
    let arguments = ["up", "--mqtt-listen", "127.0.0.1:0", "--http-listen", &address];
    refused(folder.path(), &arguments, 1, &[&address, "in use"]);
}

#[test]
fn listening_beyond_loopback_without_protection_needs_the_explicit_setting() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["up", "--mqtt-listen", "0.0.0.0:0", "--http-listen", "127.0.0.1:0"];
    refused(folder.path(), &arguments, 2, &["allow_insecure"]);
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("data"), "a file stands where the folder should be").unwrap();
    refused(folder.path(), &up_with(&[]), 1, &["data"]);
}

#[test]
fn a_broken_recording_line_is_named_with_file_and_line_and_the_others_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        "{\"device_id\":\"a\",\"value\":1}\nnot json\n{\"device_id\":\"b\",\"value\":2}\n{\"value\":3}\n";
    std::fs::write(folder.path().join("broken.ndjson"), text).unwrap();
    let arguments = up_with(&["--until-drained", "--feed", "broken.ndjson"]);
    refused(folder.path(), &arguments, 1, &["broken.ndjson:2", "broken.ndjson:4", "/device_id"]);
    let rows: i64 =
        warehouse(folder.path()).query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 2);
}

#[test]
fn a_recording_that_is_not_there_is_named_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), &["feed", "nowhere.ndjson"], 1, &["nowhere.ndjson"]);
}

#[test]
fn a_wrong_flag_is_usage_and_a_wrong_query_says_why() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), &["up", "--until-dranied"], 2, &["--until-drained"]);
    refused(folder.path(), &["query", "SELECT 1"], 1, &["millstream up"]);
    drop(Up::start(folder.path(), &[]));
    refused(folder.path(), &["query", "SELEC 1"], 1, &["SELEC"]);
    refused(folder.path(), &["query", "DELETE FROM messages"], 1, &["SELECT"]);
}

#[test]
fn an_import_keeps_the_good_lines_names_the_refused_ones_and_exits_1() {
    let folder = tempfile::tempdir().unwrap();
    let text = "device_id,client_id,location_id,category,floor\na,acme,hall,climate,3\n,acme,hall,climate,3\nb,acme\n";
    std::fs::write(folder.path().join("devices.csv"), text).unwrap();
    refused(
        folder.path(),
        &["devices", "import", "devices.csv"],
        1,
        &["devices.csv:3", "device_id", "devices.csv:4"],
    );
    let output = run(folder.path(), &["devices", "show", "a"]);
    let (stdout, _) = texts(&output);
    assert_eq!(output.status.code(), Some(0));
    for word in ["acme", "hall", "climate", "floor", "3"] {
        assert!(stdout.contains(word), "{stdout}");
    }
}

#[test]
fn books_name_a_row_and_an_object_that_somebody_deleted_and_exit_3() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 50, 3);
    let feed = [&up_with(&["--until-drained", "--feed"])[..], &[file.to_str().unwrap()]].concat();
    assert_eq!(run(folder.path(), &feed).status.code(), Some(0));
    let connection = rusqlite::Connection::open(folder.path().join("data/warehouse.db")).unwrap();
    let lost: String = connection
        .query_row("DELETE FROM messages WHERE value = 17 RETURNING message_id", [], |row| row.get(0))
        .unwrap();
    drop(connection);
    let (report, code) = books(folder.path());
    assert_eq!(code, Some(3));
    assert_eq!(report["balanced"], false);
    assert_eq!(report["unaccounted"][0]["message_id"], lost.as_str());
    let objects = common::archive_objects(folder.path());
    let copy = objects[0].with_file_name("copy.jsonl.gz");
    std::fs::copy(&objects[0], &copy).unwrap();
    refused(folder.path(), &["books", "--deep"], 3, &["copy.jsonl.gz"]);
    std::fs::remove_file(copy).unwrap();
    std::fs::remove_file(&objects[0]).unwrap();
    let (report, code) = books(folder.path());
    assert_eq!(code, Some(3));
    assert_eq!(report["unaccounted"].as_array().unwrap().len(), 50, "one object held them all");
}

#[test]
fn the_brokers_environment_variables_are_followed_and_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let broker = "ingestion:\n  broker: {url: \"mqtt://127.0.0.1:1\", client_id: a, allow_anonymous: true}\n";
    std::fs::write(folder.path().join("millstream.yaml"), broker).unwrap();
    let with = |name: &str, value: &str| {
        let output =
            common::millstream(folder.path()).args(["check", "--print-config"]).env(name, value).output();
        texts(&output.unwrap())
    };
    assert!(with("MQTT_KEEP_ALIVE_SECONDS", "17").0.contains("keep_alive: 17s"));
    assert!(with("MQTT_CONNECT_TIMEOUT_SECONDS", "soon").1.contains("MQTT_CONNECT_TIMEOUT_SECONDS"));
    assert!(with("MQTT_INSECURE_SKIP_VERIFY", "true").1.contains("tls.ca"));
}

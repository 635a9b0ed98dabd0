//! The whole path as a person runs it: recordings in, rows and archive lines out, books balanced.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod common;

use common::{
    Up, archive_payloads, bag, books, get, lines_of, recordings, run, small_recording, texts, warehouse,
    warehouse_payloads,
};
use std::path::{Path, PathBuf};

fn assert_all_arrived(folder: &Path, files: &[PathBuf]) {
    let sent = bag(lines_of(files));
    assert_eq!(bag(warehouse_payloads(folder)), sent, "warehouse payloads differ from the recordings' lines");
    assert_eq!(bag(archive_payloads(folder)), sent, "archive payloads differ from the recordings' lines");
    let (report, code) = books(folder);
    assert_eq!(report["balanced"], true, "{report:#}");
    assert_eq!(code, Some(0));
}

fn feed_until_drained(folder: &Path, files: &[PathBuf]) -> serde_json::Value {
    let mut arguments = vec!["up", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--feed"];
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    arguments.extend(["--until-drained", "--report", "report.json"]);
    let output = run(folder, &arguments);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    serde_json::from_slice(&std::fs::read(folder.join("report.json")).unwrap()).unwrap()
}

#[test]
fn a_recording_fed_through_the_whole_path_arrives_byte_for_byte_and_the_books_balance() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 2_000, 7);
    let report = feed_until_drained(folder.path(), std::slice::from_ref(&file));
    assert_eq!(report["balanced"], true);
    assert_eq!(report["warehouse"]["rows"], 2_000);
    assert_eq!(report["archive"]["lines"], 2_000);
    assert_eq!(report["topics"][0]["digest"], report["warehouse"]["digest"]);
    assert_eq!(report["archive"]["digest"], report["warehouse"]["digest"]);
    assert_all_arrived(folder.path(), &[file]);
}

#[test]
fn the_recordings_arrive_byte_for_byte_with_enriched_columns() {
    let Some(files) = recordings("the_recordings_arrive_byte_for_byte_with_enriched_columns") else { return };
    let folder = tempfile::tempdir().unwrap();
    let devices = "device_id,client_id,location_id,category\n\
                   A81758FFFE04B1C1,campus,tour-perret,climate\n\
                   d1d1e80000000033,campus,saint-eynard,weather\n\
                   0018B20000020CBC,helium,grenoble,tracker\n";
    std::fs::write(folder.path().join("devices.csv"), devices).unwrap();
    assert_eq!(run(folder.path(), &["devices", "import", "devices.csv"]).status.code(), Some(0));
    let report = feed_until_drained(folder.path(), &files);
    assert_eq!(report["warehouse"]["rows"], lines_of(&files).len(), "{report:#}");
    assert_all_arrived(folder.path(), &files);
    let enriched: i64 = warehouse(folder.path())
        .query_row(
            "SELECT count(*) FROM messages WHERE device_id = 'A81758FFFE04B1C1' \
             AND client_id = 'campus' AND location_id = 'tour-perret' AND category = 'climate' \
             AND timestamp IS NOT NULL",
            [],
            |row| row.get(0),
        )
        .unwrap();
    let of_device =
        lines_of(&files).iter().filter(|line| line.windows(16).any(|w| w == b"A81758FFFE04B1C1")).count();
    assert_eq!(enriched, i64::try_from(of_device).unwrap());
    let objects = common::archive_objects(folder.path());
    assert!(objects.iter().any(|path| path.to_string_lossy().contains("/tour-perret/")), "{objects:?}");
}

#[test]
fn feed_from_a_second_process_reaches_a_running_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 1_000, 5);
    let up = Up::start(folder.path(), &[]);
    let broker = format!("mqtt://127.0.0.1:{}", up.mqtt);
    let output =
        run(folder.path(), &["feed", "--broker", &broker, "--acked", "acked.txt", file.to_str().unwrap()]);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    let acked = std::fs::read_to_string(folder.path().join("acked.txt")).unwrap();
    let mut acked: Vec<usize> = acked.lines().map(|line| line.parse().unwrap()).collect();
    acked.sort_unstable();
    assert_eq!(acked, (1..=1_000).collect::<Vec<_>>());
    let (status, stderr) = up.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert_eq!(
        run(
            folder.path(),
            &["up", "--until-drained", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]
        )
        .status
        .code(),
        Some(0)
    );
    assert_all_arrived(folder.path(), &[file]);
}

#[test]
fn health_readiness_and_metrics_answer_while_up_runs() {
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(folder.path(), &[]);
    assert_eq!(get(up.http, "/healthz"), (200, "OK".to_owned()));
    let (status, body) = get(up.http, "/readyz");
    assert_eq!(status, 200, "{body}");
    for stage in ["ingestion", "enrichment", "bigquery", "icestore"] {
        assert!(body.contains(stage), "{body}");
    }
    let (status, body) = get(up.http, "/metrics");
    assert_eq!(status, 200);
    assert!(body.contains("millstream_bus_backlog_messages"), "{body}");
    assert_eq!(get(up.http, "/nothing").0, 404);
}

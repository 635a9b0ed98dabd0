//! Dead letters as a queue of work: nothing is lost or doubled by retrying and dropping, and poison stays apart.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod common;

use common::{
    PATIENCE, Up, archive_payloads, bag, books, get, lines_of, millstream, run, texts, wait, warehouse,
    warehouse_payloads,
};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const PORTS: [&str; 4] = ["--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];

/// A warehouse that wants a value; `more` goes to the end of the file.
fn configure(folder: &Path, required: bool, more: &str) {
    let text = format!(
        "bigquery:\n  columns:\n    - {{name: message_id, source: id}}\n    - {{name: device_id, source: device_id}}\n    \
         - {{name: value, type: float, source: /value, required: {required}}}\n    - {{name: payload, source: payload}}\n{more}"
    );
    std::fs::write(folder.join("millstream.yaml"), text).unwrap();
}

/// A recording: `good` lines of many devices with `bad` ones of a single device strewn in.
fn recording(folder: &Path, good: usize, bad: usize) -> PathBuf {
    let mut text = String::new();
    let each = bad / good.max(1);
    for n in 0..good.max(1) {
        if n < good {
            text.push_str(&format!("{{\"device_id\":\"good-{}\",\"value\":{n}}}\n", n % 10));
        }
        for k in 0..each {
            text.push_str(&format!("{{\"device_id\":\"poison\",\"number\":{}}}\n", n * each + k));
        }
    }
    let path = folder.join("messages.ndjson");
    std::fs::write(&path, text).unwrap();
    path
}

fn ok(folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = run(folder, arguments);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}\n{stdout}\n{stderr}");
    (stdout, stderr)
}

/// Feeds the recording, drains, stops.
fn feed(folder: &Path, file: &Path) {
    ok(folder, &[&["up"], &PORTS[..], &["--until-drained", "--feed", file.to_str().unwrap()]].concat());
}

fn drain(folder: &Path) {
    ok(folder, &[&["up"], &PORTS[..], &["--until-drained"]].concat());
}

fn letters(folder: &Path, state: &str) -> Vec<serde_json::Value> {
    let (stdout, _) = ok(folder, &["dead-letters", "list", "--json", "--limit", "1000000", "--state", state]);
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn count(text: &str) -> u64 {
    text.split(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{text}"))
}

fn assert_each_arrived_once(folder: &Path, file: &Path) {
    let sent = bag(lines_of(&[file.to_path_buf()]));
    assert_eq!(bag(warehouse_payloads(folder)), sent, "warehouse");
    assert_eq!(bag(archive_payloads(folder)), sent, "archive");
    let (report, code) = books(folder);
    assert_eq!((&report["balanced"], code), (&serde_json::json!(true), Some(0)), "{report:#}");
}

fn start_retry(folder: &Path) -> Child {
    let mut command = millstream(folder);
    command.args(["dead-letters", "retry", "--all"]).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn letters_retried_by_two_operators_at_once_beside_a_running_up_arrive_once() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    configure(folder, true, "");
    let file = recording(folder, 20, 2_000);
    feed(folder, &file);
    assert_eq!(letters(folder, "dead").len(), 2_000);
    assert_eq!(warehouse_payloads(folder).len(), 20);
    configure(folder, false, "");
    let up = Up::start(folder, &[]);
    let outputs = [(); 2].map(|()| start_retry(folder)).map(|child| child.wait_with_output().unwrap());
    let done = outputs.map(|output| {
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
        count(&stdout)
    });
    assert_eq!(done.iter().sum::<u64>(), 2_000, "{done:?}");
    let (status, stderr) = up.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(!folder.join("data/control.json").exists());
    assert_eq!(count(&ok(folder, &["dead-letters", "retry", "--all"]).0), 0, "retried twice");
    drain(folder);
    assert_each_arrived_once(folder, &file);
}

/// Kills a retry once some letters, and not all, are back. Answers whether the kill met it like that.
fn is_met_half_done(folder: &Path, retry: &mut Child, kill: impl FnOnce(&mut Child)) -> bool {
    let bus = rusqlite::Connection::open(folder.join("data/bus.db")).unwrap();
    bus.busy_timeout(Duration::from_secs(60)).unwrap();
    let waiting =
        || -> i64 { bus.query_row("SELECT letters FROM dead_letter_totals", [], |row| row.get(0)).unwrap() };
    let before = waiting();
    while waiting() == before && retry.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    kill(retry);
    (1..before).contains(&waiting())
}

#[test]
fn a_retry_killed_in_the_middle_loses_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    configure(folder, true, "");
    let file = recording(folder, 1, 4_000);
    feed(folder, &file);
    configure(folder, false, "");
    // The command is killed where no `up` runs.
    assert!((0..4).any(|_| {
        let mut retry = start_retry(folder);
        is_met_half_done(folder, &mut retry, |retry| {
            retry.kill().unwrap();
            retry.wait().unwrap();
        })
    }));
    // The process that does the work is killed while the command asks it.
    assert!((0..4).any(|_| {
        let up = Up::start(folder, &[]);
        let mut retry = start_retry(folder);
        is_met_half_done(folder, &mut retry, |retry| {
            drop(up);
            wait(retry);
        })
    }));
    ok(folder, &["dead-letters", "retry", "--all"]);
    drain(folder);
    assert_each_arrived_once(folder, &file);
    assert_eq!(letters(folder, "dead").len(), 0);
}

#[test]
fn what_fails_again_is_a_letter_again_and_what_is_dropped_stays_in_the_books() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    configure(folder, true, "");
    let file = recording(folder, 5, 10);
    feed(folder, &file);
    let (stdout, _) = ok(folder, &["dead-letters", "retry", "--stage", "bigquery", "--dry-run"]);
    assert_eq!(count(&stdout), 10, "{stdout}");
    ok(folder, &["dead-letters", "retry", "--device", "poison", "--since", "1h"]);
    assert_eq!(letters(folder, "retried").len(), 10);
    drain(folder);
    let again = letters(folder, "dead");
    assert_eq!(again.len(), 10);
    assert!(again.iter().all(|letter| letter["retries"] == 1 && letter["attempts"] == 1), "{again:?}");
    assert!(again.iter().all(|letter| letter["payload"].as_str().unwrap().contains("\"poison\"")));
    let id = again[0]["id"].as_str().unwrap();
    ok(folder, &["dead-letters", "drop", id, "--why", "sensor was replaced"]);
    let (page, _) = ok(folder, &["dead-letters", "show", id]);
    assert!(page.contains("dropped by") && page.contains("sensor was replaced"), "{page}");
    let (report, code) = books(folder);
    assert_eq!((&report["balanced"], code), (&serde_json::json!(true), Some(0)), "{report:#}");
    assert_eq!(report["dead_letters"][0]["count"], 10);
    assert_eq!(report["dead_letters"][0]["dropped"], 1);
    assert_eq!(count(&ok(folder, &["dead-letters", "drop", "--all", "--why", "test"]).0), 9);
    assert_eq!(count(&ok(folder, &["dead-letters", "retry", "--all"]).0), 0, "a dropped letter is gone");
    drain(folder);
    assert_eq!(warehouse_payloads(folder).len(), 5);
    assert_eq!(books(folder).1, Some(0));
}

/// Routes that take nothing of the recording, or its `filter`; with or without trust in the devices' numbers.
fn configure_routes(folder: &Path, filter: &str, more: &str) {
    let routes =
        format!("ingestion:\n  routes:\n    - {{name: only, filter: \"{filter}\", topic: raw}}\n{more}");
    configure(folder, false, &routes);
}

#[test]
fn what_no_route_took_goes_through_the_mended_routes_once_whoever_retries_it_and_however_often_it_is_killed()
{
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    configure_routes(folder, "elsewhere/#", "");
    let file = recording(folder, 400, 800);
    feed(folder, &file);
    let before = letters(folder, "dead");
    assert_eq!(before.len(), 1_200);
    let output = run(folder, &["dead-letters", "retry", "--all"]);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stdout}\n{stderr}");
    assert!(stderr.contains("no route takes the MQTT topic"), "{stderr}");
    let again = letters(folder, "dead");
    assert!(again.iter().all(|letter| letter["retries"] == 1 && letter["reason"] == "no-route"), "{again:?}");
    let original = |letters: &[serde_json::Value]| {
        letters
            .iter()
            .map(|letter| (letter["id"].clone(), letter["payload"].clone(), letter["attributes"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(original(&again), original(&before));

    configure_routes(folder, "#", "");
    for millis in [2, 12, 30] {
        let up = Up::start(folder, &[]);
        let mut retry = start_retry(folder);
        std::thread::sleep(Duration::from_millis(millis));
        drop(up);
        wait(&mut retry);
    }
    for millis in [5, 20] {
        let mut retry = start_retry(folder);
        std::thread::sleep(Duration::from_millis(millis));
        retry.kill().unwrap();
        retry.wait().unwrap();
    }
    let left = letters(folder, "dead").len() as u64;
    let up = Up::start(folder, &[]);
    let outputs = [(); 2].map(|()| start_retry(folder)).map(|child| child.wait_with_output().unwrap());
    let done = outputs.map(|output| {
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
        count(&stdout)
    });
    assert_eq!(done.iter().sum::<u64>(), left, "{done:?}");
    let (status, stderr) = up.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    drain(folder);
    assert_each_arrived_once(folder, &file);
    assert_eq!((letters(folder, "dead").len(), letters(folder, "retried").len()), (0, 1_200));
    let mut statement = warehouse(folder);
    let rows = statement.transaction().unwrap();
    for letter in &before {
        let id = letter["id"].as_str().unwrap();
        let row: Vec<u8> = rows
            .query_row("SELECT CAST(payload AS BLOB) FROM messages WHERE message_id = ?1", [id], |row| {
                row.get(0)
            })
            .unwrap();
        assert_eq!(row, letter["payload"].as_str().unwrap().as_bytes());
    }
}

#[test]
fn a_letter_of_ingestion_that_a_rule_ends_at_its_retry_is_a_skip_in_the_books() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    configure_routes(folder, "elsewhere/#", "");
    feed(folder, &recording(folder, 1, 3));
    configure_routes(folder, "#", "  min_payload: 33B\n");
    // The good line is a byte too short, and three of poison are not.
    let (stdout, _) = ok(folder, &["dead-letters", "retry", "--stage", "ingestion"]);
    assert_eq!(count(&stdout), 4);
    drain(folder);
    let stored = warehouse_payloads(folder).len();
    let (report, code) = books(folder);
    assert_eq!((&report["balanced"], code), (&serde_json::json!(true), Some(0)), "{report:#}");
    assert_eq!(report["stages"][0]["skipped"].as_u64().unwrap(), 4 - stored as u64, "{report:#}");
    assert_eq!((stored, letters(folder, "dead").len()), (3, 0));
}

#[test]
fn many_letters_are_touched_only_when_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    configure(folder, true, "");
    feed(folder, &recording(folder, 1, 3));
    let refused = |arguments: &[&str], code: i32, words: &str| {
        let output = run(folder, arguments);
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {stderr}");
        assert!(stderr.contains(words), "{arguments:?}: no {words:?} in {stderr}");
    };
    refused(&["dead-letters", "retry"], 2, "--all");
    refused(&["dead-letters", "drop", "--all"], 2, "--why");
    refused(&["dead-letters", "drop", "--all", "--why", " "], 2, "--why");
    refused(&["dead-letters", "retry", "nonsense"], 2, "no message id");
    refused(&["dead-letters", "retry", "--since", "yesterday"], 2, "2h");
    let unknown = "01a1fcb3-0833-7702-92ff-493c8485d8bc";
    refused(&["dead-letters", "retry", unknown], 1, "no such dead letter");
    assert_eq!(letters(folder, "dead").len(), 3);
}

#[test]
fn a_payload_is_printed_as_it_came_also_to_a_reader_that_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    configure(folder, true, "");
    feed(folder, &recording(folder, 1, 1));
    let letter = letters(folder, "dead").remove(0);
    let id = letter["id"].as_str().unwrap();
    let (payload, _) = ok(folder, &["dead-letters", "show", id, "--payload"]);
    assert_eq!(payload, "{\"device_id\":\"poison\",\"number\":0}");
    let (page, _) = ok(folder, &["dead-letters", "show", id]);
    for part in ["bigquery", "poison", "value", "given up", "attribute", "\"number\":0"] {
        assert!(page.contains(part), "no {part:?} in\n{page}");
    }
    let mut child = millstream(folder)
        .args(["dead-letters", "show", id, "--payload"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(wait(&mut child).code(), Some(0));
}

#[test]
fn poison_at_a_hundred_times_the_rate_holds_no_good_message_back_and_fills_neither_log_nor_memory() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    configure(folder, true, "");
    let file = recording(folder, 100, 10_000);
    let up = Up::start(folder, &[]);
    let broker = format!("mqtt://127.0.0.1:{}", up.mqtt);
    ok(folder, &["feed", "--broker", &broker, file.to_str().unwrap()]);
    let begun = Instant::now();
    while warehouse_payloads(folder).len() < 100 {
        assert!(begun.elapsed() < PATIENCE, "good messages do not arrive");
        std::thread::sleep(Duration::from_millis(20));
    }
    let peak = up.peak_memory();
    assert!(peak < 512 << 20, "{peak} bytes");
    let (status, stderr) = up.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    drain(folder);
    let dead = letters(folder, "dead");
    assert_eq!(dead.len(), 10_000);
    let bad = lines_of(&[file]).into_iter().filter(|line| line.windows(6).any(|part| part == b"poison"));
    let kept = dead.iter().map(|letter| letter["payload"].as_str().unwrap().as_bytes().to_vec());
    assert_eq!(bag(kept), bag(bad));
    let said = stderr.lines().filter(|line| line.contains("dead letters")).count();
    assert!((1..=20).contains(&said), "{said} log lines:\n{stderr}");
    assert_eq!(books(folder).1, Some(0));
}

#[test]
fn full_dead_letters_stop_the_stage_which_says_so_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    configure(folder, true, "bus:\n  dead_letters: {max_count: 10}\n");
    let file = recording(folder, 10, 3_000);
    let up = Up::start(folder, &[]);
    let broker = format!("mqtt://127.0.0.1:{}", up.mqtt);
    ok(folder, &["feed", "--broker", &broker, file.to_str().unwrap()]);
    let begun = Instant::now();
    let (mut dropped, mut seen_full) = (0, false);
    while dropped < 3_000 {
        assert!(begun.elapsed() < PATIENCE, "{dropped} dropped");
        let (status, body) = get(up.http, "/readyz");
        if status == 503 && body.contains("dead letters are full") {
            seen_full = true;
        }
        if seen_full {
            dropped += count(&ok(folder, &["dead-letters", "drop", "--all", "--why", "full"]).0);
        }
    }
    assert!(seen_full);
    up.stop();
    drain(folder);
    let rows: i64 =
        warehouse(folder).query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap();
    assert_eq!((rows, letters(folder, "dropped").len()), (10, 3_000));
    assert_eq!(books(folder).1, Some(0));
}

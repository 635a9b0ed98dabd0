//! Stopping and killing the program in the middle of its work.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod common;

use common::{
    PATIENCE, Up, archive_payloads, bag, books, lines_of, millstream, run, small_recording, texts, wait,
    warehouse_payloads,
};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

const MESSAGES: usize = 30_000;

/// Starts a feed in a second process and waits until at least `enough` messages have their PUBACK.
fn feed_some(folder: &Path, file: &Path, port: u16, enough: usize) -> std::process::Child {
    let child = millstream(folder)
        .args([
            "feed",
            "--broker",
            &format!("mqtt://127.0.0.1:{port}"),
            "--acked",
            "acked.txt",
            "--rate",
            "20000/s",
        ])
        .arg(file)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while acked(folder).len() < enough {
        assert!(start.elapsed() < PATIENCE, "the feed did not get going");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    child
}

fn acked(folder: &Path) -> BTreeSet<usize> {
    let text = std::fs::read_to_string(folder.join("acked.txt")).unwrap_or_default();
    // The feed may be in the middle of a line.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

/// Every line with a PUBACK is in warehouse and archive exactly once, and nothing is there that was not sent.
fn assert_acknowledged_arrived_once(folder: &Path, file: &Path) {
    let arguments = ["up", "--until-drained", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let output = run(folder, &arguments);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    let lines = lines_of(&[file.to_path_buf()]);
    let (rows, archived) = (bag(warehouse_payloads(folder)), bag(archive_payloads(folder)));
    let acked = acked(folder);
    assert!(!acked.is_empty());
    for number in &acked {
        let line = &lines[number - 1];
        assert_eq!(rows.get(line), Some(&1), "line {number} in the warehouse");
        assert_eq!(archived.get(line), Some(&1), "line {number} in the archive");
    }
    assert_eq!(rows, archived);
    let sent: BTreeSet<_> = lines.into_iter().collect();
    assert!(rows.keys().all(|payload| sent.contains(payload)));
    let (report, code) = books(folder);
    assert_eq!((&report["balanced"], code), (&serde_json::json!(true), Some(0)), "{report:#}");
}

#[test]
fn sigterm_in_the_middle_of_a_feed_drains_and_loses_nothing_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "many.ndjson", MESSAGES, 11);
    let up = Up::start(folder.path(), &[]);
    let mut feed = feed_some(folder.path(), &file, up.mqtt, 500);
    let (status, stderr) = up.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    feed.kill().unwrap();
    wait(&mut feed);
    assert_acknowledged_arrived_once(folder.path(), &file);
}

#[test]
fn kill_in_the_middle_of_a_feed_loses_nothing_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "many.ndjson", MESSAGES, 11);
    for enough in [500, 1_000] {
        let _ = std::fs::remove_file(folder.path().join("acked.txt"));
        let up = Up::start(folder.path(), &[]);
        let mut feed = feed_some(folder.path(), &file, up.mqtt, enough);
        up.signal(rustix::process::Signal::KILL);
        up.end();
        feed.kill().unwrap();
        wait(&mut feed);
        assert_acknowledged_arrived_once(folder.path(), &file);
        std::fs::remove_dir_all(folder.path().join("data")).unwrap();
    }
}

#[test]
fn a_feed_that_loses_its_endpoint_goes_on_where_it_was_when_the_endpoint_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "many.ndjson", MESSAGES, 11);
    let up = Up::start(folder.path(), &[]);
    let port = up.mqtt;
    let mut feed = feed_some(folder.path(), &file, port, 500);
    up.signal(rustix::process::Signal::KILL);
    up.end();
    let again = millstream(folder.path())
        .args(["up", "--mqtt-listen", &format!("127.0.0.1:{port}"), "--http-listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut again = again.unwrap();
    assert_eq!(wait(&mut feed).code(), Some(0));
    again.kill().unwrap();
    wait(&mut again);
    assert_eq!(acked(folder.path()).len(), MESSAGES);
    // What the feed had to send again because its PUBACK never came may be there twice; nothing may be missing.
    let arguments = ["up", "--until-drained", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    assert_eq!(run(folder.path(), &arguments).status.code(), Some(0));
    let (rows, archived) = (bag(warehouse_payloads(folder.path())), bag(archive_payloads(folder.path())));
    assert_eq!(rows.len(), MESSAGES);
    assert_eq!(rows, archived);
    let doubles: usize = rows.values().map(|count| count - 1).sum();
    assert!(doubles <= 4 * 100, "at most one window per connection may be doubled, found {doubles}");
}

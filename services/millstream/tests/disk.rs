//! Disks that are full, read-only, slow or broken while the program runs: nothing acknowledged is lost, `/readyz` says
//! what is wrong, and work goes on by itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod common;
mod faults;
mod raw_mqtt;

use common::{Up, archive_payloads, bag, books, get, millstream, run, texts, until, warehouse_payloads};
use faults::Faults;
use raw_mqtt::{Published, Publisher};
use std::path::Path;

/// Small batches, so that every store is written all the time, and retries soon.
const CONFIG: &str = "icestore:\n  batch: {count: 100, age: 300ms}\n";

/// A running program on a faulty disk, with a device that publishes all the time.
struct Bench {
    folder: tempfile::TempDir,
    faults: Faults,
    up: Up,
    device: Publisher,
}

impl Bench {
    fn start(test: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("millstream.yaml"), CONFIG).unwrap();
        let faults = Faults::new(test, folder.path())?;
        let mut command = millstream(folder.path());
        faults.preload(&mut command);
        let up = Up::launch(command, &[]);
        let device = Publisher::start(up.mqtt, "steady", 20);
        device.wait_for(200);
        Some(Self { folder, faults, up, device })
    }

    /// Waits until `/readyz` refuses with all of `words`, and checks that the process calls itself alive.
    fn wait_for_reason(&self, words: &[&str]) {
        wait_for_reason(&self.up, words);
    }

    fn wait_until_ready(&self) {
        until("ready again", || get(self.up.http, "/readyz").0 == 200);
    }

    /// The fault is over: it goes on by itself, nothing acknowledged is missing, and the log was not flooded.
    fn goes_on(self) {
        self.faults.clear();
        self.wait_until_ready();
        self.device.wait_for(200);
        let published = self.device.finish();
        let (status, stderr) = self.up.stop();
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert!(stderr.lines().count() < 40, "a line per message or per try:\n{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert_eq!(published.disconnects, 0, "publishers wait, they are not thrown out");
        assert_eq!(published.refused.len(), 0, "{:?}", published.refused);
        arrived_once(self.folder.path(), &published);
    }
}

fn wait_for_reason(up: &Up, words: &[&str]) {
    let mut last = String::new();
    until(&format!("/readyz with {words:?}"), || {
        let (status, body) = get(up.http, "/readyz");
        last = body;
        status == 503 && words.iter().all(|word| last.contains(word))
    });
    assert_eq!(get(up.http, "/healthz").0, 200);
}

/// After a drain on a disk that works: what was acknowledged is in both sinks once, and the books balance.
fn arrived_once(folder: &Path, published: &Published) {
    let arguments = ["up", "--until-drained", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let output = run(folder, &arguments);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    let (rows, archived) = (bag(warehouse_payloads(folder)), bag(archive_payloads(folder)));
    assert!(!published.acked.is_empty());
    for payload in &published.acked {
        let count = rows.get(payload.as_bytes()).copied().unwrap_or(0);
        let most = if published.resent.contains(payload) { 2 } else { 1 };
        assert!((1..=most).contains(&count), "{payload} is in the warehouse {count} times");
    }
    assert_eq!(rows, archived);
    let (report, code) = books(folder);
    assert_eq!((&report["balanced"], code), (&serde_json::json!(true), Some(0)), "{report:#}");
}

#[test]
fn while_the_bus_has_no_room_publishers_wait_and_go_on_when_there_is_room() {
    let Some(bench) = Bench::start("disk") else { return };
    bench.faults.set("full bus.db");
    bench.wait_for_reason(&["ingestion", "bus.db", "full", "free space"]);
    bench.goes_on();
}

#[test]
fn while_the_warehouse_has_no_room_messages_are_taken_and_arrive_when_there_is_room() {
    let Some(bench) = Bench::start("disk") else { return };
    bench.faults.set("full warehouse.db");
    bench.wait_for_reason(&["bigquery", "warehouse.db", "full", "free space"]);
    bench.device.wait_for(200);
    bench.goes_on();
}

#[test]
fn while_the_archive_folder_has_no_room_messages_are_taken_and_arrive_when_there_is_room() {
    let Some(bench) = Bench::start("disk") else { return };
    bench.faults.set("full data/archive");
    bench.wait_for_reason(&["icestore", "archive-tmp", "free space"]);
    bench.device.wait_for(200);
    bench.goes_on();
}

#[test]
fn a_data_folder_that_becomes_read_only_is_named_with_the_remedy_and_work_goes_on_when_it_can() {
    let Some(bench) = Bench::start("disk") else { return };
    bench.faults.set("read-only data/");
    bench.wait_for_reason(&["ingestion", "bus.db", "read-only", "remount"]);
    bench.goes_on();
}

#[test]
fn syncs_that_fail_for_a_while_acknowledge_nothing_that_is_lost() {
    let Some(bench) = Bench::start("disk") else { return };
    bench.faults.set("broken data/");
    bench.wait_for_reason(&["ingestion", "bus.db", "I/O error"]);
    bench.goes_on();
}

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
use raw_mqtt::{Published, Publisher, Raw, connect};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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

#[test]
fn one_failed_sync_and_a_kill_right_after_it_leave_stores_that_open_and_balance() {
    for database in ["bus.db-wal", "warehouse.db-wal", "archive.db-wal"] {
        let Some(bench) = Bench::start("disk") else { return };
        // What SQLite wrote and did not get synced may be there after the kill or not; both must do.
        bench.faults.set(&format!("broken-once {database}"));
        until("the sync fails", || bench.faults.has_struck());
        bench.up.signal(rustix::process::Signal::KILL);
        let port = bench.up.mqtt;
        bench.up.end();
        let again = Up::launch_at(millstream(bench.folder.path()), port, &[]);
        let published = bench.device.finish();
        drop(again);
        arrived_once(bench.folder.path(), &published);
    }
}

#[test]
fn a_stop_on_a_full_disk_says_what_is_left_and_the_next_start_goes_on_with_it() {
    let Some(bench) = Bench::start("disk") else { return };
    bench.faults.set("full data/");
    bench.wait_for_reason(&["ingestion", "bigquery", "icestore", "free space"]);
    let Bench { folder, up, device, .. } = bench;
    let port = up.mqtt;
    let (status, stderr) = up.stop();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("millstream: ") && stderr.contains("free space"), "{stderr}");
    let again = Up::launch_at(millstream(folder.path()), port, &[]);
    let published = device.finish();
    assert_eq!(again.stop().0.code(), Some(0));
    arrived_once(folder.path(), &published);
}

#[test]
fn with_slow_syncs_publishers_are_slowed_and_not_refused_and_a_stop_loses_nothing() {
    let Some(bench) = Bench::start("disk") else { return };
    bench.faults.set("slow data/ 500");
    let flood = Publisher::start(bench.up.mqtt, "flood", 900);
    let mut quiet = Raw::open(bench.up.mqtt).unwrap();
    quiet.send(&connect(5, b"quiet", 10)).unwrap();
    assert_eq!(quiet.answer().unwrap().unwrap().first, 0x20);
    // A client with a keep-alive of ten seconds, in which no answer takes longer than that to wait for.
    for n in 0..6 {
        let payload = format!("{{\"device_id\":\"quiet\",\"n\":{n}}}");
        assert_eq!(quiet.publish(5, b"devices/quiet", payload.as_bytes()).unwrap(), Some(0));
    }
    bench.device.wait_for(60);
    flood.wait_for(900);
    assert_eq!(get(bench.up.http, "/readyz").0, 200);
    let metrics = get(bench.up.http, "/metrics").1;
    for line in metrics.lines().filter(|line| line.starts_with("millstream_bus_leases_expired_total{")) {
        assert!(line.ends_with(" 0"), "no lease runs out on a slow disk: {line}");
    }
    let peak = bench.up.peak_memory();
    assert!(peak < 300 << 20, "{peak} bytes resident");
    let Bench { folder, up, device, .. } = bench;
    // Still on the slow disk. What it could not finish in time it says, and nothing is lost.
    let port = up.mqtt;
    let (status, stderr) = up.stop();
    let cut_short = stderr.contains("comes again at the next start");
    assert_eq!(status.code(), Some(i32::from(cut_short)), "{stderr}");
    let again = Up::launch_at(millstream(folder.path()), port, &[]);
    let all = [device.finish(), flood.finish()];
    let (status, stderr) = again.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    for published in all {
        assert_eq!(published.refused.len(), 0, "{:?}", published.refused);
        arrived_once(folder.path(), &published);
    }
}

#[test]
fn a_start_on_a_read_only_or_full_disk_ends_with_the_reason_and_the_next_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let Some(faults) = Faults::new("disk", folder.path()) else { return };
    let start = || {
        let mut command = millstream(folder.path());
        faults.preload(&mut command);
        command.args([
            "up",
            "--until-drained",
            "--mqtt-listen",
            "127.0.0.1:0",
            "--http-listen",
            "127.0.0.1:0",
        ]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), texts(&output).1)
    };
    for (fault, words) in [
        ("read-only data", ["data", "read-only"]),
        ("full data", ["data", "free space"]),
        ("full bus.db", ["bus.db", "free space"]),
        ("full archive.db", ["archive.db", "free space"]),
        ("broken data", ["data", "disk"]),
    ] {
        for first_start in [true, false] {
            let _ = std::fs::remove_dir_all(folder.path().join("data"));
            if !first_start {
                faults.clear();
                assert_eq!(start().0, Some(0));
            }
            faults.set(fault);
            let (code, said) = start();
            if code == Some(0) {
                // Everything had its space already, and nothing came in.
                assert!(!first_start && fault.starts_with("full"), "{fault}: {said}");
            } else {
                assert_eq!(code, Some(1), "{fault}: {said}");
                assert!(
                    words.iter().all(|word| said.contains(word)),
                    "{fault}, first start {first_start}: {said}"
                );
            }
            faults.clear();
            let (code, said) = start();
            assert_eq!(code, Some(0), "after {fault}: {said}");
        }
    }
}

/// A small file system of its own, unmounted when dropped.
struct Volume(PathBuf);

impl Volume {
    fn mount(path: PathBuf, size: &str) -> Option<Self> {
        std::fs::create_dir_all(&path).unwrap();
        let mount = common::tool("disk", "mount")?;
        let output = Command::new(mount)
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&path)
            .output()
            .unwrap();
        if output.status.success() {
            return Some(Self(path));
        }
        // Needs root; the same is tested through the shim.
        let why = String::from_utf8_lossy(&output.stderr);
        testkit::servers::say_left_out(
            "disk",
            &format!("no volume of its own can be mounted: {}", why.trim()),
        );
        None
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_volume_that_really_is_full_stops_everything_for_the_moment_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("millstream.yaml"), CONFIG).unwrap();
    let data = folder.path().join("data");
    // Room for what a fast machine publishes meanwhile, and the ballast fills the rest.
    let Some(volume) = Volume::mount(data.clone(), "192m") else { return };
    let up = Up::start(folder.path(), &[]);
    let device = Publisher::start(up.mqtt, "steady", 20);
    device.wait_for(200);
    let ballast = data.join(".ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write_all(&[0; 4_096]).is_ok() {}
    wait_for_reason(&up, &["ingestion", "bus.db", "free space"]);
    // A crash on the full disk, and a start on it, harm nothing either.
    let port = up.mqtt;
    up.signal(rustix::process::Signal::KILL);
    up.end();
    let arguments = ["up", "--until-drained", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let output = run(folder.path(), &arguments);
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("free space"), "{stderr}");
    drop(file);
    std::fs::remove_file(ballast).unwrap();
    let up = Up::launch_at(millstream(folder.path()), port, &[]);
    device.wait_for(200);
    let published = device.finish();
    let (status, stderr) = up.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    arrived_once(folder.path(), &published);
    drop(volume);
}

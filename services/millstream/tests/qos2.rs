//! QoS 2 over kill -9: an independent client with a session that is kept, and no message lost or doubled.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "helpers of tests are tests")]

mod common;

use common::{
    Up, archive_payloads, bag, books, lines_of, millstream, run, small_recording, texts, wait,
    warehouse_payloads,
};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const MESSAGES: usize = 2_000;
const KILLS: usize = 5;
/// Messages that are completed between two kills, at least.
const BETWEEN_KILLS: usize = 200;

/// The Python that has paho-mqtt, or a loud line.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("MILLSTREAM_TEST_PYTHON").map(PathBuf::from);
    if python.is_none() {
        let is_required = std::env::var_os("MILLSTREAM_REQUIRE_SERVERS").is_some();
        assert!(!is_required, "MILLSTREAM_TEST_PYTHON is required");
        let reason = "MILLSTREAM_TEST_PYTHON names no Python with paho-mqtt; tests/run sets it";
        testkit::servers::say_left_out("paho", reason);
    }
    python
}

/// paho, publishing the lines of `file` at QoS 2.
struct Client {
    child: Child,
    progress: BufReader<ChildStdout>,
}

impl Client {
    fn start(python: &Path, version: &str, port: u16, file: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/clients/paho_publish.py");
        let mut child = Command::new(python)
            .args([script, &port.to_string(), "devices/dev-000/up", version, "2", "session"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&std::fs::read(file).unwrap()).unwrap();
        let progress = BufReader::new(child.stdout.take().unwrap());
        Self { child, progress }
    }

    /// Waits until `count` messages are completed.
    fn wait_for(&mut self, count: usize) {
        let mut line = String::new();
        while line.trim().parse::<usize>().unwrap_or(0) < count {
            line.clear();
            assert_ne!(
                self.progress.read_line(&mut line).unwrap(),
                0,
                "the client ended before {count} messages"
            );
        }
    }
}

fn nothing_is_lost_or_doubled(version: &str) {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "many.ndjson", MESSAGES, 11);
    let mut up = Up::start(folder.path(), &[]);
    let port = up.mqtt;
    let mut client = Client::start(&python, version, port, &file);
    for kill in 1..=KILLS {
        client.wait_for(kill * BETWEEN_KILLS);
        up.signal(rustix::process::Signal::KILL);
        up.end();
        up = Up::launch_at(millstream(folder.path()), port, &[]);
    }
    client.wait_for(MESSAGES);
    assert_eq!(wait(&mut client.child).code(), Some(0));
    let (status, said) = up.stop();
    assert_eq!(status.code(), Some(0), "{said}");
    let drain = ["up", "--until-drained", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let output = run(folder.path(), &drain);
    assert_eq!(output.status.code(), Some(0), "{:?}", texts(&output));
    let sent = bag(lines_of(&[file]));
    assert_eq!(sent.len(), MESSAGES);
    assert_eq!(bag(warehouse_payloads(folder.path())), sent, "every message in the warehouse once");
    assert_eq!(bag(archive_payloads(folder.path())), sent, "every message in the archive once");
    let (report, code) = books(folder.path());
    assert_eq!((&report["balanced"], code), (&serde_json::json!(true), Some(0)), "{report:#}");
    let bus = rusqlite::Connection::open(folder.path().join("data/bus.db")).unwrap();
    let held: i64 = bus.query_row("SELECT count(*) FROM mqtt_held", [], |row| row.get(0)).unwrap();
    assert_eq!(held, 0, "every packet identifier was released");
}

#[test]
fn kill_in_the_middle_of_qos_2_loses_and_doubles_nothing_with_mqtt_3_1_1() {
    nothing_is_lost_or_doubled("3.1.1");
}

#[test]
fn kill_in_the_middle_of_qos_2_loses_and_doubles_nothing_with_mqtt_5() {
    nothing_is_lost_or_doubled("5");
}

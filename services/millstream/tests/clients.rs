//! Other people's MQTT clients, and a broker between.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod common;

use common::{
    PATIENCE, Up, archive_payloads, bag, get, lines_of, millstream, run, small_recording, texts, tool, wait,
    warehouse_payloads,
};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const UNTIL_DRAINED: [&str; 6] =
    ["up", "--until-drained", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];

/// Runs a client that reads lines from standard input; answers what it printed.
fn pipe(command: &mut Command, input: &Path) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&std::fs::read(input).unwrap()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?} ended with {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn assert_arrived(folder: &Path, sent: &[PathBuf]) {
    let output = run(folder, &UNTIL_DRAINED);
    assert_eq!(output.status.code(), Some(0), "{:?}", texts(&output));
    let sent = bag(lines_of(sent));
    assert_eq!(bag(warehouse_payloads(folder)), sent);
    assert_eq!(bag(archive_payloads(folder)), sent);
}

#[test]
fn mosquitto_pub_in_both_versions_is_acknowledged_and_stored() {
    let Some(mosquitto_pub) = tool("mosquitto_pub", "mosquitto_pub") else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 300, 1);
    let up = Up::start(folder.path(), &[]);
    let mut sent = Vec::new();
    for (version, qos) in [("mqttv311", "1"), ("mqttv5", "1"), ("mqttv311", "2"), ("mqttv5", "2")] {
        let mut command = Command::new(&mosquitto_pub);
        command.args(["-h", "127.0.0.1", "-p", &up.mqtt.to_string(), "-q", qos, "-V", version]);
        command.args(["-t", "devices/dev-000/up", "-l"]);
        pipe(&mut command, &file);
        sent.push(file.clone());
    }
    assert_eq!(up.stop().0.code(), Some(0));
    assert_arrived(folder.path(), &sent);
}

#[test]
fn paho_in_both_versions_is_acknowledged_and_stored() {
    let Some(python) = std::env::var_os("MILLSTREAM_TEST_PYTHON") else {
        assert!(
            std::env::var_os("MILLSTREAM_REQUIRE_SERVERS").is_none(),
            "MILLSTREAM_TEST_PYTHON is required"
        );
        testkit::servers::say_left_out(
            "paho",
            "MILLSTREAM_TEST_PYTHON names no Python with paho-mqtt; tests/run sets it",
        );
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/clients/paho_publish.py");
    let folder = tempfile::tempdir().unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 300, 1);
    let up = Up::start(folder.path(), &[]);
    let mut sent = Vec::new();
    for (version, qos) in [("3.1.1", "1"), ("5", "1"), ("3.1.1", "2"), ("5", "2")] {
        let mut command = Command::new(&python);
        command.args([script, &up.mqtt.to_string(), "devices/dev-000/up", version, qos]);
        assert_eq!(pipe(&mut command, &file).trim(), "300");
        sent.push(file.clone());
    }
    assert_eq!(up.stop().0.code(), Some(0));
    assert_arrived(folder.path(), &sent);
}

#[test]
fn a_recording_through_mosquitto_into_up_as_its_client_arrives_once() {
    let Some(mosquitto) = tool("mosquitto", "mosquitto") else { return };
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let configuration = format!("listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n");
    std::fs::write(folder.path().join("mosquitto.conf"), configuration).unwrap();
    let mut broker = Command::new(mosquitto)
        .args(["-c", "mosquitto.conf"])
        .current_dir(folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let settings = format!(
        "ingestion:\n  broker:\n    url: mqtt://127.0.0.1:{port}\n    client_id: millstream-test\n    \
         allow_anonymous: true\n    topics:\n      - filter: devices/#\n"
    );
    std::fs::write(folder.path().join("millstream.yaml"), settings).unwrap();
    let file = small_recording(folder.path(), "small.ndjson", 2_000, 7);
    let up = Up::start(folder.path(), &[]);
    let start = Instant::now();
    while get(up.http, "/readyz").0 != 200 {
        assert!(start.elapsed() < PATIENCE, "{:?}", get(up.http, "/readyz"));
    }
    let url = format!("mqtt://127.0.0.1:{port}");
    let mut feed = millstream(folder.path())
        .args(["feed", "--broker", &url, file.to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(wait(&mut feed).code(), Some(0));
    // mosquitto has acknowledged all; Millstream may still be taking them.
    let start = Instant::now();
    while rows(folder.path()) < 2_000 {
        assert!(start.elapsed() < PATIENCE, "{} rows", rows(folder.path()));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(up.stop().0.code(), Some(0));
    broker.kill().unwrap();
    broker.wait().unwrap();
    std::fs::remove_file(folder.path().join("millstream.yaml")).unwrap();
    assert_arrived(folder.path(), &[file]);
}

fn rows(folder: &Path) -> i64 {
    common::warehouse(folder).query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap_or(0)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

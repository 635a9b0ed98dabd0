//! `millstream dead-letters` on Pub/Sub: a queue of work.

use crate::common::texts;
use crate::installation::Installation;
use messagepipeline::{Attributes, Enrichment, IdGenerator, Message, Timestamp, names};
use serde_json::Value;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use testkit::rig::RigOptions;

const DEVICES: &str = "device_id,client_id,location_id,category\nd1,acme,harbour,climate\n";
/// Bytes of a message that Pub/Sub takes, but not with a further attribute.
const LARGE: usize = 9_999_900;

/// A letter of enrichment whose device was unknown and is registered now, one of bigquery that icestore gave up too, one that
/// nobody wants, one of which a part is missing, and one of a message that somebody published by hand and that fits nowhere else.
#[test]
fn dead_letters_on_pubsub_are_listed_retried_and_dropped_and_the_books_know() {
    let test = "dead_letters_on_pubsub_are_listed_retried_and_dropped_and_the_books_know";
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    installation.import_devices(DEVICES);
    let ids = IdGenerator::default();
    let message = |device: &str| {
        let mut message =
            Message::new(ids.next_id(), r#"{"value":1}"#, Timestamp::from_micros(1_780_000_000_000_000));
        message.attributes = Attributes::from_iter([(names::DEVICE_ID, device)]);
        message
    };
    let (unknown, mut refused, unwanted) = (message("d1"), message("d1"), message("d2"));
    refused.enrichment = Enrichment::from_text(r#"{"location_id":"harbour"}"#).unwrap();
    let put = |message: &Message, stage: &str, reason: &str| {
        let (id, time) = (message.id.to_string(), message.publish_time.to_string());
        let mut attributes = vec![
            ("millstream_record", "letter"),
            ("millstream_stage", stage),
            ("millstream_reason", reason),
            ("millstream_attempts", "5"),
            ("millstream_id", &id),
            ("millstream_time", &time),
            (names::DEVICE_ID, message.device_id().unwrap()),
        ];
        attributes.extend(message.enrichment.text().map(|text| ("millstream_enrichment", text)));
        installation.rig.bus().publish("dead-letters", &[(&message.payload[..], &attributes)]);
    };
    put(&unknown, "enrichment", "unknown-device");
    put(&refused, "bigquery", "refused");
    put(&refused, "icestore", "refused");
    put(&unwanted, "enrichment", "unknown-device");
    let configuration = installation.rig.write_configuration().unwrap();
    let environment = installation.environment.clone();
    let bus = installation.rig.bus();
    let run = |arguments: &[&str]| {
        // The emulator goes on delivering to a command that has ended.
        bus.end_streams("books");
        let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.arg("--config").arg(&configuration).args(arguments);
        let output = command.envs(environment.iter().map(|(name, value)| (name, value))).output().unwrap();
        let (stdout, stderr) = texts(&output);
        (output, stdout, stderr)
    };
    // Even so, a command may see nothing for a while of what the one before it gave back.
    let until = |arguments: &[&str], is_right: &dyn Fn(&str) -> bool| {
        let begun = Instant::now();
        loop {
            let (output, stdout, stderr) = run(arguments);
            if is_right(&stdout) {
                return (code(&output), stdout);
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{arguments:?}: {stdout}\n{stderr}");
        }
    };
    until(&["dead-letters", "list"], &|stdout| stdout.lines().count() == 4);
    let (_, stdout) =
        until(&["dead-letters", "list", "--stage", "enrichment", "--device", "d2", "--json"], &|stdout| {
            !stdout.is_empty()
        });
    let listed: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&listed["id"], &listed["state"]), (&unwanted.id.to_string().into(), &"dead".into()));
    until(&["dead-letters", "show", &unknown.id.to_string()], &|stdout| {
        stdout.contains("unknown-device") && stdout.contains(r#"{"value":1}"#)
    });
    let dropped = |stdout: &str| stdout == "1 dropped, 0 cannot be\n";
    let (code_of_drop, _) =
        until(&["dead-letters", "drop", "--device", "d2", "--why", "a test device"], &dropped);
    assert_eq!(code_of_drop, Some(0));
    until(&["dead-letters", "drop", "--stage", "icestore", "--all", "--why", "not archived"], &dropped);
    until(&["dead-letters", "retry", "--all", "--dry-run"], &|stdout| {
        stdout == "2 dead letters would be retried\n"
    });
    let (code_of_retry, _) =
        until(&["dead-letters", "retry", "--all"], &|stdout| stdout == "2 retried, 0 cannot be\n");
    assert_eq!(code_of_retry, Some(0));
    let (output, _, stderr) = run(&["dead-letters", "retry", &unknown.id.to_string()]);
    assert_eq!(code(&output), Some(1), "it is gone: {stderr}");
    let torn = ids.next_id().to_string();
    let part = [
        ("millstream_record", "letter"),
        ("millstream_stage", "enrichment"),
        ("millstream_reason", "torn"),
        ("millstream_id", &torn),
        ("millstream_time", "2026-01-01T00:00:00Z"),
        ("millstream_part", "1/2"),
    ];
    bus.publish("dead-letters", &[(b"half", &part)]);
    let (code_of_refusal, _) =
        until(&["dead-letters", "drop", &torn, "--why", "its stage is gone"], &|stdout| {
            stdout == "0 dropped, 1 cannot be\n"
        });
    assert_eq!(code_of_refusal, Some(1));
    until(&["dead-letters", "drop", &torn, "--torn", "--why", "its stage is gone"], &dropped);
    until(&["dead-letters", "list", "--state", "dropped"], &|stdout| {
        stdout.lines().count() == 3 && stdout.contains(&unwanted.id.to_string())
    });
    let large: Vec<u8> = (0..LARGE).map(|n| (n * n / 7) as u8).collect();
    bus.publish("raw", &[(&large, &[])]);
    for service in ["enrichment", "bigquery", "icestore"] {
        installation.start(service, 0);
    }
    let count = "SELECT COUNT(DISTINCT message_id) AS n FROM `millstream.messages`";
    let rows = || {
        installation
            .rig
            .bigquery
            .try_query(count)
            .ok()
            .and_then(|rows| rows.first().map(|row| row["n"].clone()))
    };
    let begun = Instant::now();
    while rows() != Some("2".into()) || installation.lines().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(90), "{:?} rows, {:?}", rows(), installation.lines());
        std::thread::sleep(Duration::from_millis(500));
    }
    let lines: Vec<_> = installation.lines().iter().map(|line| line.id).collect();
    assert_eq!(lines, [unknown.id], "what bigquery gave up is for bigquery alone");
    // Its two parts take their time, and whoever looks between them sees no letter yet.
    let listed = loop {
        let (_, stdout, stderr) =
            run(&["dead-letters", "list", "--reason", "too-large-for-pubsub", "--json"]);
        match serde_json::from_str::<Value>(&stdout) {
            Ok(listed) if listed["payload_bytes"] != 0 => break listed,
            _ => assert!(begun.elapsed() < Duration::from_secs(180), "{stdout}\n{stderr}"),
        }
    };
    assert_eq!((&listed["stage"], &listed["payload_bytes"]), (&"enrichment".into(), &LARGE.into()));
    let shown = loop {
        let (output, ..) = run(&["dead-letters", "show", "--payload", listed["id"].as_str().unwrap()]);
        if output.status.success() || begun.elapsed() > Duration::from_secs(240) {
            break output.stdout;
        }
    };
    assert!(shown == large, "{} bytes of {LARGE}", shown.len());
    let folder = installation.rig.folder().join("no-ledger");
    std::fs::create_dir_all(&folder).unwrap();
    let (enrichment, icestore) = ((Some("enrichment"), Some(1)), (Some("icestore"), Some(1)));
    until(&["books", "--json", "--pending-age", "0s", "--ledger", folder.to_str().unwrap()], &|stdout| {
        let Ok(report) = serde_json::from_str::<Value>(stdout) else { return false };
        let letters = report["dead_letters"].as_array().unwrap();
        let dropped: Vec<_> = letters
            .iter()
            .map(|line| (line["stage"].as_str(), line["dropped"].as_u64()))
            .filter(|(_, dropped)| *dropped > Some(0))
            .collect();
        report["balanced"] == true && dropped == [enrichment, enrichment, icestore]
    });
    installation.stop_all();
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

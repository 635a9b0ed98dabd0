//! What a new user does wrong with a service's configuration, and what the programs say: all of it at once, each with
//! its place and what would be right, before anything is opened.

use crate::service::{SERVICES, binary};
use std::path::Path;
use std::process::{Command, Output};

/// Runs a program without the environment of whoever runs the tests.
fn run(name: &str, folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = Command::new(binary(name));
    command
        .env_clear()
        .envs(environment.iter().copied())
        .current_dir(folder)
        .args(["--config", "cloud.yaml"]);
    let Output { status, stderr, .. } = command.args(arguments).output().unwrap();
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

fn refused(
    name: &str,
    folder: &Path,
    arguments: &[&str],
    environment: &[(&str, &str)],
    words: &[&str],
) -> String {
    let (code, said) = run(name, folder, arguments, environment);
    assert_eq!(code, Some(2), "{name}:\n{said}");
    for word in words {
        assert!(said.contains(word), "{name}: no {word:?} in\n{said}");
    }
    assert!(!said.contains("hidden") && !said.contains("panicked"), "{said}");
    said
}

const WRONG: &str = "\
google:
  project: My Project
  credentials: /nowhere/key.json
bus:
  kind: embedded
  pubsub:
    topics: {enriched: goog-x}
    subscriptions: {bigqery: rows}
    dead_letters: x
ingestion:
  broker:
    url: mqtt://u:hidden@host
    topics: [{filter: 'a/#/b'}]
    tls: {ca: /nowhere/ca.pem}
  routes:
    - {name: all, filter: 'x/#/y', topic: Ä}
enrichment:
  source: {kind: firestore, collection: a/b}
  redis: {url: 'redis://u:hidden@h', ca: /nowhere/redis.pem}
  keys: [device]
bigquery:
  kind: bigquery
  table: raw-messages
  google: {dataset: p.d, cluster_by: [nix]}
icestore:
  kind: cloud-storage
  google: {bucket: 'gs://Archive/x', timeout: 0s}
  batch: {age: 0s}
";

#[test]
fn check_of_each_program_names_all_mistakes_at_once_with_file_line_key_and_what_would_be_right() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cloud.yaml"), WRONG).unwrap();
    let shared = [
        "cloud.yaml:2:12: google.project: `My Project` is no project id",
        "cloud.yaml:3:16: google.credentials: /nowhere/key.json cannot be read",
        "cloud.yaml:5:9: bus.kind: is embedded",
        "cloud.yaml:7:24: bus.pubsub.topics.enriched: `goog-x`",
        "cloud.yaml:8:30: bus.pubsub.subscriptions.bigqery: no service `bigqery`",
        "cloud.yaml:9:19: bus.pubsub.dead_letters: `x`",
    ];
    let own: [&[&str]; 4] = [
        &[
            "cloud.yaml:12:10: ingestion.broker.url: carries credentials",
            "set `user` and `password` (or `password: {file: PATH}`) beside it",
            "cloud.yaml:13:23: ingestion.broker.topics[0].filter",
            "/nowhere/ca.pem",
            "cloud.yaml:16:27: ingestion.routes[0].filter",
            "cloud.yaml:16:43: ingestion.routes[0].topic: `Ä`",
        ],
        &[
            "cloud.yaml:18:41: enrichment.source.collection",
            "cloud.yaml:19:16: enrichment.redis.url: user and password do not belong in the URL",
            "/nowhere/redis.pem cannot be read",
            "cloud.yaml:20:10: enrichment.keys[0]",
        ],
        &[
            "cloud.yaml:23:10: bigquery.table",
            "cloud.yaml:24:21: bigquery.google.dataset: `p.d` names more",
            "bigquery.google.cluster_by[0]: `nix` is none of bigquery.columns",
        ],
        &[
            "cloud.yaml:27:20: icestore.google.bucket: `gs://Archive/x` is a URL",
            "icestore.google.timeout",
            "cloud.yaml:28:16: icestore.batch.age",
        ],
    ];
    for (name, own) in SERVICES.into_iter().zip(own) {
        refused(name, folder.path(), &["check"], &[], &shared);
        let said = refused(name, folder.path(), &["check"], &[], own);
        assert!(said.contains("mistakes in the configuration"), "{said}");
        refused(name, folder.path(), &[], &[], own);
    }
}

#[test]
fn a_value_of_the_wrong_type_hides_nothing_of_other_sections() {
    let folder = tempfile::tempdir().unwrap();
    let text = WRONG.replace("  kind: bigquery\n", "  kind: bigquery\n  max_in_flight: many\n");
    std::fs::write(folder.path().join("cloud.yaml"), text).unwrap();
    let words = ["cloud.yaml:23", "found the text \"many\"", "google.credentials", "bus.kind"];
    refused("bigquery", folder.path(), &["check"], &[], &words);
}

const RIGHT: &str = "\
google: {project: my-project}
http: {listen: '127.0.0.1:0'}
bus: {kind: pubsub}
ingestion:
  broker: {url: 'mqtts://broker.example', user: u, password: p}
enrichment:
  source: {kind: firestore}
bigquery:
  kind: bigquery
icestore:
  kind: cloud-storage
  google: {bucket: my-archive}
";

/// Where the section of each service begins.
const SECTIONS: [&str; 4] = ["ingestion:\n", "enrichment:\n", "bigquery:\n", "icestore:\n"];

#[test]
fn check_finds_credentials_and_emulators_of_the_environment_that_cannot_work() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cloud.yaml"), RIGHT).unwrap();
    let credentials = [("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")];
    for name in SERVICES {
        let (code, said) = run(name, folder.path(), &["check"], &[]);
        assert_eq!(code, Some(0), "{name}: {said}");
        let words = ["GOOGLE_APPLICATION_CREDENTIALS: /nowhere/key.json cannot be read"];
        refused(name, folder.path(), &["check"], &credentials, &words);
    }
    let half = [
        credentials[0],
        ("BIGQUERY_EMULATOR_HOST", "127.0.0.1:9050"),
        ("PUBSUB_EMULATOR_HOST", "nonsense:x"),
    ];
    let words = [
        "BIGQUERY_STORAGE_EMULATOR_HOST: is missing beside BIGQUERY_EMULATOR_HOST",
        "PUBSUB_EMULATOR_HOST: `http://nonsense:x` is no address",
    ];
    refused("bigquery", folder.path(), &["check"], &half, &words);
    let bare = [("PUBSUB_EMULATOR_HOST", "127.0.0.1")];
    let words = ["PUBSUB_EMULATOR_HOST: `http://127.0.0.1` is no address of an emulator: write HOST:PORT"];
    refused("ingestion", folder.path(), &["check"], &bare, &words);
    let emulated = [credentials[0], ("PUBSUB_EMULATOR_HOST", "127.0.0.1:8085")];
    let (code, said) = run("ingestion", folder.path(), &["check"], &emulated);
    assert_eq!(code, Some(0), "an emulator takes everybody: {said}");
}

#[test]
fn a_window_for_no_message_and_a_spool_smaller_than_one_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (section, service) in SECTIONS.into_iter().zip(SERVICES) {
        let text = RIGHT.replace(section, &format!("{section}  max_in_flight: 0\n"));
        std::fs::write(folder.path().join("cloud.yaml"), text).unwrap();
        let words = [format!("{service}.max_in_flight: "), "1 to 4294967295".to_owned()];
        refused(service, folder.path(), &["check"], &[], &words.each_ref().map(String::as_str));
    }
    let text = RIGHT.replace(SECTIONS[0], &format!("{}  spool: {{max_size: 1B}}\n", SECTIONS[0]));
    std::fs::write(folder.path().join("cloud.yaml"), text).unwrap();
    let words = ["ingestion.spool.max_size: holds not even one message of 6MiB"];
    refused("ingestion", folder.path(), &["check"], &[], &words);
}

#[test]
fn health_of_a_port_that_nobody_can_know_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cloud.yaml"), RIGHT).unwrap();
    let words = ["cloud.yaml:2:16: http.listen: is port 0", "set a port of its own"];
    refused("icestore", folder.path(), &["health"], &[], &words);
}

//! The starters of real servers and emulators keep what tests rely on: same port after a restart, nothing left behind,
//! and administration that does what it says.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failing test panics")]

use std::time::Duration;

use serde_json::json;
use testkit::servers::{
    BigQueryEmulator, FirestoreEmulator, Mosquitto, PubSubEmulator, Redis, Server, SubscriptionSettings,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn comes_back_on_its_port_after_a_kill(server: &mut Server) {
    let (port, first) = (server.port(), server.process_id());
    server.kill();
    assert_eq!(server.process_id(), None);
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "somebody still listens on {port}");
    server.restart();
    assert_eq!(server.port(), port);
    assert_ne!(server.process_id(), first);
}

#[test]
fn mosquitto_comes_back_on_its_port() {
    let Some(mut server) = Mosquitto::start("mosquitto_comes_back_on_its_port", &[]) else { return };
    comes_back_on_its_port_after_a_kill(&mut server);
}

#[test]
fn redis_answers_commands_and_is_empty_after_a_restart() {
    let Some(mut redis) = Redis::start("redis_answers_commands_and_is_empty_after_a_restart") else { return };
    assert_eq!(redis.command(&["SET", "key", "value"]).as_deref(), Some("OK"));
    assert_eq!(redis.command(&["MGET", "key", "other"]).as_deref(), Some("value\n"));
    assert_eq!(redis.command(&["DBSIZE"]).as_deref(), Some("1"));
    comes_back_on_its_port_after_a_kill(&mut redis);
    assert_eq!(redis.command(&["GET", "key"]), None);
}

#[test]
fn pubsub_delivers_what_was_published_to_each_project_alone() {
    let test = "pubsub_delivers_what_was_published_to_each_project_alone";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    project.create_topic("raw");
    project.create_subscription("enrichment", "raw", &SubscriptionSettings::default());
    let ids = project.publish("raw", &[(b"\x00one", &[("device_id", "d1")]), (b"two", &[])]);
    assert_eq!(ids.len(), 2);
    let mut messages = project.drain("enrichment", 2, PATIENCE);
    messages.sort_by(|one, other| one.data.cmp(&other.data));
    assert_eq!(messages[0].data, b"\x00one");
    assert_eq!(messages[0].attributes["device_id"], "d1");
    assert_eq!((messages[1].data.as_slice(), messages[1].attributes.len()), (b"two".as_slice(), 0));
    assert!(project.pull("enrichment", 10).is_empty());
    // Another project has topics of the same names and none of the messages.
    let other = emulator.new_project();
    other.create_topic("raw");
    other.create_subscription("enrichment", "raw", &SubscriptionSettings::default());
    assert!(other.pull("enrichment", 10).is_empty());
}

#[test]
fn pubsub_moves_to_the_dead_letters_what_was_given_back_five_times() {
    let test = "pubsub_moves_to_the_dead_letters_what_was_given_back_five_times";
    let Some(emulator) = PubSubEmulator::shared(test) else { return };
    let project = emulator.new_project();
    project.create_topic("raw");
    project.create_topic("dead-letters");
    let retry = Some((Duration::ZERO, Duration::from_millis(100)));
    let dead_letters = Some(("dead-letters".to_owned(), 5));
    let settings = SubscriptionSettings { retry, dead_letters, ..SubscriptionSettings::default() };
    project.create_subscription("enrichment", "raw", &settings);
    project.create_subscription("books", "dead-letters", &SubscriptionSettings::default());
    project.publish("raw", &[(b"poison", &[])]);
    let mut attempts = Vec::new();
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let messages = project.pull("enrichment", 10);
        attempts.extend(messages.iter().map(|message| message.delivery_attempt));
        project.give_back("enrichment", &messages);
        let letters = project.pull("books", 10);
        if let [letter] = letters.as_slice() {
            assert_eq!(letter.data, b"poison");
            assert_eq!(attempts, [1, 2, 3, 4, 5]);
            return;
        }
        assert!(std::time::Instant::now() < deadline, "no dead letter");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn firestore_holds_documents_until_they_are_deleted() {
    let Some(emulator) = FirestoreEmulator::shared("firestore_holds_documents_until_they_are_deleted") else {
        return;
    };
    let device =
        json!({"client_id": "acme", "floor": 3, "tags": ["a", null], "place": {"x": 1.5, "indoor": true}});
    emulator.put_document("firestore-test", "devices", "d1", &device);
    let document = emulator.document("firestore-test", "devices", "d1").expect("the document");
    assert_eq!(document["client_id"], json!({"stringValue": "acme"}));
    assert_eq!(document["floor"], json!({"integerValue": "3"}));
    assert_eq!(document["place"]["mapValue"]["fields"]["x"], json!({"doubleValue": 1.5}));
    assert_eq!(emulator.document("another-test", "devices", "d1"), None);
    emulator.delete_document("firestore-test", "devices", "d1");
    assert_eq!(emulator.document("firestore-test", "devices", "d1"), None);
    let many = (0..501).map(|at| (format!("d{at}"), json!({"at": at})));
    emulator.put_documents("firestore-test", "devices", many);
    assert!(emulator.document("firestore-test", "devices", "d500").is_some());
    emulator.clear("firestore-test");
    assert_eq!(emulator.document("firestore-test", "devices", "d500"), None);
}

#[test]
fn bigquery_answers_what_was_inserted() {
    let Some(emulator) = BigQueryEmulator::shared("bigquery_answers_what_was_inserted") else { return };
    emulator.create_dataset("telemetry");
    let fields = json!([
        {"name": "id", "type": "STRING", "mode": "REQUIRED"},
        {"name": "level", "type": "INTEGER"},
        {"name": "tags", "type": "STRING", "mode": "REPEATED"},
    ]);
    emulator.create_table("telemetry", "messages", &fields);
    assert!(emulator.table("telemetry", "messages").is_some());
    assert_eq!(emulator.table("telemetry", "nothing"), None);
    let rows = emulator
        .query("INSERT INTO `telemetry.messages` (`id`, `level`, `tags`) VALUES ('a', 7, ['x', 'y'])");
    assert!(rows.is_empty());
    let rows = emulator.query("SELECT `id`, `level`, `tags` FROM `telemetry.messages`");
    assert_eq!(rows, [json!({"id": "a", "level": "7", "tags": ["x", "y"]})]);
}

#[test]
fn a_server_ends_with_the_process_that_started_it_even_when_that_is_killed() {
    let test = "a_server_ends_with_the_process_that_started_it_even_when_that_is_killed";
    if std::env::var_os("SERVER_OF_A_KILLED_PROCESS").is_some() {
        let Some(redis) = Redis::start(test) else { return };
        let id = std::process::id().to_string();
        std::fs::write(std::env::var_os("SERVER_OF_A_KILLED_PROCESS").unwrap(), redis.port().to_string())
            .unwrap();
        std::process::Command::new("kill").args(["-s", "KILL", &id]).status().unwrap();
        unreachable!("this process was killed");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("port");
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test]).env("SERVER_OF_A_KILLED_PROCESS", &file);
    let ended = command.output().unwrap();
    let Ok(port) = std::fs::read_to_string(&file) else {
        assert!(ended.status.success(), "the process with the server failed before it had one: {ended:?}");
        return;
    };
    let port: u16 = port.parse().unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(std::time::Instant::now() < deadline, "the server outlived its process");
        std::thread::sleep(Duration::from_millis(10));
    }
}

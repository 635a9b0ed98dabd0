//! Feeding against a broker that does as it is told, against mosquitto, and with the real recordings.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a helper of a test fails the test; tests say what they leave out"
)]

mod feed_broker;

use feed_broker::{Broker, Conduct, Received};
use messagepipeline::Shutdown;
use millstream::feed::{self, Ended, FeedError, FeedOptions, FeedReport, Playlist, Progress, Protocol};
use millstream::pointer::Pointers;
use millstream::rate::{DEFAULT_TIME_POINTERS, Rate};
use millstream::template::DEFAULT_TOPIC;
use mqttconverter::tls::{ClientTls, Identity};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BOTH: [Protocol; 2] = [Protocol::V5, Protocol::V311];

fn playlist(files: Vec<PathBuf>) -> Playlist {
    let times = Pointers::parse(DEFAULT_TIME_POINTERS).unwrap();
    Playlist::new(files, DEFAULT_TOPIC.parse().unwrap(), Rate::Max, times).unwrap()
}

/// `lines` lines of `devices` devices in turn.
fn recording(folder: &Path, lines: usize, devices: usize) -> PathBuf {
    let mut text = String::new();
    for line in 0..lines {
        writeln!(text, r#"{{"device_id":"d{}","n":{line}}}"#, line % devices).unwrap();
    }
    let path = folder.join("recording.ndjson");
    std::fs::write(&path, text).unwrap();
    path
}

fn options(broker: &Broker, protocol: Protocol) -> FeedOptions {
    FeedOptions { protocol, ..FeedOptions::new(broker.url().parse().unwrap()) }
}

async fn play(options: FeedOptions, file: &Path) -> FeedReport {
    feed::run(options, playlist(vec![file.to_owned()]), Progress::default(), &Shutdown::new()).await
}

fn numbers(path: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is whole");
    let mut numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

/// The payloads of each topic, in order of arrival.
fn by_topic(received: &[Received]) -> BTreeMap<String, Vec<String>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for publish in received {
        out.entry(publish.topic.clone())
            .or_default()
            .push(String::from_utf8(publish.payload.to_vec()).unwrap());
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_is_published_once_and_each_devices_lines_in_order_on_one_connection() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 2_000, 7);
    for protocol in BOTH {
        let broker = Broker::start(protocol, Conduct::default()).await;
        let acked = folder.path().join("acked");
        let report =
            play(FeedOptions { acked: Some(acked.clone()), ..options(&broker, protocol) }, &file).await;
        assert!(report.is_success(), "{report:?}");
        assert_eq!((report.counts.sent, report.counts.acked, report.counts.resent), (2_000, 2_000, 0));
        assert_eq!(numbers(&acked), (1..=2_000).collect::<Vec<_>>());
        let received = broker.received();
        let mut client_of = HashMap::new();
        for publish in &received {
            let client = client_of.entry(publish.topic.clone()).or_insert_with(|| publish.client_id.clone());
            assert_eq!(client, &publish.client_id);
        }
        for (device, payloads) in by_topic(&received).values().enumerate() {
            let expected: Vec<_> = (device..2_000)
                .step_by(7)
                .map(|line| format!(r#"{{"device_id":"d{device}","n":{line}}}"#))
                .collect();
            assert_eq!(payloads, &expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_broken_connection_only_what_had_no_puback_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 500, 1);
    for (protocol, session_kept) in [(BOTH[0], true), (BOTH[1], true), (BOTH[0], false)] {
        // Each of the first connections ends with the fifteen newest publishes unanswered.
        let conduct =
            Conduct { break_after: vec![100, 60], unanswered: 15, session_kept, ..Conduct::default() };
        let broker = Broker::start(protocol, conduct).await;
        let acked = folder.path().join("acked");
        let window = 40;
        let options = FeedOptions { acked: Some(acked.clone()), window, ..options(&broker, protocol) };
        let report = play(options, &file).await;
        assert!(report.is_success(), "{report:?}");
        assert_eq!((report.counts.sent, report.counts.acked), (500, 500));
        assert!((30..=2 * u64::from(window)).contains(&report.counts.resent), "{report:?}");
        assert_eq!(numbers(&acked), (1..=500).collect::<Vec<_>>());

        let mut answered = std::collections::HashSet::new();
        let mut seen = std::collections::HashSet::new();
        for publish in broker.received() {
            assert!(!answered.contains(&publish.payload), "sent again after its PUBACK");
            let again = !seen.insert(publish.payload.clone());
            if again {
                assert_eq!(publish.dup, session_kept, "DUP where the session was kept");
            }
            if publish.answered {
                answered.insert(publish.payload);
            }
        }
        assert_eq!(answered.len(), 500);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_are_not_taken_are_named_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mixed.ndjson");
    let large = "x".repeat(3_000);
    let text = format!(
        "{{\"device_id\":\"a\"}}\n{{}}\n{{\"device_id\":\"secret\"}}\n{{\"device_id\":\"a\",\"x\":\"{large}\"}}\n{{\"device_id\":\"b\"}}\n"
    );
    std::fs::write(&file, text).unwrap();
    let conduct =
        Conduct { refuse_topics_with: Some("secret"), max_packet_size: Some(2_000), ..Conduct::default() };
    let broker = Broker::start(Protocol::V5, conduct).await;
    let report = play(options(&broker, Protocol::V5), &file).await;
    assert!(matches!(report.ended, Ended::Complete) && !report.is_success(), "{report:?}");
    assert_eq!((report.counts.acked, report.counts.refused, report.counts.skipped), (2, 2, 1));
    let mut problems: Vec<_> =
        report.problems.iter().map(|problem| (problem.number, &*problem.place)).collect();
    problems.sort_unstable();
    let name = file.display();
    assert_eq!(
        problems,
        [(2, &*format!("{name}:2")), (3, &*format!("{name}:3")), (4, &*format!("{name}:4"))]
    );
    let reason_of = |number| &report.problems.iter().find(|problem| problem.number == number).unwrap().reason;
    assert!(reason_of(2).contains("/device_id,/deviceId"));
    assert!(reason_of(3).contains("NotAuthorized"));
    assert!(reason_of(4).contains("2000"));
    assert!(!report.problems.iter().any(|problem| problem.reason.contains("xxx")), "no payload in a report");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_brokers_receive_maximum_is_kept_also_for_what_is_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 300, 2);
    let conduct =
        Conduct { receive_maximum: Some(5), break_after: vec![50], unanswered: 4, ..Conduct::default() };
    let broker = Broker::start(Protocol::V5, conduct).await;
    let report = play(options(&broker, Protocol::V5), &file).await;
    assert!(report.is_success(), "{report:?}");
    assert!(broker.most_unanswered() <= 5, "{}", broker.most_unanswered());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_lets_nobody_in_ends_the_feed_at_once_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 10, 2);
    for protocol in BOTH {
        let broker = Broker::start(protocol, Conduct { refuse_connect: true, ..Conduct::default() }).await;
        let report = play(options(&broker, protocol), &file).await;
        let Ended::Failed(error @ FeedError::Refused { .. }) = report.ended else { panic!("{report:?}") };
        assert!(error.to_string().contains("BadUserNamePassword"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_on_which_the_broker_hangs_up_each_time_is_named_instead_of_sent_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 3, 1);
    // MQTT 3.1.1 has no other way to refuse a message.
    let conduct = Conduct { break_after: vec![1; 10], unanswered: 1, ..Conduct::default() };
    let broker = Broker::start(Protocol::V311, conduct).await;
    let report =
        play(FeedOptions { patience: Duration::ZERO, ..options(&broker, Protocol::V311) }, &file).await;
    let Ended::Failed(error @ FeedError::Stuck { .. }) = report.ended else { panic!("{report:?}") };
    assert!(error.to_string().contains("recording.ndjson:1"), "{error}");
}

#[tokio::test]
async fn without_a_broker_the_error_says_where_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 10, 2);
    let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut options = FeedOptions::new(format!("mqtt://{unused}").parse().unwrap());
    options.patience = Duration::ZERO;
    let report = play(options, &file).await;
    let Ended::Failed(error @ FeedError::Unreachable { .. }) = report.ended else { panic!("{report:?}") };
    let text = error.to_string();
    assert!(text.contains(&unused.to_string()) && text.contains("millstream up"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_stops_the_feed_and_the_list_holds_what_had_its_puback_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 1_000, 1);
    // Answers 120 publishes and then no more, so the feed cannot come to its end.
    let broker = Broker::start(Protocol::V5, Conduct { answer_only: Some(120), ..Conduct::default() }).await;
    let acked = folder.path().join("acked");
    let options = FeedOptions { acked: Some(acked.clone()), ..options(&broker, Protocol::V5) };
    let (progress, shutdown) = (Progress::default(), Shutdown::new());
    let feeding = {
        let (progress, shutdown) = (progress.clone(), shutdown.clone());
        tokio::spawn(async move { feed::run(options, playlist(vec![file]), progress, &shutdown).await })
    };
    while progress.counts().acked < 120 || broker.received().len() < 220 {
        tokio::task::yield_now().await;
    }
    shutdown.abort();
    let report = feeding.await.unwrap();
    assert!(matches!(report.ended, Ended::Stopped) && !report.is_success(), "{report:?}");
    assert_eq!((report.counts.sent, report.counts.acked), (220, 120), "the window bounds what is on its way");
    assert_eq!(numbers(&acked), (1..=120).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_breaks_off_ends_the_feed_after_its_good_lines_were_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 100, 3);
    let mut text = std::fs::read(&file).unwrap();
    text.resize(text.len() + millstream::recording::DEFAULT_LINE_LIMIT + 10, b'x');
    std::fs::write(&file, text).unwrap();
    let broker = Broker::start(Protocol::V5, Conduct::default()).await;
    let report = play(options(&broker, Protocol::V5), &file).await;
    assert_eq!(report.counts.acked, 100);
    let Ended::Failed(error @ FeedError::Recording(_)) = report.ended else { panic!("{report:?}") };
    assert!(error.to_string().contains("recording.ndjson:101:"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_qos_0_all_lines_arrive_on_a_connection_that_holds() {
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 1_000, 3);
    let broker = Broker::start(Protocol::V311, Conduct::default()).await;
    let report = play(FeedOptions { qos: 0, ..options(&broker, Protocol::V311) }, &file).await;
    assert!(report.is_success(), "{report:?}");
    assert_eq!((report.counts.sent, report.counts.acked, broker.received().len()), (1_000, 0, 1_000));
}

#[allow(clippy::disallowed_methods, reason = "tests learn from the environment where the recordings are")]
fn recordings(test: &str) -> Vec<PathBuf> {
    let Ok(folder) = std::env::var("MILLSTREAM_RECORDINGS") else {
        testkit::servers::say_left_out(test, "MILLSTREAM_RECORDINGS names no folder with recordings");
        return Vec::new();
    };
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.to_string_lossy().ends_with(".ndjson.gz")).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} holds no *.ndjson.gz");
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_recordings_arrive_byte_for_byte() {
    let files = recordings("the_real_recordings_arrive_byte_for_byte");
    for file in files {
        let mut unpacked = Vec::new();
        let mut decoder = flate2::read::MultiGzDecoder::new(std::fs::File::open(&file).unwrap());
        std::io::Read::read_to_end(&mut decoder, &mut unpacked).unwrap();
        let broker = Broker::start(Protocol::V5, Conduct::default()).await;
        let report = play(options(&broker, Protocol::V5), &file).await;
        assert!(report.is_success(), "{report:?}");
        let mut expected: Vec<_> =
            unpacked.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        let received = broker.received();
        let mut payloads: Vec<_> = received.iter().map(|publish| &publish.payload[..]).collect();
        expected.sort_unstable();
        payloads.sort_unstable();
        assert!(payloads == expected, "{} payloads, {} lines", payloads.len(), expected.len());
        assert_eq!(report.counts.bytes, expected.iter().map(|line| line.len() as u64).sum::<u64>());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mosquitto_acknowledges_every_line_in_both_versions() {
    let Some(mosquitto) = feed_broker::Mosquitto::start(false).await else {
        let _: Option<()> =
            testkit::servers::left_out("mosquitto_acknowledges_every_line_in_both_versions", "mosquitto");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 5_000, 20);
    for protocol in BOTH {
        let mut options = FeedOptions::new(format!("mqtt://127.0.0.1:{}", mosquitto.port()).parse().unwrap());
        options.protocol = protocol;
        let report = play(options, &file).await;
        assert!(report.is_success(), "{report:?}");
        assert_eq!(report.counts.acked, 5_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_connection_presents_its_certificate_and_trusts_only_the_authority_it_was_given() {
    let Some(mosquitto) = feed_broker::Mosquitto::start(true).await else {
        let _: Option<()> =
            testkit::servers::left_out("an_encrypted_connection_presents_its_certificate", "mosquitto");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = recording(folder.path(), 100, 3);
    let identity = Identity { certificate: mosquitto.file("client.crt"), key: mosquitto.file("client.key") };
    let mut options = FeedOptions::new(format!("mqtts://localhost:{}", mosquitto.port()).parse().unwrap());
    options.tls = ClientTls { ca: Some(mosquitto.file("localhost.crt")), identity: Some(identity) };
    let report = play(options.clone(), &file).await;
    assert!(report.is_success(), "{report:?}");

    options.tls.ca = Some(mosquitto.file("client.crt"));
    let report = play(options.clone(), &file).await;
    let Ended::Failed(error @ FeedError::Handshake { .. }) = report.ended else { panic!("{report:?}") };
    assert!(error.to_string().contains("certificate"), "{error}");

    options.tls = ClientTls { ca: Some(mosquitto.file("localhost.crt")), identity: None };
    let report = play(options, &file).await;
    assert!(
        matches!(report.ended, Ended::Failed(FeedError::Handshake { .. })) && report.counts.acked == 0,
        "{report:?}"
    );
}

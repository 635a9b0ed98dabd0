//! Connections to Pub/Sub and BigQuery that are cut, reset, delayed and turned away, and answers that are lost.

use crate::common::{bag, lines_of, small_recording, until};
use crate::installation::Installation;
use crate::random::Random;
use crate::unavailable::Unavailable;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use testkit::proxy::Proxy;
use testkit::rig::RigOptions;

const MESSAGES: usize = 4_000;
const RATE: &str = "200/s";
const REPLICAS: usize = 2;

fn random(test: &str) -> Random {
    let seed = std::env::var("MILLSTREAM_CAMPAIGN_SEED")
        .map_or_else(|_| u64::from(std::process::id()), |value| value.parse().unwrap());
    eprintln!("{test}: MILLSTREAM_CAMPAIGN_SEED={seed}");
    Random::new(seed)
}

fn pause(random: &mut Random, longest: usize) {
    // The moment of a fault is the test's subject; nothing waits for it.
    std::thread::sleep(Duration::from_millis(random.below(longest) as u64));
}

/// Everything sent is in both sinks under one id each. Answers the books.
fn conclude(test: &str, installation: &mut Installation, file: &Path) -> Value {
    installation.wait_for(MESSAGES);
    eprintln!("{test}: {}", installation.redeliveries());
    installation.stop_all();
    let sent = bag(lines_of(&[file.to_owned()]));
    let (rows, lines) = (installation.row_payloads(), installation.line_payloads());
    assert!(rows.keys().eq(sent.keys()), "rows are not what was sent");
    assert!(lines.keys().eq(sent.keys()), "lines are not what was sent");
    let ids: BTreeSet<_> = installation.lines().into_iter().map(|line| line.id).collect();
    assert_eq!(ids.len(), MESSAGES, "what is published or delivered again keeps its id");
    let report = installation.books(REPLICAS);
    let copies = |place: &str| &report[place]["copies"];
    eprintln!("{test}: {} copies of rows, {} of lines", copies("warehouse"), copies("archive"));
    report
}

/// What happens to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Cut,
    Reset,
    Delay,
    TurnAway,
    /// The server takes what it is sent, and its answers are lost.
    LoseReplies,
}

impl Fault {
    /// Answers how many connections it met. With `waits` it goes on until it has met some traffic.
    fn strike(self, proxy: &Proxy, random: &mut Random, waits: bool) -> usize {
        match self {
            Self::Cut => proxy.cut(),
            Self::Reset => proxy.reset(),
            Self::Delay => {
                proxy.delay(Duration::from_millis(50 + random.below(250) as u64));
                pause(random, 2_000);
                proxy.delay(Duration::ZERO);
                proxy.cut()
            }
            Self::TurnAway => {
                let target = proxy.target();
                let met = proxy.turn_away();
                pause(random, 2_000);
                proxy.let_in(target);
                met
            }
            Self::LoseReplies => {
                let before = proxy.lost();
                proxy.lose_replies();
                if waits {
                    until("an answer is lost", || proxy.lost() > before);
                }
                pause(random, 1_000);
                proxy.reset()
            }
        }
    }
}

/// Publishers and consumers of all services, two replicas of each. A message whose publish was answered and whose answer
/// was lost is on its topic twice, under one id, and its copies may go to two replicas of a sink.
#[test]
fn connections_to_pubsub_that_break_and_answers_that_are_lost_lose_no_message() {
    let test = "connections_to_pubsub_that_break_and_answers_that_are_lost_lose_no_message";
    let mut random = random(test);
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", MESSAGES, 60);
    let proxy = installation.lead_through_proxy("PUBSUB_EMULATOR_HOST");
    installation.start_all(REPLICAS);
    let faults = [Fault::LoseReplies, Fault::Cut, Fault::TurnAway, Fault::Reset, Fault::Delay];
    let mut met = BTreeMap::new();
    installation.during_feed(&file, RATE, |installation, is_fed| {
        for round in 0.. {
            let is_first = round < faults.len();
            if !is_first && is_fed() {
                return;
            }
            let fault = faults[if is_first { round } else { random.below(faults.len()) }];
            *met.entry(fault).or_insert(0) += fault.strike(&proxy, &mut random, is_first);
            for service in ["enrichment", "bigquery", "icestore"] {
                installation.forget_reader(service);
            }
            pause(&mut random, 2_000);
        }
    });
    eprintln!("{test}: connections that were met: {met:?}, {} answers lost", proxy.lost());
    conclude(test, &mut installation, &file);
}

#[test]
fn bigquery_that_answers_errors_and_loses_replies_loses_no_row() {
    disturb_bigquery("bigquery_that_answers_errors_and_loses_replies_loses_no_row", "append");
}

/// The emulator merges no changes, so a row that came twice is there twice, as in the mode `append`.
#[test]
fn bigquery_that_answers_errors_and_loses_replies_loses_no_row_of_upserts() {
    disturb_bigquery("bigquery_that_answers_errors_and_loses_replies_loses_no_row_of_upserts", "upsert");
}

fn disturb_bigquery(test: &str, mode: &'static str) {
    let mut random = random(test);
    let Some(mut installation) = Installation::with_long_leases(test) else { return };
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", MESSAGES, 60);
    installation.settings.insert("bigquery", "  batch: {count: 100}\n".to_owned());
    installation.bigquery_mode = mode;
    let [rest, storage] = ["BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"]
        .map(|variable| installation.lead_through_proxy(variable));
    let unavailable = installation.block_on(Unavailable::start());
    installation.start_all(REPLICAS);
    let faults = [Fault::LoseReplies, Fault::Cut, Fault::Reset];
    let mut met = BTreeMap::new();
    installation.during_feed(&file, RATE, |_, is_fed| {
        answer_errors(&[&rest, &storage], &unavailable);
        for round in 0.. {
            let is_first = round < faults.len();
            if !is_first && is_fed() {
                return;
            }
            let fault = faults[if is_first { round } else { random.below(faults.len()) }];
            *met.entry(fault).or_insert(0) += fault.strike(&storage, &mut random, is_first);
            pause(&mut random, 2_000);
        }
    });
    eprintln!(
        "{test}: {} requests were answered with an error; connections that were met: {met:?}, {} answers lost",
        unavailable.answers(),
        storage.lost()
    );
    let report = conclude(test, &mut installation, &file);
    assert_eq!(report["archive"]["copies"], 0);
}

/// Everything is answered with an error, until some requests were.
fn answer_errors(proxies: &[&Proxy], unavailable: &Unavailable) {
    let targets: Vec<_> = proxies.iter().map(|proxy| proxy.target()).collect();
    for proxy in proxies {
        proxy.let_in(unavailable.address());
        proxy.cut();
    }
    until("some requests are answered with an error", || unavailable.answers() >= 5);
    for (proxy, target) in proxies.iter().zip(targets) {
        proxy.let_in(target);
        proxy.cut();
    }
}

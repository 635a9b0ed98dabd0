//! Connections to Pub/Sub and BigQuery that are cut, reset, delayed and turned away, and answers that are lost.

use crate::common::{bag, lines_of, small_recording};
use crate::installation::Installation;
use crate::random::Random;
use crate::unavailable::Unavailable;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;
use testkit::proxy::Proxy;
use testkit::rig::RigOptions;

const MESSAGES: usize = 6_000;
const RATE: &str = "400/s";
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
    let mut met = [0; 5];
    installation.during_feed(&file, RATE, |installation, is_fed| {
        while !is_fed() || met.contains(&0) {
            let kind = random.below(met.len());
            met[kind] += disturb(&proxy, kind, &mut random, &installation.rig.pubsub.address());
            for service in ["enrichment", "bigquery", "icestore"] {
                installation.forget_reader(service);
            }
            pause(&mut random, 2_000);
        }
    });
    eprintln!("{test}: connections that were cut, reset, delayed, turned away, lost answers: {met:?}");
    conclude(test, &mut installation, &file);
}

/// One fault of the given kind; answers how many connections it met.
fn disturb(proxy: &Proxy, kind: usize, random: &mut Random, target: &str) -> usize {
    match kind {
        0 => proxy.cut(),
        1 => proxy.reset(),
        2 => {
            proxy.delay(Duration::from_millis(50 + random.below(250) as u64));
            pause(random, 2_000);
            proxy.delay(Duration::ZERO);
            proxy.cut()
        }
        3 => {
            let met = proxy.turn_away();
            pause(random, 2_000);
            proxy.let_in(target);
            met
        }
        _ => {
            proxy.lose_replies();
            pause(random, 1_000);
            proxy.reset()
        }
    }
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
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", MESSAGES, 60);
    installation.settings.insert("bigquery", "  batch: {count: 200}\n".to_owned());
    installation.bigquery_mode = mode;
    let variables = ["BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"];
    let targets = variables.map(|variable| installation.address(variable));
    let [rest, storage] = variables.map(|variable| installation.lead_through_proxy(variable));
    let unavailable = installation.block_on(Unavailable::start());
    installation.start_all(REPLICAS);
    let mut met = [0; 4];
    installation.during_feed(&file, RATE, |_, is_fed| {
        while !is_fed() || met.contains(&0) {
            let kind = random.below(met.len());
            if kind == 3 {
                for proxy in [&rest, &storage] {
                    proxy.let_in(unavailable.address());
                    met[kind] += proxy.cut();
                }
                pause(&mut random, 3_000);
                rest.let_in(&*targets[0]);
                storage.let_in(&*targets[1]);
                (rest.cut(), storage.cut());
            } else {
                // Cut, reset, and what was taken and not answered.
                met[kind] += disturb(&storage, [0, 1, 4][kind], &mut random, &targets[1]);
            }
            pause(&mut random, 2_000);
        }
    });
    let answers = unavailable.answers();
    eprintln!(
        "{test}: connections that were cut, reset, lost answers, sent to who is unavailable: {met:?}; {answers} errors"
    );
    assert!(answers > 0, "nobody was told that BigQuery is unavailable");
    let report = conclude(test, &mut installation, &file);
    assert_eq!(report["archive"]["copies"], 0);
}

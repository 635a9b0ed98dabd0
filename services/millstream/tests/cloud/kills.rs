//! Services that are killed at any moment, with two replicas of each.

use crate::common::{bag, lines_of, small_recording};
use crate::installation::Installation;
use crate::random::Random;
use crate::service::{SERVICES, Service};
use std::time::Duration;
use testkit::rig::RigOptions;

const MESSAGES: usize = 12_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Every message that the broker took is in both sinks. What may be doubled: a message that ingestion had published and
/// not acknowledged to the broker is delivered by it again and is another message to us (at most a window of the
/// broker for each kill); and in the mode `append` a row whose service died before its ack.
#[test]
fn kills_of_every_service_with_two_replicas_each_lose_nothing() {
    let test = "kills_of_every_service_with_two_replicas_each_lose_nothing";
    let rounds = setting("MILLSTREAM_CLOUD_KILLS", 8);
    let seed = setting("MILLSTREAM_CAMPAIGN_SEED", u64::from(std::process::id()));
    eprintln!("{test}: {rounds} rounds, MILLSTREAM_CAMPAIGN_SEED={seed}");
    let mut random = Random::new(seed);
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    let file = small_recording(installation.rig.folder(), "fleet.ndjson", MESSAGES, 40);
    installation.start_all(2);
    let kills = std::thread::scope(|scope| {
        let (mqtt, folder) = (installation.mqtt_url.clone(), installation.rig.folder().to_owned());
        let feed = scope.spawn(move || {
            let file = folder.join("fleet.ndjson");
            crate::common::run(
                &folder,
                &["feed", "--broker", &mqtt, "--rate", "400/s", file.to_str().unwrap()],
            )
        });
        let mut kills = 0;
        for _ in 0..rounds {
            // The moment of the kill is the test's subject; nothing waits for it.
            std::thread::sleep(Duration::from_millis(random.below(2_000) as u64));
            let victim = (SERVICES[random.below(SERVICES.len())], random.below(2));
            installation.running.remove(&victim).unwrap().kill();
            installation.forget_reader(victim.0);
            installation.start(victim.0, victim.1);
            kills += 1;
        }
        assert!(feed.join().unwrap().status.success());
        kills
    });
    installation.running.values_mut().for_each(Service::ready);
    installation.wait_for_values(MESSAGES);
    installation.stop_all();
    let sent = bag(lines_of(&[file]));
    let (rows, lines) = (installation.row_payloads(), installation.line_payloads());
    for payload in sent.keys() {
        let text = String::from_utf8_lossy(payload);
        assert!(rows.contains_key(payload), "seed {seed}: no row of {text}");
        assert!(lines.contains_key(payload), "seed {seed}: no line of {text}");
    }
    let report = installation.books(2);
    let (rows, lines): (usize, usize) = (rows.values().sum(), lines.values().sum());
    eprintln!(
        "{test}: seed {seed}, {kills} kills, {MESSAGES} sent, {rows} rows ({} copies), {lines} lines ({} copies), {} ids \
         beyond the ledger",
        report["warehouse"]["copies"], report["archive"]["copies"], report["ledger"]["beyond"]
    );
    assert_eq!(report["archive"]["copies"], 0, "the archive knows by the bucket what is there: {report:#}");
}

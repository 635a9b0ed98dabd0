//! Services that are killed at any moment, with two replicas of each.

use crate::common::{Bag, bag, lines_of, small_recording};
use crate::installation::Installation;
use crate::random::Random;
use crate::service::{SERVICES, Service};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use testkit::rig::RigOptions;

const REPLICAS: usize = 2;
/// Most messages that a broker sends without an acknowledgement: `ingestion.broker.receive_maximum`.
const BROKER_WINDOW: usize = 1_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Kills on a rig, and what they were done to.
struct Campaign {
    test: &'static str,
    seed: u64,
    random: Random,
    file: PathBuf,
    messages: usize,
    kills: usize,
    /// Of these how many met `ingestion`.
    of_ingestion: usize,
}

impl Campaign {
    /// With a rig on which nothing runs yet, and a recording of `messages` messages.
    fn new(test: &'static str, messages: usize, options: RigOptions) -> Option<(Self, Installation)> {
        let seed = setting("MILLSTREAM_CAMPAIGN_SEED", u64::from(std::process::id()));
        eprintln!("{test}: MILLSTREAM_CAMPAIGN_SEED={seed}");
        let installation = Installation::new(test, options)?;
        let file = small_recording(installation.rig.folder(), "fleet.ndjson", messages, 40);
        let random = Random::new(seed);
        Some((Self { test, seed, random, file, messages, kills: 0, of_ingestion: 0 }, installation))
    }

    /// Kills any of `services` within `moment` milliseconds and starts it again. The moment of the kill is the test's
    /// subject; nothing waits for it.
    fn kill_one(&mut self, installation: &mut Installation, services: &[&'static str], moment: usize) {
        std::thread::sleep(Duration::from_millis(self.random.below(moment) as u64));
        let victim = (services[self.random.below(services.len())], self.random.below(REPLICAS));
        installation.running.remove(&victim).unwrap().kill();
        installation.forget_reader(victim.0);
        installation.start(victim.0, victim.1);
        self.kills += 1;
        self.of_ingestion += usize::from(victim.0 == "ingestion");
    }

    /// Everything sent is in both sinks and nothing else, and of the ids there are only as many beyond the messages as the
    /// broker may have sent again. Answers how many copies of rows and of lines there are.
    fn conclude(&self, mut installation: Installation) -> [u64; 2] {
        let Self { test, seed, kills, messages, .. } = self;
        installation.running.values_mut().for_each(Service::ready);
        installation.wait_for_values(*messages);
        eprintln!("{test}: {}", installation.redeliveries());
        installation.stop_all();
        let sent = bag(lines_of(std::slice::from_ref(&self.file)));
        let (rows, lines) = (installation.row_payloads(), installation.line_payloads());
        for (what, arrived) in [("row", &rows), ("line", &lines)] {
            let lost = sent.keys().find(|payload| !arrived.contains_key(*payload));
            assert_eq!(lost, None, "seed {seed}: no {what} of it");
            assert!(
                arrived.keys().all(|payload| sent.contains_key(payload)),
                "seed {seed}: a {what} nobody sent"
            );
        }
        let report = installation.books(REPLICAS);
        let ids: BTreeSet<_> = installation.lines().into_iter().map(|line| line.id).collect();
        let again = ids.len() - messages;
        let count = |arrived: &Bag| arrived.values().sum::<usize>();
        let copies = ["warehouse", "archive"].map(|place| report[place]["copies"].as_u64().unwrap());
        eprintln!(
            "{test}: seed {seed}, {kills} kills ({} of ingestion), {messages} sent, {again} sent again by the broker, {} rows \
             ({} copies), {} lines ({} copies), {} ids beyond the ledger",
            self.of_ingestion,
            count(&rows),
            copies[0],
            count(&lines),
            copies[1],
            report["ledger"]["beyond"]
        );
        assert!(again <= self.of_ingestion * BROKER_WINDOW, "seed {seed}: {again} messages have a second id");
        copies
    }
}

/// Every message that the broker took is in both sinks. What may be doubled: a message that ingestion had published and
/// not acknowledged to the broker is delivered by it again and is another message to us (at most a window of the
/// broker for each kill); in the mode `append` a row whose service died before its ack, or whose message came to the
/// other replica; and a line whose message both replicas upload at the same moment.
#[test]
fn kills_of_every_service_with_two_replicas_each_lose_nothing() {
    let test = "kills_of_every_service_with_two_replicas_each_lose_nothing";
    let Some((mut campaign, mut installation)) = Campaign::new(test, 8_000, RigOptions::default()) else {
        return;
    };
    let rounds = setting("MILLSTREAM_CLOUD_KILLS", 8);
    installation.start_all(REPLICAS);
    let file = campaign.file.clone();
    installation.during_feed(&file, "400/s", |installation, _| {
        for _ in 0..rounds {
            campaign.kill_one(installation, &SERVICES, 2_000);
        }
    });
    campaign.conclude(installation);
}

/// Ingestion dies again and again while nobody takes what it spools, and with enrichment while it is taken onward. What
/// was under way to Pub/Sub when a process died is published again under the same id, which each sink knows.
#[test]
fn kills_of_ingestion_while_its_spool_is_filled_and_emptied_lose_nothing() {
    let test = "kills_of_ingestion_while_its_spool_is_filled_and_emptied_lose_nothing";
    let Some((mut campaign, mut installation)) = Campaign::new(test, 6_000, RigOptions::default()) else {
        return;
    };
    installation.settings.insert("ingestion", "  spool: {}\n".to_owned());
    let proxy = installation.lead_through_proxy("PUBSUB_EMULATOR_HOST");
    installation.start_each([REPLICAS, REPLICAS, 1, 1]);
    proxy.turn_away();
    for service in SERVICES {
        installation.forget_reader(service);
    }
    let file = campaign.file.clone();
    installation.during_feed(&file, "1000/s", |installation, _| {
        for _ in 0..setting("MILLSTREAM_CLOUD_KILLS", 8) / 2 {
            campaign.kill_one(installation, &["ingestion"], 2_000);
        }
    });
    proxy.let_in(installation.rig.pubsub.address());
    for _ in 0..setting("MILLSTREAM_CLOUD_KILLS", 8) / 2 {
        campaign.kill_one(&mut installation, &["ingestion", "enrichment"], 1_000);
    }
    assert_eq!(campaign.conclude(installation), [0, 0], "a sink that lives knows what it has");
}

/// The consumers wait for the confirmation of every acknowledgement; kills and drains meet it.
#[test]
fn kills_of_consumers_of_exactly_once_subscriptions_lose_nothing() {
    let test = "kills_of_consumers_of_exactly_once_subscriptions_lose_nothing";
    let options = RigOptions { exactly_once: true, ..RigOptions::default() };
    let Some((mut campaign, mut installation)) = Campaign::new(test, 4_000, options) else { return };
    installation.start_all(REPLICAS);
    let file = campaign.file.clone();
    installation.during_feed(&file, "400/s", |installation, _| {
        for _ in 0..setting("MILLSTREAM_CLOUD_KILLS", 8) / 2 {
            campaign.kill_one(installation, &SERVICES[1..], 2_000);
        }
    });
    campaign.conclude(installation);
}

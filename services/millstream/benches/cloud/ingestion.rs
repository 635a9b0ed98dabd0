//! What ingestion costs between broker and bus.

use crate::arrivals::Arrivals;
use crate::beside::Beside;
use crate::fleet::Fleet;
use crate::site::{READER, Site};
use crate::waiting::payloads;
use crate::{figure, scaled};

const RUNS: usize = 3;
const MESSAGES: usize = 100_000;
/// As many as a run at 2,000 messages a second takes half a minute for.
const PACED: usize = 60_000;
const PUBLISHED: &str = "millstream_bus_published_total";

pub(crate) fn run() {
    let payloads = payloads();
    for _ in 0..RUNS {
        let fleet = Fleet { devices: 20, window: 100, rate: None };
        measure("full speed", fleet, &payloads, scaled(MESSAGES));
        let fleet = Fleet { devices: 20, window: 100, rate: Some(2_000.0) };
        measure("2,000 messages a second", fleet, &payloads, scaled(PACED));
    }
}

fn measure(what: &str, fleet: Fleet, payloads: &[Vec<u8>], count: usize) {
    let Some(site) = Site::start("") else { return };
    let ingestion = site.ingestion();
    // What the start costs belongs to no message.
    let before = ingestion.cpu();
    let beside = Beside::start();
    fleet.publish(site.broker.port(), payloads, count);
    ingestion.wait_for(PUBLISHED, count);
    let cpu = ingestion.cpu() - before;
    beside.say(what);
    figure(&format!("ingestion, {what}"), cpu * 100_000.0 / count as f64, "CPU-s per 100,000");
    figure(&format!("ingestion, {what}: peak memory"), ingestion.peak(), "MiB");
    ingestion.stop();
    let arrivals = Arrivals::read(&site.project(), READER, payloads, count);
    assert_eq!((arrivals.lost(), arrivals.changed), (0, 0), "lost, changed");
    let ratio = arrivals.bytes as f64 / arrivals.payload_bytes as f64;
    figure(&format!("ingestion, {what}: bytes of data on Pub/Sub / bytes of payload"), ratio, "ratio");
}

//! What look-ups cost, and what becomes of them when the shared cache dies.

use crate::beside::Beside;
use crate::counting::Counting;
use crate::process::Service;
use crate::waiting::{Waiting, device, payloads};
use crate::{figure, scaled};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use testkit::rig::{ENRICHED, RAW};
use testkit::servers::SubscriptionSettings;

const RUNS: usize = 3;
const OUT: &str = "millstream_messages_out_total";
/// Every look-up goes on to Redis.
const NO_MEMORY: &Settings = &[("enrichment:", "  cache: {size: 0}")];
/// Streams: the emulator gives about 2,000 messages a second on each, and the look-ups are to be what is measured.
const STREAMS: usize = 16;
const READER: &str = "bench";
/// Longest wait for a message that is not there yet.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run() {
    let payloads = payloads();
    for _ in 0..RUNS {
        in_redis(&payloads, NO_MEMORY, "all look-ups in Redis");
        in_redis(&payloads, &[], "cache in memory too");
    }
}

pub(crate) fn run_cold() {
    let payloads = payloads();
    for (order, device_of) in orders() {
        cold(&payloads, order, device_of);
    }
}

pub(crate) fn run_killed() {
    let payloads = payloads();
    for _ in 0..RUNS {
        killed(&payloads, "default cache", &[]);
        killed(&payloads, "no cache in memory", NO_MEMORY);
    }
}

type Settings = [(&'static str, &'static str)];
/// The device of message `n` of `count`.
type Order = (&'static str, fn(usize, usize) -> usize);

const COLD: usize = 20_000;
const DEVICES: usize = 100;

fn random(n: usize) -> usize {
    // Steps of a multiplicative generator: any order will do, as long as it is the same in each run.
    (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 40
}

fn orders() -> [Order; 3] {
    [
        ("round robin", |n, _| n % DEVICES),
        ("random", |n, _| random(n) % DEVICES),
        ("grouped", |n, count| n * DEVICES / count),
    ]
}

/// 100,000 messages of 10,000 devices that Redis knows: CPU of the whole process, Pub/Sub on both sides included.
fn in_redis(payloads: &[Vec<u8>], settings: &Settings, what: &str) {
    let (count, devices) = (scaled(100_000), scaled(10_000));
    let Some(rig) = Waiting::new(&["enrichment"]) else { return };
    rig.register(devices, device);
    rig.fill(RAW, payloads, devices, &|n| n, false);
    let enrichment = rig.start("enrichment", STREAMS, settings);
    enrichment.wait_for(OUT, devices);
    enrichment.stop();
    rig.bus().end_streams("enrichment");
    rig.fill(RAW, payloads, count, &|n| random(n) % devices, false);
    let beside = Beside::start();
    let enrichment = rig.start("enrichment", STREAMS, settings);
    let before = enrichment.cpu();
    enrichment.wait_for(OUT, count);
    beside.say(what);
    let lookups = |result: &str| {
        enrichment.metric(&format!("millstream_cache_lookups_total{{layer=\"redis\",result=\"{result}\""))
    };
    println!("redis answered {} look-ups, {} not", lookups("hit"), lookups("miss") + lookups("error"));
    let peak = enrichment.peak();
    let cpu = enrichment.stop() - before;
    let name = format!("enrichment on Pub/Sub, {what}");
    figure(&name, cpu * 1e5 / count as f64, "CPU-s per 100,000");
    figure(&format!("{name}: peak memory"), peak, "MiB");
}

/// Documents that are read while nothing is known.
fn cold(payloads: &[Vec<u8>], order: &str, device_of: fn(usize, usize) -> usize) {
    let count = scaled(COLD);
    let Some(mut rig) = Waiting::new(&["enrichment"]) else { return };
    rig.register(DEVICES, device);
    rig.fill(RAW, payloads, count, &|n| device_of(n, count), false);
    let proxy = rig.runtime.block_on(Counting::before(&rig.address("FIRESTORE_EMULATOR_HOST")));
    rig.put("FIRESTORE_EMULATOR_HOST", proxy.address());
    let enrichment = rig.start("enrichment", STREAMS, &[]);
    enrichment.wait_for(OUT, count);
    enrichment.stop();
    let reads = proxy.counts().into_iter().find(|(path, _)| path.ends_with("BatchGetDocuments"));
    let (_, reads) = reads.unwrap();
    figure(&format!("enrichment, cold, {order}: documents read"), reads.received as f64, "reads");
    figure(&format!("enrichment, cold, {order}: requests to Firestore"), reads.requests as f64, "requests");
}

/// Redis dies when half of the messages are through.
fn killed(payloads: &[Vec<u8>], what: &str, settings: &Settings) {
    let whole = halves(payloads, settings, false);
    let killed = halves(payloads, settings, true);
    let (Some(whole), Some(killed)) = (whole, killed) else { return };
    let name = |of: &str| format!("enrichment, Redis killed half-way, {what}: {of}");
    figure(&name("lost"), killed.lost as f64, "messages");
    figure(&name("without the device's data"), killed.bare as f64, "messages");
    figure(&name("doubled"), killed.doubled as f64, "messages");
    let speed = |run: &Halves| run.second.as_secs_f64();
    println!("{what}: second half {:.2} s without the kill, {:.2} s with it", speed(&whole), speed(&killed));
    figure(&name("speed of all / speed without the kill"), whole.all() / killed.all(), "ratio");
    figure(&name("speed after the kill / speed without it"), speed(&whole) / speed(&killed), "ratio");
}

/// What a run brought.
struct Halves {
    first: Duration,
    second: Duration,
    lost: usize,
    bare: usize,
    doubled: usize,
}

impl Halves {
    fn all(&self) -> f64 {
        (self.first + self.second).as_secs_f64()
    }
}

fn halves(payloads: &[Vec<u8>], settings: &Settings, kill: bool) -> Option<Halves> {
    let count = scaled(40_000);
    let mut rig = Waiting::new(&["enrichment"])?;
    rig.register(DEVICES, device);
    rig.bus().create_subscription(READER, ENRICHED, &SubscriptionSettings::default());
    let sent = rig.fill(RAW, payloads, count, &|n| random(n) % DEVICES, false);
    let enrichment = rig.start("enrichment", STREAMS, settings);
    let began = Instant::now();
    reached(&enrichment, count / 2);
    if kill {
        rig.rig.redis.kill();
    }
    let half = Instant::now();
    reached(&enrichment, count);
    let end = Instant::now();
    enrichment.stop();
    let missing: HashSet<String> = sent.into_iter().collect();
    let (mut missing, mut bare, mut came) = (missing, 0, 0);
    let (mut seen, mut last) = (HashSet::new(), Instant::now());
    while !missing.is_empty() && last.elapsed() < PATIENCE {
        let page = rig.bus().pull(READER, 1_000);
        rig.bus().acknowledge(READER, &page);
        for message in page {
            last = Instant::now();
            if seen.insert(message.message_id) {
                came += 1;
                missing.remove(&message.attributes["millstream_id"]);
                bare += usize::from(!message.attributes.contains_key("millstream_enrichment"));
            }
        }
    }
    let doubled = came + missing.len() - count;
    Some(Halves { first: half - began, second: end - half, lost: missing.len(), bare, doubled })
}

/// Waits until so many are acknowledged, looking often: it is timed.
fn reached(service: &Service, count: usize) {
    service.wait_for(OUT, count);
}

//! 100,000 look-ups that a real Redis answers, with no cache in memory before it, by chunk size: what they cost this
//! process. `cargo bench -p cache-redis --bench redis`; starts a redis-server of its own.
//!
//! Lines that begin with `figure` are for programs: name, value, unit, between tabs.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program that prints a table")]

use cache::{Fetcher, Layered};
use cache_redis::{RedisOptions, RedisStore};
use messagepipeline::Enrichment;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::cache_suite::CountingSource;
use testkit::servers::Redis;

const LOOK_UPS: usize = 100_000;
const DEVICES: usize = 10_000;
const RUNS: usize = 5;
/// Look-ups under way at once, as with five workers.
const WORKERS: usize = 5;

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

fn figure(name: &str, value: f64, unit: &str) {
    println!("{name:<44} {value:10.3} {unit}");
    println!("figure\tredis: {name}\t{value:.3}\t{unit}");
}

type Layer = Arc<Layered<Enrichment, Arc<RedisStore<Enrichment>>>>;

async fn look_up(layer: &Layer, devices: &Arc<Vec<String>>, chunk: usize) {
    let workers = (0..WORKERS).map(|worker| {
        let (layer, devices) = (Arc::clone(layer), Arc::clone(devices));
        tokio::spawn(async move {
            for first in (0..LOOK_UPS / WORKERS).step_by(chunk) {
                let at = |n: usize| (worker * DEVICES / WORKERS + first + n) % DEVICES;
                let keys: Vec<&str> = (0..chunk).map(|n| devices[at(n)].as_str()).collect();
                for answer in layer.fetch(&keys).await {
                    assert!(answer.unwrap().value.is_some());
                }
            }
        })
    });
    futures_util::future::join_all(workers).await.into_iter().for_each(Result::unwrap);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let Some(redis) = Redis::start("the bench of the Redis layer") else { return };
    let devices: Arc<Vec<String>> = Arc::new((0..DEVICES).map(|n| format!("{n:016x}")).collect());
    let source = CountingSource::with_keys(devices.iter().map(String::as_str));
    let timeout = Duration::from_secs(10);
    let options = RedisOptions { url: redis.url(), timeout, ..RedisOptions::default() };
    let store = Arc::new(RedisStore::open(&options).await.unwrap());
    let layer: Layer = Arc::new(Layered::new(Arc::clone(&store), Some(Arc::clone(&source) as _)));
    let keys: Vec<&str> = devices.iter().map(String::as_str).collect();
    layer.fetch(&keys).await;
    store.flush().await.unwrap();
    for chunk in [10, 50, 500] {
        let mut runs = Vec::new();
        for _ in 0..RUNS {
            let (cpu, begun) = (cpu_seconds(), Instant::now());
            look_up(&layer, &devices, chunk).await;
            runs.push((cpu_seconds() - cpu, begun.elapsed().as_secs_f64()));
        }
        runs.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (cpu, seconds) = runs[RUNS / 2];
        figure(&format!("look-ups in chunks of {chunk}"), cpu, "CPU-s per 100,000");
        figure(&format!("look-ups in chunks of {chunk}, elapsed"), seconds, "s per 100,000");
    }
    assert_eq!(source.keys_read(), DEVICES, "Redis answered");
}

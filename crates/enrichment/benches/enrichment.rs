//! 20,000 messages of 100 devices through the enricher with 16 workers: how often the source of truth is asked while
//! the cache is cold, in any order of the devices, and what a message costs once it is warm.
//! `cargo bench -p enrichment --bench enrichment`.
//!
//! Lines that begin with `figure` are for programs: name, value, unit, between tabs.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a program that prints a table"
)]

use cache::{Ages, Lru};
use enrichment::{Enricher, KeyExtractor, UnknownDevice};
use messagepipeline::{
    IdGenerator, Message, Outcome, ServiceOptions, Shutdown, StageError, StreamProcessor, StreamingService,
    Timestamp, Transformer, transform_fn,
};
use std::sync::Arc;
use std::time::Duration;
use testkit::cache_suite::CountingSource;
use testkit::scripted_consumer::{ScriptedConsumer, Step};

const MESSAGES: usize = 20_000;
const DEVICES: usize = 100;
const WORKERS: usize = 16;
/// Small, so that several chunks of the same devices are under way at once.
const CHUNK: usize = 64;
const RUNS: usize = 5;
const AGES: Ages = Ages { max: Duration::from_secs(3_600), negative: Duration::from_secs(3_600) };

struct PassOn;

impl StreamProcessor<Message> for PassOn {
    async fn process(&self, _: &Message, enriched: Message) -> Result<(), StageError> {
        std::hint::black_box(enriched);
        Ok(())
    }
}

fn device(n: usize) -> String {
    format!("{n:016x}")
}

/// `count` messages; `device_of` tells the device of each.
fn messages(count: usize, device_of: impl Fn(usize) -> usize) -> Vec<Message> {
    let ids = IdGenerator::default();
    let message = |n: usize| {
        let mut message = Message::new(ids.next_id(), "{\"value\":1}", Timestamp::from_millis(1));
        let device = device(device_of(n));
        message.attributes = [("mqtt_topic", "devices/up"), ("device_id", &*device)].into_iter().collect();
        message
    };
    (0..count).map(message).collect()
}

fn enricher(source: &Arc<CountingSource>) -> Arc<Enricher> {
    let cache = Lru::new(10_000, AGES, Some(Arc::clone(source) as _)).unwrap();
    Arc::new(Enricher::new(KeyExtractor::default(), Arc::new(cache), UnknownDevice::Pass))
}

/// The enricher, kept beyond the service that uses it.
struct Kept(Arc<Enricher>);

impl Transformer for Kept {
    type Output = Message;

    async fn transform<'a>(
        &'a self,
        deliveries: &'a [messagepipeline::Delivery],
        outcomes: &'a mut Vec<Outcome<Message>>,
    ) {
        self.0.transform(deliveries, outcomes).await;
    }
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

/// CPU-seconds that the service takes for `messages`.
fn run(messages: &[Message], transformer: impl Transformer<Output = Message> + 'static) -> f64 {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let options = ServiceOptions { workers: WORKERS, ..ServiceOptions::new("enrichment") };
    let chunks = messages.chunks(CHUNK).map(|chunk| Step::Chunk(chunk.to_vec()));
    let consumer = ScriptedConsumer::new(chunks.chain([Step::End]));
    let service = StreamingService::new(options, consumer, transformer, PassOn);
    let begun = cpu_seconds();
    let summary =
        runtime.block_on(async { tokio::spawn(service.run(Shutdown::new())).await.unwrap() }).unwrap();
    let seconds = cpu_seconds() - begun;
    assert_eq!(summary.done, messages.len() as u64, "{summary}");
    seconds
}

fn figure(name: &str, value: f64, unit: &str) {
    println!("{name:<44} {value:10.3} {unit}");
    println!("figure\tenrichment: {name}\t{value:.3}\t{unit}");
}

fn median(run: impl Fn() -> f64) -> f64 {
    let mut runs: Vec<_> = (0..RUNS).map(|_| run()).collect();
    runs.sort_by(f64::total_cmp);
    runs[RUNS / 2]
}

fn main() {
    // Steps of a multiplicative generator: any order will do, as long as it is the same in each run.
    let random = |n: usize| (n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 40;
    let orders: [(&str, &dyn Fn(usize) -> usize); 3] = [
        ("round robin", &|n| n % DEVICES),
        ("random", &|n| random(n) % DEVICES),
        ("grouped", &|n| n / (MESSAGES / DEVICES)),
    ];
    let names: Vec<_> = (0..DEVICES).map(device).collect();
    for (order, device_of) in orders {
        let messages = messages(MESSAGES, device_of);
        let source = CountingSource::with_keys(names.iter().map(String::as_str));
        run(&messages, Kept(enricher(&source)));
        figure(&format!("cold, {order}, devices read"), source.keys_read() as f64, "reads");
        let nobody = CountingSource::with_keys([]);
        run(&messages, Kept(enricher(&nobody)));
        figure(&format!("unknown, {order}, devices read"), nobody.keys_read() as f64, "reads");
    }
    let (count, source) = (100_000, CountingSource::with_keys(names.iter().map(String::as_str)));
    let messages = messages(count, |n| random(n) % DEVICES);
    let warm = enricher(&source);
    run(&messages, Kept(Arc::clone(&warm)));
    let copying = median(|| run(&messages, transform_fn(|message: &Message| Outcome::Emit(message.clone()))));
    let enriching = median(|| run(&messages, Kept(Arc::clone(&warm))));
    assert_eq!(source.keys_read(), DEVICES, "the cache was warm");
    figure("the service without enrichment", copying, "CPU-s per 100,000");
    figure("warm", enriching, "CPU-s per 100,000");
    figure("warm, enrichment alone", enriching - copying, "CPU-s per 100,000");
}

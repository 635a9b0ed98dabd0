//! CPU of the client's side: publish, then consume and acknowledge, against Google's emulator.
//!
//! `cargo bench -p pubsub --bench pubsub [-- MESSAGES]`. The emulator hands out about 2,000 messages a second on a
//! stream, so the rate of consuming is its own; the CPU is ours.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench"
)]

use google_cloud_auth::credentials::anonymous;
use messagepipeline::{
    Attributes, Consumer, Enrichment, IdGenerator, Message, Publisher, Settlement, Timestamp, Verdict,
    all_done,
};
use pubsub::{Client, ConsumerOptions, PubSubOptions, PublisherOptions};
use std::time::{Duration, Instant};
use testkit::servers::{PubSubEmulator, SubscriptionSettings};

const CHUNK: usize = 256;
const PAYLOAD: usize = 1_024;
/// Calls to the publisher under way together.
const CALLS: usize = 8;

fn main() {
    let messages = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(100_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(run(messages));
}

async fn run(messages: usize) {
    let Some(emulator) = PubSubEmulator::start("bench") else { return };
    let project = emulator.new_project();
    project.create_topic("raw");
    project.create_subscription("raw-reader", "raw", &SubscriptionSettings::default());
    let client = Client::new(PubSubOptions {
        project: project.name().to_owned(),
        endpoint: Some(emulator.endpoint()),
        credentials: anonymous::Builder::new().build(),
    });
    let parts: Vec<_> = (0..CALLS).map(|_| make(messages / CALLS)).collect();
    let count: usize = parts.iter().flatten().map(Vec::len).sum();
    let (started, cpu) = (Instant::now(), cpu_time());
    let publisher = client.publisher("raw", PublisherOptions::default());
    let calls = parts.into_iter().map(|part| tokio::spawn(publish(publisher.clone(), part)));
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("published");
    }
    figure("publish", count, started.elapsed(), cpu_time() - cpu);
    let (started, cpu) = (Instant::now(), cpu_time());
    consume(&client, count).await;
    figure("consume and acknowledge", count, started.elapsed(), cpu_time() - cpu);
}

fn figure(what: &str, count: usize, wall: Duration, cpu: Duration) {
    println!(
        "{what}: {count} messages of {PAYLOAD} B, {:.0}/s, {:.3} CPU-s per 100,000",
        count as f64 / wall.as_secs_f64(),
        cpu.as_secs_f64() * 100_000.0 / count as f64,
    );
}

/// Messages as ingestion and enrichment make them.
fn make(messages: usize) -> Vec<Vec<Message>> {
    let ids = IdGenerator::default();
    let attributes = Attributes::from_iter([
        ("device_id", "sensor-0001"),
        ("mqtt_topic", "devices/sensor-0001/up"),
        ("route_name", "all"),
        ("mqtt_qos", "1"),
        ("mqtt_packet_id", "4711"),
    ]);
    let enrichment =
        Enrichment::from_text(r#"{"client_id":"C-1","location_id":"harbour","category":"meter"}"#);
    let enrichment = enrichment.expect("an object");
    let payload = bytes::Bytes::from(vec![b'x'; PAYLOAD]);
    let message = || {
        let mut message = Message::new(ids.next_id(), payload.clone(), Timestamp::from_micros(1));
        message.attributes = attributes.clone();
        message.enrichment = enrichment.clone();
        message
    };
    let chunk = || std::iter::repeat_with(message).take(CHUNK).collect();
    std::iter::repeat_with(chunk).take(messages.div_ceil(CHUNK)).collect()
}

async fn publish(publisher: impl Publisher, chunks: Vec<Vec<Message>>) {
    for chunk in chunks {
        all_done(publisher.publish(chunk).await).expect("published");
    }
}

async fn consume(client: &Client, count: usize) {
    let options = ConsumerOptions { streams: 16, ..ConsumerOptions::default() };
    let mut consumer = client.consumer("raw-reader", options);
    let mut left = count;
    while left > 0 {
        let chunk = consumer.next().await.expect("a chunk").expect("more");
        let (settle, deliveries) = chunk.into_parts();
        left = left.saturating_sub(deliveries.len());
        let verdicts: Vec<_> =
            deliveries.iter().map(|d| Settlement { token: d.token, verdict: Verdict::Ack }).collect();
        settle.settle(&verdicts);
    }
    consumer.close().await.expect("closed");
}

/// User and system time of this process so far; the emulator is another.
fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

//! Messages per CPU-second through the bus: publish, two subscriptions, acknowledged.
//!
//! `cargo bench -p embedded --bench bus [-- MESSAGES]`; the folder is `TMPDIR`'s.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a bench"
)]

use embedded::bus::{Bus, BusConsumer, BusOptions, ConsumerOptions, SubscriptionOptions};
use messagepipeline::{
    Attributes, Consumer, IdGenerator, Message, Publisher, Settlement, SystemClock, Timestamp, Verdict,
    all_done,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

const CHUNK: usize = 256;
const PAYLOAD: usize = 1_024;

fn main() {
    let messages = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(400_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(run(messages));
}

async fn run(messages: usize) {
    let folder = tempfile::tempdir().expect("a folder");
    let bus = Bus::open(folder.path().join("bus.db"), BusOptions::default(), Arc::new(SystemClock)).await;
    let bus = bus.expect("a bus");
    let topic = bus.topic("raw").await.expect("a topic");
    let source: Vec<_> = (0..4).map(|_| make(messages / 4)).collect();
    let (started, cpu) = (Instant::now(), cpu_time());
    let mut consumers = Vec::new();
    for name in ["one", "two"] {
        let subscription = bus.subscription(&topic, name, SubscriptionOptions::default()).await;
        let consumer = bus.consumer(&subscription.expect("a subscription"), ConsumerOptions::default());
        consumers.push(tokio::spawn(consume(consumer, messages)));
    }
    let publishers = source.into_iter().map(|part| tokio::spawn(publish(bus.publisher(&topic), part)));
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.expect("published");
    }
    for consumer in consumers {
        consumer.await.expect("consumed");
    }
    let (wall, cpu) = (started.elapsed(), cpu_time() - cpu);
    bus.close().await.expect("closed");
    let size = std::fs::metadata(folder.path().join("bus.db")).map_or(0, |file| file.len());
    println!(
        "{messages} messages of {PAYLOAD} B, two subscriptions: {:.0}/s, {:.0} per CPU-second, file {} MiB",
        messages as f64 / wall.as_secs_f64(),
        messages as f64 / cpu.as_secs_f64(),
        size >> 20,
    );
}

/// Made before the clock starts: drawing random numbers for ids is not the bus's work.
fn make(messages: usize) -> Vec<Vec<Message>> {
    let ids = IdGenerator::default();
    let attributes: Attributes =
        [("device_id", "sensor-0001"), ("mqtt_topic", "devices/sensor-0001/up"), ("route_name", "all")]
            .into_iter()
            .collect();
    let payload = bytes::Bytes::from(vec![b'x'; PAYLOAD]);
    let message = || {
        let mut message = Message::new(ids.next_id(), payload.clone(), Timestamp::from_micros(1));
        message.attributes = attributes.clone();
        message
    };
    let chunk = || std::iter::repeat_with(message).take(CHUNK).collect();
    std::iter::repeat_with(chunk).take(messages / CHUNK).collect()
}

async fn publish(publisher: impl Publisher, chunks: Vec<Vec<Message>>) {
    for chunk in chunks {
        all_done(publisher.publish(chunk).await).expect("published");
    }
}

async fn consume(mut consumer: BusConsumer, messages: usize) {
    let mut left = messages / 4 / CHUNK * CHUNK * 4;
    while left > 0 {
        let chunk = consumer.next().await.expect("a chunk").expect("more");
        let (settle, deliveries) = chunk.into_parts();
        left -= deliveries.len();
        let verdicts: Vec<_> =
            deliveries.iter().map(|d| Settlement { token: d.token, verdict: Verdict::Ack }).collect();
        settle.settle(&verdicts);
    }
    consumer.close().await.expect("closed");
}

/// User and system time of this process so far.
fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), u32::try_from(spent.tv_nsec).unwrap_or(0))
}

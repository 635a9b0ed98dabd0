//! The memory double keeps what every bus promises.

use messagepipeline::{Consumer, IdGenerator, Message, Publisher, Timestamp};
use std::sync::Arc;
use std::time::Duration;
use testkit::consumer_suite::{Bounds, BusUnderTest, Features};
use testkit::memory::{ConsumerLimits, Delays, MemoryBus, MemoryConsumer};
use tokio::time::Instant;

struct Memory(MemoryBus);

impl BusUnderTest for Memory {
    type Consumer = MemoryConsumer;

    fn features(&self) -> Features {
        Features {
            counts_attempts: true,
            ordered: true,
            knows_ids: true,
            reopens: true,
            silence: Duration::from_secs(1),
        }
    }

    async fn create(&mut self, topic: &str, subscriptions: &[&str]) {
        for subscription in subscriptions {
            self.0.subscribe(topic, subscription);
        }
    }

    async fn publisher(&mut self, topic: &str) -> Arc<dyn Publisher> {
        Arc::new(self.0.publisher(topic))
    }

    async fn consumer(&mut self, subscription: &str, bounds: Bounds) -> MemoryConsumer {
        let limits =
            ConsumerLimits { chunk: 7, outstanding: bounds.messages, outstanding_bytes: bounds.bytes };
        self.0.consumer(subscription, limits)
    }

    async fn reopen(&mut self) {
        // What is durable elsewhere lives in the bus, which the test keeps; leases ended with their consumers.
    }
}

async fn memory() -> Memory {
    Memory(MemoryBus::new())
}

testkit::consumer_suite!(paused, memory);

async fn leasing() -> Memory {
    let delays = Delays { lease: Some(Duration::from_secs(600)), nack: Duration::from_millis(200) };
    Memory(MemoryBus::with_delays(delays))
}

mod with_delays {
    use super::leasing;

    testkit::consumer_suite!(paused, leasing);
}

#[tokio::test(start_paused = true)]
async fn a_message_without_a_verdict_comes_again_when_its_lease_ends_and_a_nacked_one_after_its_delay() {
    let (lease, nack) = (Duration::from_secs(30), Duration::from_secs(5));
    let bus = MemoryBus::with_delays(Delays { lease: Some(lease), nack });
    bus.subscribe("topic", "reader");
    let mut consumer = bus.consumer("reader", ConsumerLimits::default());
    let message = Message::new(IdGenerator::default().next_id(), "x", Timestamp::default());
    bus.publisher("topic").publish(vec![message]).await;
    let begun = Instant::now();
    let late = consumer.next().await.unwrap().unwrap();
    let again = consumer.next().await.unwrap().unwrap();
    assert_eq!((begun.elapsed(), again.deliveries()[0].message.attempt), (lease, 1));
    late.into_acks().into_iter().for_each(|(_, ack)| ack.ack());
    again.into_acks().into_iter().for_each(|(_, ack)| ack.nack());
    let last = consumer.next().await.unwrap().unwrap();
    assert_eq!((begun.elapsed(), last.deliveries()[0].message.attempt), (lease + nack, 2));
    last.into_acks().into_iter().for_each(|(_, ack)| ack.ack());
    assert_eq!(bus.acked("reader").len(), 1, "the verdict that came after the lease had no effect");
}

//! The memory double keeps what every bus promises.

use messagepipeline::Publisher;
use std::sync::Arc;
use std::time::Duration;
use testkit::consumer_suite::{Bounds, BusUnderTest, Features};
use testkit::memory::{ConsumerLimits, MemoryBus, MemoryConsumer};

struct Memory(MemoryBus);

impl BusUnderTest for Memory {
    type Consumer = MemoryConsumer;

    fn features(&self) -> Features {
        Features {
            counts_attempts: true,
            ordered: true,
            knows_ids: true,
            reopens: false,
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
        unreachable!("not declared");
    }
}

async fn memory() -> Memory {
    Memory(MemoryBus::new())
}

testkit::consumer_suite!(paused, memory);

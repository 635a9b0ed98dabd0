//! The durable bus passes the suite that every bus passes.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use embedded::bus::{Bus, BusConsumer, BusOptions, ConsumerOptions, SubscriptionOptions};
use messagepipeline::{Publisher, SystemClock};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use testkit::consumer_suite::{Bounds, BusUnderTest, Features};

struct OnDisk {
    folder: tempfile::TempDir,
    bus: Bus,
    /// Subscription to topic.
    topics: HashMap<String, String>,
}

async fn on_disk() -> OnDisk {
    let folder = tempfile::tempdir().unwrap();
    let bus = open(&folder).await;
    OnDisk { folder, bus, topics: HashMap::new() }
}

async fn open(folder: &tempfile::TempDir) -> Bus {
    Bus::open(folder.path().join("bus.db"), BusOptions::default(), Arc::new(SystemClock)).await.unwrap()
}

impl BusUnderTest for OnDisk {
    type Consumer = BusConsumer;

    fn features(&self) -> Features {
        Features {
            counts_attempts: true,
            ordered: true,
            knows_ids: true,
            reopens: true,
            silence: Duration::from_millis(100),
        }
    }

    async fn create(&mut self, topic: &str, subscriptions: &[&str]) {
        let opened = self.bus.topic(topic).await.unwrap();
        for subscription in subscriptions {
            self.bus.subscription(&opened, subscription, SubscriptionOptions::default()).await.unwrap();
            self.topics.insert((*subscription).to_owned(), topic.to_owned());
        }
    }

    async fn publisher(&mut self, topic: &str) -> Arc<dyn Publisher> {
        Arc::new(self.bus.publisher(&self.bus.topic(topic).await.unwrap()))
    }

    async fn consumer(&mut self, subscription: &str, bounds: Bounds) -> BusConsumer {
        let topic = self.bus.topic(&self.topics[subscription]).await.unwrap();
        let options = SubscriptionOptions {
            max_outstanding_messages: bounds.messages,
            max_outstanding_bytes: bounds.bytes,
            nack_delay: Duration::from_millis(5),
            ..SubscriptionOptions::default()
        };
        let subscription = self.bus.subscription(&topic, subscription, options).await.unwrap();
        self.bus.consumer(&subscription, ConsumerOptions::default())
    }

    async fn reopen(&mut self) {
        self.bus.close().await.unwrap();
        self.bus = open(&self.folder).await;
    }
}

testkit::consumer_suite!(real, crate::on_disk);

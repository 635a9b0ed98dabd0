//! The suite that every bus passes. Its two promises about ids it holds are left out by [`Features::knows_ids`]:
//! Pub/Sub has no idempotent publish.

use crate::{client, options};
use messagepipeline::Publisher;
use pubsub::{Client, ConsumerOptions, Ordering, PubSubConsumer, PublisherOptions};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use testkit::consumer_suite::{self as suite, Bounds, BusUnderTest, Features};
use testkit::servers::{PubSubEmulator, PubSubProject, SubscriptionSettings};

struct OnEmulator {
    project: PubSubProject,
    client: Client,
    settings: SubscriptionSettings,
    /// Subscriptions that have had a consumer.
    consumed: HashSet<String>,
}

fn on_emulator(test: &str, ordered: bool, exactly_once: bool) -> Option<OnEmulator> {
    let emulator = PubSubEmulator::shared(test)?;
    let project = emulator.new_project();
    let client = client(&emulator.endpoint(), &project);
    let settings =
        SubscriptionSettings { ordering: ordered, exactly_once, ..SubscriptionSettings::default() };
    Some(OnEmulator { project, client, settings, consumed: HashSet::new() })
}

impl BusUnderTest for OnEmulator {
    type Consumer = PubSubConsumer;

    fn features(&self) -> Features {
        Features {
            counts_attempts: true,
            ordered: self.settings.ordering,
            knows_ids: false,
            // What a restarted process sees: new connections to the same subscription.
            reopens: true,
            silence: Duration::from_secs(4),
        }
    }

    async fn create(&mut self, topic: &str, subscriptions: &[&str]) {
        self.project.create_topic(topic);
        for subscription in subscriptions {
            self.project.create_subscription(subscription, topic, &self.settings);
        }
    }

    async fn publisher(&mut self, topic: &str) -> Arc<dyn Publisher> {
        let ordering = if self.settings.ordering { Ordering::ByDevice { keys: 1 } } else { Ordering::None };
        Arc::new(self.client.publisher(topic, PublisherOptions { ordering, ..PublisherOptions::default() }))
    }

    async fn consumer(&mut self, subscription: &str, bounds: Bounds) -> PubSubConsumer {
        let options = ConsumerOptions {
            max_outstanding_messages: bounds.messages,
            max_outstanding_bytes: bounds.bytes,
            ..options()
        };
        if !self.consumed.insert(subscription.to_owned()) {
            self.project.end_streams(subscription);
        }
        self.client.consumer(subscription, options)
    }

    async fn reopen(&mut self) {}
}

macro_rules! suite {
    ($how:ident, $ordered:literal, $exactly_once:literal: $($promise:ident)*) => {
        mod $how {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    let test = concat!(stringify!($how), "::", stringify!($promise));
                    let Some(mut bus) = super::on_emulator(test, $ordered, $exactly_once) else { return };
                    super::suite::$promise(&mut bus).await;
                }
            )*
        }
    };
}

suite! { unordered, false, false:
    every_message_comes_as_it_was_published
    each_subscription_receives_all_by_itself
    an_acknowledged_message_never_comes_again
    a_nacked_message_comes_again_with_its_attempt_raised
    a_returned_message_comes_again_with_the_same_attempt
    a_dropped_chunk_comes_again
    only_the_first_verdict_of_a_delivery_counts
    next_loses_nothing_when_it_is_cancelled
    what_is_handed_out_is_bounded_in_messages
    what_is_handed_out_is_bounded_in_bytes
    close_delivers_verdicts_and_gives_back_the_rest
    a_consumer_dropped_without_close_gives_back_the_rest
    a_reopened_bus_delivers_what_was_not_acknowledged
}

suite! { ordered, true, false:
    every_message_comes_as_it_was_published
    messages_of_one_publisher_keep_their_order
    a_dropped_chunk_comes_again
    what_is_handed_out_is_bounded_in_messages
    close_delivers_verdicts_and_gives_back_the_rest
}

suite! { exactly_once, false, true:
    every_message_comes_as_it_was_published
    an_acknowledged_message_never_comes_again
    a_nacked_message_comes_again_with_its_attempt_raised
    only_the_first_verdict_of_a_delivery_counts
    what_is_handed_out_is_bounded_in_messages
    close_delivers_verdicts_and_gives_back_the_rest
    a_consumer_dropped_without_close_gives_back_the_rest
}

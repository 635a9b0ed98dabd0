//! From a replay to a topic on Pub/Sub.

use crate::config::Config;
use crate::output::Failure;
use connectors::{Google, PubSubBus, Window};
use futures_util::future::BoxFuture;
use messagepipeline::{BatchOutcome, Message, Publisher};
use std::sync::Arc;

/// More than the replay publishes at a time: it waits for every answer before it goes on.
const WINDOW: Window = Window { messages: 1_000, bytes: 32 << 20, max_attempts: 1 };

/// Ordering keys where the configuration has none: what follows a message under its key waits for that one's answer.
/// Subscriptions without ordering take no notice.
const KEYS: u32 = 16;

/// A publisher to `topic` on Pub/Sub, which takes each device's messages in order. Those with the ids they had go as such
/// that consumers may have had before.
pub(super) async fn publisher(
    config: &Config,
    topic: &str,
    new_ids: bool,
) -> Result<Arc<dyn Publisher>, Failure> {
    let google = Google::new(&config.google, &std::env::vars().collect()).await.map_err(Failure::failed)?;
    let mut settings = config.bus.pubsub.clone();
    if settings.ordering_keys == 0 {
        settings.ordering_keys = KEYS;
    }
    let bus = PubSubBus::new(&google, &settings).map_err(Failure::failed)?;
    if let Some(why) = bus.trouble_with(topic).await {
        return Err(Failure::failed(why));
    }
    let publisher = bus.publisher(topic, WINDOW);
    Ok(if new_ids { publisher } else { Arc::new(Again(publisher)) })
}

/// Whether `topic`, whatever name it is called by, is that of the dead letters.
pub(super) fn is_of_dead_letters(config: &Config, topic: &str) -> bool {
    let settings = &config.bus.pubsub;
    let short = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let topic = settings.topics.get(topic).map_or(topic, String::as_str);
    short(topic) == short(&settings.dead_letters)
}

/// Pub/Sub knows no ids: without the mark the archive would not look for what it has.
struct Again(Arc<dyn Publisher>);

impl Publisher for Again {
    fn publish(&self, mut messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        messages.iter_mut().for_each(Message::mark_redelivered);
        self.0.publish(messages)
    }
}

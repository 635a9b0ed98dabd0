//! From a replay to the feed, which publishes to a broker.

use crate::feed::{Item, Origin, Publication, Source};
use crate::recording::RecordingError;
use futures_util::future::BoxFuture;
use messagepipeline::{BatchOutcome, Bytes, Message, Publisher, StageError, names};
use std::time::Duration;
use tokio::sync::mpsc;

/// Messages between the two, each up to the largest packet.
const QUEUE: usize = 64;

/// The two ends. The source ends when the publisher is dropped.
pub(super) fn channel() -> (ToFeed, FromReplay) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (ToFeed(sender), FromReplay { receiver, next: None, number: 0 })
}

/// Hands messages to the feed. What it has taken is accounted for by the feed's report.
pub(super) struct ToFeed(mpsc::Sender<Message>);

impl Publisher for ToFeed {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(messages.len());
            for message in messages {
                if message.attributes.get(names::TOPIC).is_none() {
                    let detail = "it names no MQTT topic on which it came";
                    results.push(Err(StageError::permanent("no-topic", detail)));
                } else if self.0.send(message).await.is_err() {
                    let detail = "the connection to the broker has ended";
                    return BatchOutcome::Failed(StageError::configuration("broker", detail));
                } else {
                    results.push(Ok(()));
                }
            }
            BatchOutcome::Each(results)
        })
    }
}

/// What is replayed, as the feed reads it.
pub(super) struct FromReplay {
    receiver: mpsc::Receiver<Message>,
    next: Option<Message>,
    number: u64,
}

impl Source for FromReplay {
    fn next(&mut self) -> Result<Option<Item>, RecordingError> {
        let Some(message) = self.next.take().or_else(|| self.receiver.blocking_recv()) else {
            return Ok(None);
        };
        self.number += 1;
        let topic = message.attributes.get(names::TOPIC).unwrap_or_default();
        let topic = Bytes::copy_from_slice(topic.as_bytes());
        // The replay keeps the pace.
        let publication = Publication::new(self.number, Duration::ZERO, topic, message.payload);
        let origin = Origin { attributes: message.attributes, received_at: message.publish_time };
        Ok(Some(Item::Publish(Publication { origin: Some(Box::new(origin)), ..publication })))
    }

    fn is_ready(&mut self) -> bool {
        if self.next.is_none() {
            self.next = self.receiver.try_recv().ok();
        }
        self.next.is_some()
    }
}

//! A publisher for who does not wait: bytes and attributes in, the outcome in the log.

use crate::budget::{Budget, Share};
use crate::client::{Client, Resource};
use crate::error::PubSubError;
use crate::options::PublisherOptions;
use bytes::Bytes;
use google_cloud_pubsub::client::Publisher as VendorPublisher;
use google_cloud_pubsub::model::Message as VendorMessage;
use google_cloud_pubsub::publisher::PublishFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a message may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes that may wait together, for each message that may.
const BYTES_EACH: usize = 16 * 1_024;

/// Publishes bytes without waiting; see [`crate::Client::simple_publisher`].
///
/// Nothing is promised: a message whose publishing fails is logged and gone. The data path does not use it.
#[derive(Debug)]
pub struct SimplePublisher {
    budget: Budget,
    most: usize,
    sender: Option<mpsc::Sender<(VendorMessage, Share)>>,
    task: JoinHandle<()>,
    failed: Arc<AtomicUsize>,
}

impl SimplePublisher {
    pub(crate) fn new(client: Client, topic: Resource, max_outstanding: usize) -> Self {
        let most = max_outstanding.max(1);
        let (sender, receiver) = mpsc::channel(most);
        let failed = Arc::new(AtomicUsize::new(0));
        let work = Worker { client, topic, failed: Arc::clone(&failed) };
        Self {
            budget: Budget::new(most, most.saturating_mul(BYTES_EACH)),
            most,
            sender: Some(sender),
            task: tokio::spawn(work.run(receiver)),
            failed,
        }
    }

    /// Hands over a message and returns at once.
    ///
    /// # Errors
    /// [`PubSubError::Full`] when too much waits already; the message was not taken.
    pub fn publish(&self, payload: Bytes, attributes: &[(&str, &str)]) -> Result<(), PubSubError> {
        let full = PubSubError::Full(self.most);
        let weight =
            payload.len() + attributes.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        let Some(share) = self.budget.try_take(1, weight) else { return Err(full) };
        let message = VendorMessage::new().set_data(payload).set_attributes(attributes.iter().copied());
        let Some(sender) = &self.sender else { return Err(PubSubError::Closed) };
        sender.try_send((message, share)).map_err(|_| full)
    }

    /// Messages that were taken and failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failed.load(Ordering::Relaxed)
    }

    /// Takes nothing more and waits for the answers, at most `deadline`.
    ///
    /// # Errors
    /// When not everything was answered in time, or something failed.
    pub async fn stop(mut self, deadline: Duration) -> Result<(), PubSubError> {
        self.sender = None;
        let late = PubSubError::VerdictsLost("not every message was answered in time".to_owned());
        let Ok(_) = timeout(deadline, &mut self.task).await else {
            self.task.abort();
            return Err(late);
        };
        match self.failed() {
            0 => Ok(()),
            count => Err(PubSubError::VerdictsLost(format!("{count} messages were not published"))),
        }
    }
}

struct Worker {
    client: Client,
    topic: Resource,
    failed: Arc<AtomicUsize>,
}

impl Worker {
    /// Publishes what comes; answers are waited for in order, beside it.
    async fn run(self, mut receiver: mpsc::Receiver<(VendorMessage, Share)>) {
        let (sender, answers) = mpsc::channel(receiver.max_capacity());
        let topic = self.topic.full().to_owned();
        let waiting = tokio::spawn(answer_all(answers, topic, Arc::clone(&self.failed)));
        let mut vendor = None;
        while let Some((message, share)) = receiver.recv().await {
            if let Some(answer) = self.hand_over(&mut vendor, message).await
                && sender.send((answer, share)).await.is_err()
            {
                break;
            }
        }
        drop(sender);
        // A panic in it has been reported by the runtime.
        let _ = waiting.await;
    }

    async fn hand_over(
        &self,
        vendor: &mut Option<VendorPublisher>,
        message: VendorMessage,
    ) -> Option<PublishFuture> {
        if vendor.is_none() {
            let options = PublisherOptions { deadline: DEADLINE, ..PublisherOptions::default() };
            match self.client.connect_publisher(&self.topic, &options).await {
                Ok(made) => *vendor = Some(made),
                Err(error) => report(self.topic.full(), &self.failed, &error.to_string()),
            }
        }
        vendor.as_ref().map(|vendor| vendor.publish(message))
    }
}

async fn answer_all(
    mut answers: mpsc::Receiver<(PublishFuture, Share)>,
    topic: String,
    failed: Arc<AtomicUsize>,
) {
    while let Some((answer, share)) = answers.recv().await {
        match timeout(DEADLINE, answer).await {
            Ok(Ok(id)) => tracing::debug!(topic, pubsub_id = id, "published"),
            Ok(Err(error)) => report(&topic, &failed, &error.to_string()),
            Err(_) => report(&topic, &failed, "no answer in time"),
        }
        drop(share);
    }
}

fn report(topic: &str, failed: &AtomicUsize, error: &str) {
    failed.fetch_add(1, Ordering::Relaxed);
    tracing::warn!(topic, error, "a message was not published");
}

//! Topics and subscriptions: whether they are there, and making them. Needs more rights than the data path.

use crate::client::Client;
use crate::error::PubSubError;
use google_cloud_gax::error::rpc::Code;
use google_cloud_pubsub::Error as VendorError;
use google_cloud_pubsub::model::{DeadLetterPolicy, ExpirationPolicy, RetryPolicy};
use google_cloud_wkt::Duration as WireDuration;
use std::time::Duration;

/// Deadline of one request.
const DEADLINE: Duration = Duration::from_secs(30);

/// A subscription that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionSpec {
    /// Its name.
    pub name: String,
    /// The topic it receives.
    pub topic: String,
    /// How long a delivery may go without a sign of life, 10 to 600 s. Default 60 s.
    pub ack_deadline: Duration,
    /// Whether the service promises not to deliver again what it confirmed.
    pub exactly_once: bool,
    /// Whether messages with the same ordering key come in their order.
    pub ordering: bool,
    /// A topic for what the service itself gives up after so many deliveries (5 to 100).
    pub dead_letters: Option<(String, u32)>,
    /// Least and longest wait before what was given back is delivered again. Default 1 s and 60 s; the service allows
    /// up to 600 s.
    pub redelivery_delay: (Duration, Duration),
}

impl SubscriptionSpec {
    /// An ordinary subscription `name` of `topic`.
    #[must_use]
    pub fn new(name: impl Into<String>, topic: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            topic: topic.into(),
            ack_deadline: Duration::from_secs(60),
            exactly_once: false,
            ordering: false,
            dead_letters: None,
            redelivery_delay: (Duration::from_secs(1), Duration::from_secs(60)),
        }
    }
}

impl Client {
    /// Whether `topic` is there.
    ///
    /// # Errors
    /// When the service cannot be asked, or the credentials may not (`pubsub.topics.get`).
    pub async fn topic_exists(&self, topic: &str) -> Result<bool, PubSubError> {
        let topic = self.resource("topic", topic);
        let request = self.topic_admin().await?.get_topic().set_topic(topic.checked()?);
        found(topic.full(), in_time(topic.full(), request.send()).await?)
    }

    /// Makes `topic`; `false` when it is there already.
    ///
    /// # Errors
    /// When the service cannot be asked, or the credentials may not (`pubsub.topics.create`).
    pub async fn create_topic(&self, topic: &str) -> Result<bool, PubSubError> {
        let topic = self.resource("topic", topic);
        let request = self.topic_admin().await?.create_topic().set_name(topic.checked()?);
        created(topic.full(), in_time(topic.full(), request.send()).await?)
    }

    /// Whether `subscription` is there.
    ///
    /// # Errors
    /// When the service cannot be asked, or the credentials may not (`pubsub.subscriptions.get`).
    pub async fn subscription_exists(&self, subscription: &str) -> Result<bool, PubSubError> {
        let subscription = self.resource("subscription", subscription);
        let admin = self.subscription_admin().await?;
        let request = admin.get_subscription().set_subscription(subscription.checked()?);
        found(subscription.full(), in_time(subscription.full(), request.send()).await?)
    }

    /// Makes the subscription of `spec`, which stays until somebody deletes it, however long nobody reads it (the service
    /// would delete it with all it holds after 31 days); `false` when one of that name is there already, which stays as it is.
    ///
    /// # Errors
    /// When the service cannot be asked, or the credentials may not (`pubsub.subscriptions.create` and
    /// `pubsub.topics.attachSubscription`).
    pub async fn create_subscription(&self, spec: &SubscriptionSpec) -> Result<bool, PubSubError> {
        let subscription = self.resource("subscription", &spec.name);
        let topic = self.resource("topic", &spec.topic);
        let (least, longest) = spec.redelivery_delay;
        let retry = RetryPolicy::new()
            .set_minimum_backoff(wire_duration(least))
            .set_maximum_backoff(wire_duration(longest));
        let admin = self.subscription_admin().await?;
        let mut request = admin
            .create_subscription()
            .set_name(subscription.checked()?)
            .set_topic(topic.checked()?)
            .set_ack_deadline_seconds(i32::try_from(spec.ack_deadline.as_secs()).unwrap_or(i32::MAX))
            .set_enable_exactly_once_delivery(spec.exactly_once)
            .set_enable_message_ordering(spec.ordering)
            // Without a time in it it means never; without the policy, 31 days.
            .set_expiration_policy(ExpirationPolicy::new())
            .set_retry_policy(retry);
        if let Some((topic, attempts)) = &spec.dead_letters {
            let policy = DeadLetterPolicy::new()
                .set_dead_letter_topic(self.resource("topic", topic).checked()?)
                .set_max_delivery_attempts(i32::try_from(*attempts).unwrap_or(i32::MAX));
            request = request.set_dead_letter_policy(policy);
        }
        created(subscription.full(), in_time(subscription.full(), request.send()).await?)
    }
}

fn wire_duration(duration: Duration) -> WireDuration {
    let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    WireDuration::clamp(seconds, i32::try_from(duration.subsec_nanos()).unwrap_or(0))
}

async fn in_time<T>(
    resource: &str,
    request: impl Future<Output = Result<T, VendorError>>,
) -> Result<Result<T, VendorError>, PubSubError> {
    let timeout = |_| PubSubError::Timeout { resource: resource.to_owned(), after: DEADLINE };
    tokio::time::timeout(DEADLINE, request).await.map_err(timeout)
}

fn found<T>(resource: &str, answer: Result<T, VendorError>) -> Result<bool, PubSubError> {
    unless(Code::NotFound, resource, answer)
}

fn created<T>(resource: &str, answer: Result<T, VendorError>) -> Result<bool, PubSubError> {
    unless(Code::AlreadyExists, resource, answer)
}

/// `false` for the answer `code`.
fn unless<T>(code: Code, resource: &str, answer: Result<T, VendorError>) -> Result<bool, PubSubError> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if error.status().is_some_and(|status| status.code == code) => Ok(false),
        Err(error) => Err(PubSubError::from_vendor(resource, &error)),
    }
}

//! The vendor's clients, put together: the only place that knows how.

use crate::error::{PubSubError, with_causes};
use crate::options::{ConsumerOptions, PubSubOptions, PublisherOptions};
use crate::{LetterReader, PubSubConsumer, PubSubDeadLetters, PubSubPublisher, SimplePublisher};
use google_cloud_gax::client_builder::Error as BuildError;
use google_cloud_gax::retry_policy::RetryPolicyExt;
use google_cloud_pubsub::client::{Publisher, Subscriber, SubscriptionAdmin, TopicAdmin};
use google_cloud_pubsub::retry_policy::RetryableErrors;
use google_cloud_pubsub::subscriber::{MessageStream, ShutdownBehavior};
use std::sync::Arc;
use std::time::Duration;

/// Makes consumers and publishers of one project. It opens nothing and asks for nothing: a topic or subscription that
/// is missing shows when it is used, so that rights to publish and to subscribe are enough.
#[derive(Clone, Debug)]
pub struct Client(Arc<PubSubOptions>);

impl Client {
    /// A client. Cloning shares it.
    #[must_use]
    pub fn new(options: PubSubOptions) -> Self {
        Self(Arc::new(options))
    }

    /// Consumes `subscription`, a name in the client's project or `projects/P/subscriptions/S`.
    #[must_use]
    pub fn consumer(&self, subscription: &str, options: ConsumerOptions) -> PubSubConsumer {
        PubSubConsumer::new(self.clone(), self.resource("subscription", subscription), options)
    }

    /// Publishes to `topic`, a name in the client's project or `projects/P/topics/T`.
    #[must_use]
    pub fn publisher(&self, topic: &str, options: PublisherOptions) -> PubSubPublisher {
        PubSubPublisher::new(self.clone(), self.resource("topic", topic), options)
    }

    /// Publishes bytes to `topic` without waiting for the answer; at most `max_outstanding` messages wait for theirs.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn simple_publisher(&self, topic: &str, max_outstanding: usize) -> SimplePublisher {
        SimplePublisher::new(self.clone(), self.resource("topic", topic), max_outstanding)
    }

    /// Keeps dead letters and skips on `topic`. A topic without a subscription keeps nothing: create one with it.
    #[must_use]
    pub fn dead_letters(&self, topic: &str) -> PubSubDeadLetters {
        PubSubDeadLetters::new(self.publisher(topic, PublisherOptions::default()))
    }

    /// Lists what lies in `subscription` of a dead letter topic and leaves it there.
    #[must_use]
    pub fn letters(&self, subscription: &str) -> LetterReader {
        LetterReader::new(self.clone(), self.resource("subscription", subscription))
    }

    /// The full name of a topic or subscription.
    pub(crate) fn resource(&self, kind: &'static str, name: &str) -> Resource {
        let full = if name.starts_with("projects/") {
            name.to_owned()
        } else {
            format!("projects/{}/{kind}s/{name}", self.0.project)
        };
        Resource { kind, full }
    }

    /// A connection of its own to publish over.
    pub(crate) async fn connect_publisher(
        &self,
        topic: &Resource,
        options: &PublisherOptions,
    ) -> Result<Publisher, PubSubError> {
        let mut builder = Publisher::builder(topic.checked()?)
            .with_credentials(self.0.credentials.clone())
            .with_retry_policy(RetryableErrors.with_time_limit(options.deadline))
            .set_message_count_threshold(options.batch_messages)
            .set_byte_threshold(options.batch_bytes)
            .set_delay_threshold(options.batch_delay);
        if let Some(endpoint) = &self.0.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        builder.build().await.map_err(setup)
    }

    /// A stream on a connection of its own. It connects when it is first asked for a message.
    pub(crate) async fn open_stream(
        &self,
        subscription: &Resource,
        limits: StreamLimits,
    ) -> Result<MessageStream, PubSubError> {
        let name = subscription.checked()?;
        let mut builder = Subscriber::builder().with_credentials(self.0.credentials.clone());
        if let Some(endpoint) = &self.0.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let subscriber = builder.build().await.map_err(setup)?;
        let stream = subscriber
            .subscribe(name)
            .set_max_outstanding_messages(limits.messages)
            .set_max_outstanding_bytes(limits.bytes)
            .set_max_lease_extension(limits.extension)
            .set_max_lease(limits.lease)
            // Acknowledgements of a stream that failed must still go out; what has no verdict is given back here.
            .set_shutdown_behavior(ShutdownBehavior::WaitForProcessing)
            .build();
        Ok(stream)
    }

    pub(crate) async fn topic_admin(&self) -> Result<TopicAdmin, PubSubError> {
        let mut builder = TopicAdmin::builder().with_credentials(self.0.credentials.clone());
        if let Some(endpoint) = &self.0.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        builder.build().await.map_err(setup)
    }

    pub(crate) async fn subscription_admin(&self) -> Result<SubscriptionAdmin, PubSubError> {
        let mut builder = SubscriptionAdmin::builder().with_credentials(self.0.credentials.clone());
        if let Some(endpoint) = &self.0.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        builder.build().await.map_err(setup)
    }
}

fn setup(error: BuildError) -> PubSubError {
    PubSubError::Setup(with_causes(&error))
}

/// What a stream asks of the service. Zero or less is no bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamLimits {
    pub(crate) messages: i64,
    pub(crate) bytes: i64,
    pub(crate) extension: Duration,
    pub(crate) lease: Duration,
}

/// A topic or subscription by its full name, which may be one that cannot be.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    kind: &'static str,
    full: String,
}

impl Resource {
    /// As it was given, for messages and labels.
    pub(crate) fn full(&self) -> &str {
        &self.full
    }

    /// The last part.
    pub(crate) fn short(&self) -> &str {
        self.full.rsplit('/').next().unwrap_or(&self.full)
    }

    /// The full name.
    ///
    /// # Errors
    /// When nothing can be called so. The service would answer that the request is invalid, which could not be told
    /// from an invalid message.
    pub(crate) fn checked(&self) -> Result<&str, PubSubError> {
        let parts: Vec<&str> = self.full.split('/').collect();
        let why = match parts[..] {
            ["projects", project, kind, name] if kind.strip_suffix('s') == Some(self.kind) => {
                if project.is_empty() {
                    Some("the project is missing".to_owned())
                } else {
                    name_mistake(name)
                }
            }
            _ => Some(format!("a full name has the form projects/PROJECT/{}s/NAME", self.kind)),
        };
        match why {
            None => Ok(&self.full),
            Some(why) => Err(PubSubError::Name { kind: self.kind, name: self.full.clone(), why }),
        }
    }
}

/// Why nothing in Pub/Sub can be called `name`, if so: <https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names>.
#[must_use]
pub fn name_mistake(name: &str) -> Option<String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.~+%".contains(c);
    if !(3..=255).contains(&name.len()) {
        return Some(format!("a name has 3 to 255 characters, this one {}", name.len()));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return Some("a name begins with a letter".to_owned());
    }
    if name.starts_with("goog") {
        return Some("names that begin with `goog` are Google's".to_owned());
    }
    let wrong = name.chars().find(|c| !is_allowed(*c))?;
    Some(format!("`{wrong}` is not allowed; letters, digits and -_.~+% are"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_cannot_be_is_a_mistake_of_configuration_and_says_what_would_be_right() {
        for good in ["raw", "raw.v1-x_y~z+%", "projects/other/topics/raw"] {
            let resource = Resource { kind: "topic", full: full(good) };
            assert_eq!(resource.checked().unwrap(), resource.full());
        }
        for bad in
            ["ab", "1raw", "google", "a/b", "räw", "projects/p/subscriptions/raw", "projects//topics/raw"]
        {
            let error = Resource { kind: "topic", full: full(bad) }.checked().unwrap_err();
            assert_eq!(error.class(), messagepipeline::ErrorClass::Configuration, "{bad}");
        }
    }

    fn full(name: &str) -> String {
        if name.starts_with("projects/") { name.to_owned() } else { format!("projects/p/topics/{name}") }
    }
}

//! The bus on Google Pub/Sub.

use crate::topics;
use crate::{ConnectError, Google, PubSubConfig, Window, WireForm};
use ::pubsub::{
    Client, ConsumerOptions, LetterReader, Ordering, PubSubDeadLetters, PubSubOptions, PubSubPublisher,
    PublisherOptions, SubscriptionSpec, Wire,
};
use messagepipeline::{BoxConsumer, DeadLetters, Publisher};
use service_kit::program::Program;
use std::convert::Infallible;
use std::sync::Arc;

/// Publishers, consumers and dead letters on Pub/Sub. Cloning shares them.
#[derive(Clone, Debug)]
pub struct PubSubBus {
    client: Client,
    config: Arc<PubSubConfig>,
}

impl PubSubBus {
    /// The bus of the project. Opens nothing.
    ///
    /// # Errors
    /// When there are no credentials.
    pub fn new(google: &Google, config: &PubSubConfig) -> Result<Self, ConnectError> {
        let endpoint = google.pubsub_endpoint();
        let credentials = google.credentials(endpoint.as_deref())?;
        let client =
            Client::new(PubSubOptions { project: google.project().to_owned(), endpoint, credentials });
        Ok(Self { client, config: Arc::new(config.clone()) })
    }

    /// Name of `topic` in the project.
    #[must_use]
    pub fn topic<'a>(&'a self, topic: &'a str) -> &'a str {
        self.config.topics.get(topic).map_or(topic, String::as_str)
    }

    /// Name of the subscription of `service` in the project.
    #[must_use]
    pub fn subscription<'a>(&'a self, service: &'a str) -> &'a str {
        self.config.subscriptions.get(service).map_or(service, String::as_str)
    }

    /// Creates what is not there, where the configuration says so. `subscribed` is a topic and the service that reads
    /// it.
    ///
    /// # Errors
    /// When something is missing and cannot be created.
    pub async fn create(
        &self,
        topics: &[&str],
        subscribed: Option<(&str, &str)>,
    ) -> Result<(), ConnectError> {
        if !self.config.create {
            return Ok(());
        }
        for topic in topics {
            self.client.create_topic(self.topic(topic)).await?;
        }
        let letters = self.config.dead_letters.as_str();
        self.client.create_topic(letters).await?;
        let reader = SubscriptionSpec::new(&self.config.dead_letters_reader, letters);
        self.client.create_subscription(&reader).await?;
        if let Some((topic, service)) = subscribed {
            self.client.create_topic(self.topic(topic)).await?;
            let mut spec = SubscriptionSpec::new(self.subscription(service), self.topic(topic));
            spec.ordering = self.config.ordering_keys > 0;
            self.client.create_subscription(&spec).await?;
        }
        Ok(())
    }

    /// Looks at `topic` in a task of `program` that has a line of its own on the health board: why nothing can be published
    /// there. Whoever may not look is taken for somebody whose topic is there.
    pub fn watch_topic(&self, topic: &str, program: &mut Program) {
        let stage = format!("topic {topic}");
        let (bus, name, shutdown) = (self.clone(), self.topic(topic).to_owned(), program.shutdown.clone());
        let health = program.health.stage(stage.clone());
        program.tasks.spawn(stage, async move {
            topics::watch(&name, || bus.client.topic_exists(&name), &health, &shutdown).await;
            Ok::<_, Infallible>(())
        });
    }

    /// Why nothing can be published to `topic` now, as far as a look at it can tell.
    pub async fn trouble_with(&self, topic: &str) -> Option<String> {
        let name = self.topic(topic);
        topics::trouble(name, self.client.topic_exists(name)).await
    }

    /// The service whose subscription is called `name` in the project, with or without the project before it.
    #[must_use]
    pub fn service_of<'a>(&'a self, name: &'a str) -> &'a str {
        let short = |name: &'a str| name.rsplit('/').next().unwrap_or(name);
        let known = self.config.subscriptions.iter().find(|(_, known)| short(known) == short(name));
        known.map_or(short(name), |(service, _)| service)
    }

    /// A publisher to `topic`.
    #[must_use]
    pub fn publisher(&self, topic: &str, window: Window) -> Arc<dyn Publisher> {
        Arc::new(self.republisher(topic, window))
    }

    /// The same, which can also publish for one service alone what that one gave up.
    #[must_use]
    pub fn republisher(&self, topic: &str, window: Window) -> PubSubPublisher {
        let config = &self.config;
        let options = PublisherOptions {
            wire: match config.wire {
                WireForm::Binary => Wire::Binary,
                WireForm::Json => Wire::Json,
            },
            max_outstanding_messages: window.messages,
            max_outstanding_bytes: window.bytes,
            batch_delay: config.publish_delay.get(),
            ordering: match config.ordering_keys {
                0 => Ordering::None,
                keys => Ordering::ByDevice { keys },
            },
            deadline: config.publish_timeout.get(),
            ..PublisherOptions::default()
        };
        self.client.publisher(self.topic(topic), options)
    }

    /// A consumer of the subscription of `service`.
    #[must_use]
    pub fn consumer(&self, service: &str, window: Window) -> BoxConsumer {
        let options = ConsumerOptions {
            max_outstanding_messages: window.messages,
            max_outstanding_bytes: window.bytes,
            streams: self.config.streams as usize,
            lease_extension: self.config.lease_extension.get(),
            max_lease: self.config.max_lease.get(),
            service: Some(service.to_owned()),
            seed: service_kit::random_seed(),
            ..ConsumerOptions::default()
        };
        BoxConsumer::new(self.client.consumer(self.subscription(service), options))
    }

    /// Where stages give messages up.
    #[must_use]
    pub fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(self.kept_letters())
    }

    /// The same, for who also writes down what a person drops.
    #[must_use]
    pub fn kept_letters(&self) -> PubSubDeadLetters {
        self.client.dead_letters(&self.config.dead_letters)
    }

    /// Reads what was given up.
    #[must_use]
    pub fn letters(&self) -> LetterReader {
        self.client.letters(&self.config.dead_letters_reader)
    }
}

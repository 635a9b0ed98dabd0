//! Google's Pub/Sub emulator.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::server::Description;
use super::{Server, find_emulator, find_program, http, left_out};

/// A Pub/Sub emulator, which lives as long as this value. It keeps every message in memory, has no IAM, ignores flow
/// control and forgets all it has when it ends.
#[derive(Debug)]
pub struct PubSubEmulator {
    server: Server,
    projects: AtomicU32,
}

impl PubSubEmulator {
    /// Starts an emulator. `None` means that it or Java is not installed, which has been said with the name of `test`.
    ///
    /// # Panics
    /// When it is installed but does not start, or is required and not installed.
    #[must_use]
    pub fn start(test: &str) -> Option<Self> {
        let java = find_program("java").or_else(|| left_out(test, "java"))?;
        let program = find_emulator("pubsub-emulator/lib", "-all.jar");
        let program = program.or_else(|| left_out(test, "the Pub/Sub emulator of the Google Cloud CLI"))?;
        let description = Description {
            name: "the Pub/Sub emulator",
            ports: 1,
            command: Box::new(move |_folder, ports| {
                let mut command = Command::new(&java);
                command.args(["-Xmx1g", "-jar"]).arg(&program);
                command.args(["--host=127.0.0.1", &format!("--port={}", ports[0])]);
                Ok(command)
            }),
            ready: Box::new(|ports| {
                http::request(ports[0], "GET", "/", None).is_ok_and(|answer| answer.status == 200)
            }),
        };
        let folder = tempfile::tempdir().expect("a temporary folder");
        Some(Self { server: Server::start(description, folder), projects: AtomicU32::new(0) })
    }

    /// The emulator that all tests of this process share, started by the first: it is heavy, and a project for each test
    /// keeps them apart.
    ///
    /// # Panics
    /// As [`PubSubEmulator::start`].
    #[must_use]
    pub fn shared(test: &str) -> Option<&'static Self> {
        static SHARED: OnceLock<Option<PubSubEmulator>> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(test)).as_ref().or_else(|| left_out(test, "the Pub/Sub emulator"))
    }

    /// Its address as a client's endpoint: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// A project that no other test uses.
    #[must_use]
    pub fn new_project(&self) -> PubSubProject {
        self.project(&format!("test-{}", self.projects.fetch_add(1, Ordering::Relaxed)))
    }

    /// The project called `name`; projects need not be made.
    #[must_use]
    pub fn project(&self, name: &str) -> PubSubProject {
        PubSubProject { port: self.server.port(), name: name.to_owned() }
    }
}

impl Deref for PubSubEmulator {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl DerefMut for PubSubEmulator {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.server
    }
}

/// How a subscription is made; the fields are those of the service's REST interface
/// (<https://cloud.google.com/pubsub/docs/reference/rest/v1/projects.subscriptions>).
#[derive(Debug, Clone)]
pub struct SubscriptionSettings {
    /// How long a message is out before it is delivered again: 10 s to 600 s.
    pub ack_deadline: Duration,
    /// `enableExactlyOnceDelivery`.
    pub exactly_once: bool,
    /// `enableMessageOrdering`.
    pub ordering: bool,
    /// The topic that takes what was delivered this many times, 5 to 100, without an ack. The emulator never forwards
    /// from a subscription with ordering.
    pub dead_letters: Option<(String, u32)>,
    /// Shortest and longest pause before a nacked message comes again; `None` delivers at once.
    pub retry: Option<(Duration, Duration)>,
}

impl Default for SubscriptionSettings {
    fn default() -> Self {
        Self {
            ack_deadline: Duration::from_secs(10),
            exactly_once: false,
            ordering: false,
            dead_letters: None,
            retry: None,
        }
    }
}

/// A message to publish: payload and attributes.
pub type Publication<'a> = (&'a [u8], &'a [(&'a str, &'a str)]);

/// A message as it was pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its payload.
    pub data: Vec<u8>,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// The service's id.
    pub message_id: String,
    /// Its ordering key, empty without one.
    pub ordering_key: String,
    /// Which delivery this is, counted from 1; 0 where the subscription has no dead letter policy.
    pub delivery_attempt: u64,
    ack_id: String,
}

/// One project on the emulator. Names of topics and subscriptions have at least 3 characters and come without
/// `projects/…/`.
#[derive(Debug, Clone)]
pub struct PubSubProject {
    port: u16,
    name: String,
}

impl PubSubProject {
    /// The project's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The full name of a topic: `projects/…/topics/…`.
    #[must_use]
    pub fn topic(&self, topic: &str) -> String {
        format!("projects/{}/topics/{topic}", self.name)
    }

    /// The full name of a subscription: `projects/…/subscriptions/…`.
    #[must_use]
    pub fn subscription(&self, subscription: &str) -> String {
        format!("projects/{}/subscriptions/{subscription}", self.name)
    }

    /// Makes a topic.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn create_topic(&self, topic: &str) {
        self.call("PUT", &self.topic(topic), &json!({}));
    }

    /// Makes a topic that takes only JSON documents of an Avro schema; it refuses a request with one that is not.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn create_topic_with_schema(&self, topic: &str, avro: &Value) {
        let schema = format!("projects/{}/schemas/{topic}-schema", self.name);
        let body = json!({"type": "AVRO", "definition": avro.to_string()});
        self.call("POST", &format!("projects/{}/schemas?schemaId={topic}-schema", self.name), &body);
        let settings = json!({"schemaSettings": {"schema": schema, "encoding": "JSON"}});
        self.call("PUT", &self.topic(topic), &settings);
    }

    /// Deletes a topic; its subscriptions stay without one.
    ///
    /// # Panics
    /// When it cannot be deleted.
    pub fn delete_topic(&self, topic: &str) {
        self.call("DELETE", &self.topic(topic), &json!({}));
    }

    /// Makes a subscription; it gets what is published from now on.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn create_subscription(&self, subscription: &str, topic: &str, settings: &SubscriptionSettings) {
        let mut body = json!({
            "topic": self.topic(topic),
            "ackDeadlineSeconds": settings.ack_deadline.as_secs(),
            "enableExactlyOnceDelivery": settings.exactly_once,
            "enableMessageOrdering": settings.ordering,
        });
        if let Some((topic, attempts)) = &settings.dead_letters {
            body["deadLetterPolicy"] =
                json!({"deadLetterTopic": self.topic(topic), "maxDeliveryAttempts": attempts});
        }
        if let Some((shortest, longest)) = settings.retry {
            let seconds = |pause: Duration| format!("{:.3}s", pause.as_secs_f64());
            body["retryPolicy"] =
                json!({"minimumBackoff": seconds(shortest), "maximumBackoff": seconds(longest)});
        }
        self.call("PUT", &self.subscription(subscription), &body);
    }

    /// A subscription as the service describes it.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    pub fn describe_subscription(&self, subscription: &str) -> Value {
        http::call(self.port, "GET", &format!("/v1/{}", self.subscription(subscription)), None)
    }

    /// Deletes a subscription with all it holds.
    ///
    /// # Panics
    /// When it cannot be deleted.
    pub fn delete_subscription(&self, subscription: &str) {
        self.call("DELETE", &self.subscription(subscription), &json!({}));
    }

    /// Publishes payloads with their attributes and answers the service's ids, in order.
    ///
    /// # Panics
    /// When they cannot be published; at most 1,000 at once.
    pub fn publish(&self, topic: &str, messages: &[Publication<'_>]) -> Vec<String> {
        let message = |(data, attributes): &Publication<'_>| {
            let attributes: BTreeMap<&str, &str> = attributes.iter().copied().collect();
            json!({"data": base64_simd::STANDARD.encode_to_string(data), "attributes": attributes})
        };
        let messages: Vec<Value> = messages.iter().map(message).collect();
        let answer =
            self.call("POST", &format!("{}:publish", self.topic(topic)), &json!({"messages": messages}));
        let ids = answer["messageIds"].as_array().cloned().unwrap_or_default();
        ids.iter().filter_map(|id| Some(id.as_str()?.to_owned())).collect()
    }

    /// Takes up to `most` messages that are there, without acknowledging them. An empty answer does not prove that
    /// there is none: what is out with another reader comes back at its deadline.
    ///
    /// # Panics
    /// When the emulator does not answer.
    #[must_use]
    pub fn pull(&self, subscription: &str, most: usize) -> Vec<Pulled> {
        let body = json!({"maxMessages": most, "returnImmediately": true});
        let answer = self.call("POST", &format!("{}:pull", self.subscription(subscription)), &body);
        let messages = answer["receivedMessages"].as_array().cloned().unwrap_or_default();
        messages.iter().map(pulled).collect()
    }

    /// Acknowledges what was pulled.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub fn acknowledge(&self, subscription: &str, messages: &[Pulled]) {
        let ids: Vec<&str> = messages.iter().map(|message| message.ack_id.as_str()).collect();
        if !ids.is_empty() {
            self.call(
                "POST",
                &format!("{}:acknowledge", self.subscription(subscription)),
                &json!({"ackIds": ids}),
            );
        }
    }

    /// Gives back what was pulled; it comes again after the pause of the retry policy.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub fn give_back(&self, subscription: &str, messages: &[Pulled]) {
        let ids: Vec<&str> = messages.iter().map(|message| message.ack_id.as_str()).collect();
        if !ids.is_empty() {
            let body = json!({"ackIds": ids, "ackDeadlineSeconds": 0});
            self.call("POST", &format!("{}:modifyAckDeadline", self.subscription(subscription)), &body);
        }
    }

    /// Pulls and acknowledges until `count` messages have come, or none has for `patience`.
    ///
    /// # Panics
    /// When the emulator does not answer.
    #[must_use]
    pub fn drain(&self, subscription: &str, count: usize, patience: Duration) -> Vec<Pulled> {
        let mut messages = Vec::new();
        let mut last = std::time::Instant::now();
        while messages.len() < count && last.elapsed() < patience {
            let some = self.pull(subscription, 1_000);
            self.acknowledge(subscription, &some);
            if some.is_empty() {
                std::thread::sleep(Duration::from_millis(20));
            } else {
                last = std::time::Instant::now();
                messages.extend(some);
            }
        }
        messages
    }

    /// Ends all streams of a subscription, also those whose client is gone. The emulator notices no lost connection: for
    /// 90 s it goes on delivering to a stream that nobody reads, and others have those messages only when their lease has
    /// run out. Streams that are alive are opened again by their clients.
    ///
    /// # Panics
    /// When the emulator does not answer.
    pub fn end_streams(&self, subscription: &str) {
        let name = format!("{}:modifyPushConfig", self.subscription(subscription));
        // It looks every 50 ms whether the subscription is still one to pull from.
        self.call("POST", &name, &json!({"pushConfig": {"pushEndpoint": "http://127.0.0.1:1/"}}));
        std::thread::sleep(Duration::from_millis(250));
        self.call("POST", &name, &json!({"pushConfig": {}}));
    }

    fn call(&self, method: &str, name: &str, body: &Value) -> Value {
        http::call(self.port, method, &format!("/v1/{name}"), Some(body))
    }
}

fn pulled(received: &Value) -> Pulled {
    let message = &received["message"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let attributes = message["attributes"].as_object();
    let data = message["data"].as_str().unwrap_or_default();
    Pulled {
        data: base64_simd::STANDARD.decode_to_vec(data).expect("the emulator's Base64"),
        attributes: attributes
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.clone(), text(value)))
            .collect(),
        message_id: text(&message["messageId"]),
        ordering_key: text(&message["orderingKey"]),
        delivery_attempt: received["deliveryAttempt"].as_u64().unwrap_or_default(),
        ack_id: text(&received["ackId"]),
    }
}

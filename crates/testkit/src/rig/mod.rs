//! The rig: everything that the four services talk to, on free loopback ports of one machine.
//!
//! ```text
//! mosquitto ─► ingestion ─► raw ─► enrichment ─► enriched ─┬─► bigquery ─► BigQuery emulator
//!                                  │ Redis                 └─► icestore ─► Cloud Storage fake
//!                                  │ Firestore emulator
//!              Pub/Sub emulator: raw, enriched, dead-letters
//! ```
//!
//! The program `rig` (`tests/rig`) starts one for people; the end-to-end tests use the same code.

mod configuration;
mod devices;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::configuration::Configuration;
pub use self::devices::DeviceFileError;

use crate::gcs_fake::GcsFake;
use crate::servers::{
    BigQueryEmulator, FirestoreEmulator, Mosquitto, PubSubEmulator, PubSubProject, Redis,
    SubscriptionSettings,
};

/// Google project of every emulator.
pub const PROJECT: &str = "millstream-rig";
/// Topic that ingestion publishes to.
pub const RAW: &str = "raw";
/// Topic that enrichment publishes to.
pub const ENRICHED: &str = "enriched";
/// Topic of the dead letters.
pub const DEAD_LETTERS: &str = "dead-letters";
/// Subscription on the dead letters that the books read.
pub const BOOKS: &str = "books";
/// Dataset of BigQuery.
pub const DATASET: &str = "millstream";
/// Bucket of Cloud Storage.
pub const BUCKET: &str = "millstream-archive";
/// Collection of Firestore with the devices.
pub const DEVICES: &str = "devices";

/// Deliveries after which a subscription itself gives a message up; Pub/Sub allows no more. Outages count here too, so
/// that fewer would drain into the dead letters what is not at fault; the services give up after far fewer of their own.
const DELIVERIES: u32 = 100;

/// How a rig's parts are made.
#[derive(Debug, Clone)]
pub struct RigOptions {
    /// Further lines of mosquitto's configuration.
    pub mosquitto: Vec<String>,
    /// Subscriptions with exactly-once delivery.
    pub exactly_once: bool,
    /// How long a message is out before it is delivered again; 10 s to 600 s.
    pub ack_deadline: Duration,
    /// Bytes of objects that the Cloud Storage fake holds.
    pub storage: usize,
}

impl Default for RigOptions {
    fn default() -> Self {
        Self {
            // The broker keeps what comes while nobody reads, as a broker in front of a fleet would be set.
            mosquitto: vec!["max_queued_messages 0".to_owned()],
            exactly_once: false,
            ack_deadline: Duration::from_secs(10),
            storage: crate::gcs_fake::MEMORY,
        }
    }
}

/// All servers with topics, subscriptions, dataset and bucket; they live as long as this value.
#[derive(Debug)]
pub struct Rig {
    /// The MQTT broker.
    pub mosquitto: Mosquitto,
    /// The shared cache.
    pub redis: Redis,
    /// The bus.
    pub pubsub: PubSubEmulator,
    /// The device registry.
    pub firestore: FirestoreEmulator,
    /// The warehouse.
    pub bigquery: BigQueryEmulator,
    /// The archive.
    pub storage: GcsFake,
    folder: tempfile::TempDir,
}

impl Rig {
    /// Starts all servers at once and makes what the services need. `None` means that one of them is not installed,
    /// which has been said with the name of `test`. The Cloud Storage fake runs in the caller's runtime.
    ///
    /// # Panics
    /// When a server is there and does not start, or is required and not there.
    pub async fn start(test: &str, options: RigOptions) -> Option<Self> {
        let storage = GcsFake::listen(([127, 0, 0, 1], 0).into(), options.storage).await;
        let storage = storage.expect("a free loopback port");
        storage.create_bucket(BUCKET);
        let name = test.to_owned();
        let started = tokio::task::spawn_blocking(move || start_servers(&name, &options)).await;
        let started = started.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let (mosquitto, redis, pubsub, firestore, bigquery) = started?;
        let folder = tempfile::tempdir().expect("a temporary folder");
        Some(Self { mosquitto, redis, pubsub, firestore, bigquery, storage, folder })
    }

    /// The folder of the rig's own files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The project's topics and subscriptions.
    #[must_use]
    pub fn bus(&self) -> PubSubProject {
        self.pubsub.project(PROJECT)
    }

    /// What the services take from their environment: the emulators' addresses and the project.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let plain = |endpoint: String| endpoint.trim_start_matches("http://").to_owned();
        vec![
            ("GOOGLE_CLOUD_PROJECT", PROJECT.to_owned()),
            ("PUBSUB_EMULATOR_HOST", self.pubsub.address()),
            ("FIRESTORE_EMULATOR_HOST", self.firestore.address()),
            ("STORAGE_EMULATOR_HOST", self.storage.endpoint()),
            ("BIGQUERY_EMULATOR_HOST", self.bigquery.rest_endpoint()),
            ("BIGQUERY_STORAGE_EMULATOR_HOST", plain(self.bigquery.grpc_endpoint())),
        ]
    }

    /// The configuration of the four services on this rig.
    #[must_use]
    pub fn configuration(&self) -> Configuration {
        Configuration {
            mqtt_url: self.mosquitto.url(),
            redis_url: self.redis.url(),
            data: self.folder().join("data"),
            extra: String::new(),
        }
    }

    /// Writes [`Rig::configuration`] as `cloud.yaml` into the rig's folder and answers where it lies.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_configuration(&self) -> std::io::Result<PathBuf> {
        let file = self.folder().join("cloud.yaml");
        std::fs::write(&file, self.configuration().to_string())?;
        Ok(file)
    }

    /// Writes the devices of a CSV file, as `millstream devices import` takes it, to Firestore; answers how many. The
    /// first column that is called `device_id` is the document's name, all others are its fields.
    ///
    /// # Errors
    /// When the file cannot be read or has no such column.
    ///
    /// # Panics
    /// When Firestore refuses them.
    pub fn import_devices(&self, file: &Path) -> Result<usize, DeviceFileError> {
        let documents = devices::read(file)?;
        let count = documents.len();
        self.firestore.put_documents(PROJECT, DEVICES, documents);
        Ok(count)
    }
}

type Servers = (Mosquitto, Redis, PubSubEmulator, FirestoreEmulator, BigQueryEmulator);

/// Side by side, because Java takes seconds to start. All are waited for, so that none is left behind half started.
fn start_servers(test: &str, options: &RigOptions) -> Option<Servers> {
    let settings: Vec<&str> = options.mosquitto.iter().map(String::as_str).collect();
    std::thread::scope(|scope| {
        let pubsub = scope.spawn(|| {
            let emulator = PubSubEmulator::start(test)?;
            make_topics(&emulator.project(PROJECT), options);
            Some(emulator)
        });
        let firestore = scope.spawn(|| FirestoreEmulator::start(test));
        let bigquery = scope.spawn(|| {
            let emulator = BigQueryEmulator::start_for(test, PROJECT)?;
            emulator.create_dataset(DATASET);
            Some(emulator)
        });
        let mosquitto = Mosquitto::start(test, &settings);
        let redis = Redis::start(test);
        let pubsub = pubsub.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let firestore = firestore.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let bigquery = bigquery.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Some((mosquitto?, redis?, pubsub?, firestore?, bigquery?))
    })
}

fn make_topics(project: &PubSubProject, options: &RigOptions) {
    for topic in [RAW, ENRICHED, DEAD_LETTERS] {
        project.create_topic(topic);
    }
    let settings = SubscriptionSettings {
        ack_deadline: options.ack_deadline,
        exactly_once: options.exactly_once,
        ordering: false,
        dead_letters: Some((DEAD_LETTERS.to_owned(), DELIVERIES)),
        // With a delay the emulator sorts what was given back one by one under its lock: some thousand messages at the
        // end of a service stop it for minutes.
        retry: None,
    };
    for (subscription, topic) in [("enrichment", RAW), ("bigquery", ENRICHED), ("icestore", ENRICHED)] {
        project.create_subscription(subscription, topic, &settings);
    }
    project.create_subscription(BOOKS, DEAD_LETTERS, &SubscriptionSettings::default());
}

//! A broker and a bus, and ingestion between them with its default settings.

use crate::process::Service;
use std::path::PathBuf;
use testkit::rig::{DEAD_LETTERS, PROJECT, RAW};
use testkit::servers::{Mosquitto, PubSubEmulator, PubSubProject, SubscriptionSettings};

/// The subscription that what arrives is counted on.
pub(crate) const READER: &str = "bench";

/// Servers of one run.
pub(crate) struct Site {
    pub(crate) broker: Mosquitto,
    pub(crate) bus: PubSubEmulator,
    configuration: PathBuf,
    _folder: tempfile::TempDir,
}

impl Site {
    /// Starts broker and emulator and makes the topics; `settings` stand below `ingestion:`. `None` when a server is
    /// missing, which has been said.
    pub(crate) fn start(settings: &str) -> Option<Self> {
        // As a broker before a fleet would be set: it keeps what comes while nobody reads.
        let broker = Mosquitto::start("the bench", &["max_queued_messages 0"])?;
        let bus = PubSubEmulator::start("the bench")?;
        let project = bus.project(PROJECT);
        for topic in [RAW, DEAD_LETTERS] {
            project.create_topic(topic);
        }
        project.create_subscription(READER, RAW, &SubscriptionSettings::default());
        let folder = tempfile::tempdir().unwrap();
        let configuration = folder.path().join("cloud.yaml");
        std::fs::write(&configuration, text(&broker.url(), settings)).unwrap();
        Some(Self { broker, bus, configuration, _folder: folder })
    }

    /// Starts ingestion; one that was here before left its data and its session with the broker.
    pub(crate) fn ingestion(&self) -> Service {
        Service::start("ingestion", &self.configuration, &[("PUBSUB_EMULATOR_HOST", self.bus.address())])
    }

    pub(crate) fn project(&self) -> PubSubProject {
        self.bus.project(PROJECT)
    }
}

/// Nothing but what has no default.
fn text(broker: &str, settings: &str) -> String {
    format!(
        "\
data: data
http:
  listen: 127.0.0.1:0
google:
  project: {PROJECT}
bus:
  kind: pubsub
ingestion:
  broker:
    url: {broker}
    client_id: bench
    allow_anonymous: true
    topics:
      - filter: \"#\"
{settings}"
    )
}

//! The configuration file of the services on a rig.

use std::fmt;
use std::path::PathBuf;

use super::{BUCKET, DATASET, DEVICES, PROJECT};

/// What `cloud.yaml` says. A test changes a field, to put a proxy before a server for example, and writes it out with
/// `to_string`.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// The MQTT broker.
    pub mqtt_url: String,
    /// The shared cache.
    pub redis_url: String,
    /// Folder of what ingestion keeps on disk.
    pub data: PathBuf,
    /// Further sections, or nothing. A section that is here already cannot come again.
    pub extra: String,
}

impl fmt::Display for Configuration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mqtt_url, redis_url, data, extra } = self;
        let data = data.display();
        write!(
            formatter,
            "\
# The four services on a rig. The emulators' addresses stand in the environment.
data: {data}
http:
  listen: 127.0.0.1:0
google:
  project: {PROJECT}
bus:
  kind: pubsub
  pubsub:
    # The emulator does not notice that a reader died, and waits for the lease.
    lease_extension: 10s
ingestion:
  broker:
    url: {mqtt_url}
    client_id: rig
    allow_anonymous: true
    topics:
      - filter: \"#\"
enrichment:
  source:
    kind: firestore
    collection: {DEVICES}
  redis:
    url: {redis_url}
bigquery:
  kind: bigquery
  google:
    dataset: {DATASET}
icestore:
  kind: cloud-storage
  google:
    bucket: {BUCKET}
{extra}"
        )
    }
}

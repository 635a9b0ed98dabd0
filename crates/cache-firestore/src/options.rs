//! Which collection, and how it is read.

use google_cloud_auth::credentials::Credentials;
use std::time::Duration;

/// Most documents that one batch get may ask for; the service allows more, but answers in about a second.
pub(crate) const MOST_IN_A_BATCH: usize = 500;

/// Which collection, and how it is read.
#[derive(Clone, Debug)]
pub struct FirestoreOptions {
    /// The Google Cloud project.
    pub project: String,
    /// The database; `(default)` is the one that every project may have.
    pub database: String,
    /// The collection, one document per device with the device's id as its id. A path such as `sites/a/devices` names
    /// one below a document.
    pub collection: String,
    /// Where Firestore answers; `None` for the service, `http://HOST:PORT` for an emulator.
    pub endpoint: Option<String>,
    /// Who asks; for an emulator [`emulator_credentials`](crate::emulator_credentials).
    pub credentials: Credentials,
    /// Longest time a look-up may take, with all its tries.
    pub timeout: Duration,
    /// Most documents in one request, 1 to 500.
    pub batch: usize,
    /// Most requests of one look-up at the same time; at least 1.
    pub parallel: usize,
}

impl FirestoreOptions {
    /// The collection `devices` of the database `(default)` of `project`: five seconds, 300 documents in a request,
    /// four requests at a time.
    #[must_use]
    pub fn new(project: impl Into<String>, credentials: Credentials) -> Self {
        Self {
            project: project.into(),
            database: "(default)".to_owned(),
            collection: "devices".to_owned(),
            endpoint: None,
            credentials,
            timeout: Duration::from_secs(5),
            batch: 300,
            parallel: 4,
        }
    }
}

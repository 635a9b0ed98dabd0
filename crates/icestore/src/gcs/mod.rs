//! The archive in a Cloud Storage bucket: an [`ObjectStore`](crate::ObjectStore) and an
//! [`ObjectReader`](crate::ObjectReader).
//!
//! ```text
//!  put ─► ids remembered? ──yes──► Overlaps          (no request)
//!          │ no
//!          ├─ a message in it that came before, or that may have come to somebody before us:
//!          │     list the folder, read the objects whose times meet this one's ──► ids remembered
//!          ▼
//!        one upload with ifGenerationMatch=0, so it is stored whole, or not, and never over another one
//!          │ 412: is it this very object (an earlier try whose answer got lost)? ──► Stored
//!          ▼        no: read it, it is called like our first message ──► Overlaps, or another name
//!        Stored
//! ```
//!
//! One request an object when nothing goes wrong, and one list for each with messages received before the start. The
//! bucket is the only index: nothing is written beside the objects. What that promises of redelivered messages stands
//! in `docs/guarantees.md`.

mod client;
mod memory;
mod metadata;
mod reader;
mod recall;
mod store;

pub use reader::GcsReader;
pub use store::GcsStore;

use google_cloud_auth::credentials::Credentials;
use std::time::Duration;

/// How to reach a bucket and how to use it.
#[derive(Clone, Debug)]
pub struct GcsOptions {
    /// The bucket's name, without `gs://`.
    pub bucket: String,
    /// URL of an emulator; `None` is the real service.
    pub endpoint: Option<String>,
    /// Who asks. The bucket's `roles/storage.objectCreator` and `roles/storage.objectViewer` are enough (list, read,
    /// create), unless the bucket is to be created.
    pub credentials: Credentials,
    /// Create the bucket if it is not there. Without it a missing bucket is an error.
    pub create_bucket: bool,
    /// Project in which the bucket is created.
    pub project: Option<String>,
    /// Region in which the bucket is created (`EUROPE-WEST3`); `None` is the service's default, the `US` multi-region.
    pub location: Option<String>,
    /// How long one request may take, tries within it included.
    pub timeout: Duration,
    /// Objects stored longer ago than this are not looked into for messages that come again. Longer than a
    /// subscription keeps what is not acknowledged.
    pub recall: Duration,
    /// Most ids of archived messages kept in memory, at about 30 bytes each (at least twice the lines of an object).
    /// An id that is not remembered any more is found again by looking into the bucket.
    pub remembered: usize,
    /// Who writes, as it shall stand in the objects' metadata: a name of this process.
    pub writer: String,
}

impl GcsOptions {
    /// The bucket `bucket` at the real service, as `credentials`, with the defaults: it must be there, 60 seconds a
    /// request, objects of the last 7 days are looked into, 400,000 ids remembered.
    #[must_use]
    pub fn new(bucket: impl Into<String>, credentials: Credentials) -> Self {
        Self {
            bucket: bucket.into(),
            endpoint: None,
            credentials,
            create_bucket: false,
            project: None,
            location: None,
            timeout: Duration::from_secs(60),
            recall: Duration::from_secs(7 * 24 * 60 * 60),
            remembered: 400_000,
            writer: "millstream".to_owned(),
        }
    }
}

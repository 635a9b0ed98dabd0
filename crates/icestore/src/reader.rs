//! Reading an archive: what is there, and its bytes.

use futures_util::future::BoxFuture;
use messagepipeline::{Bytes, Digest, StageError, Timestamp};

/// Which names are asked for. Names are compared byte by byte; since they begin with the day, a range of names is a
/// range of days.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameRange {
    /// All names begin with it; empty: any.
    pub prefix: String,
    /// The first name, itself included; empty: from the beginning.
    pub from: String,
    /// The name at which it ends, itself not included; empty: to the end.
    pub until: String,
}

impl NameRange {
    /// Whether `name` is in it.
    #[must_use]
    pub fn holds(&self, name: &str) -> bool {
        let before_end = self.until.is_empty() || name < self.until.as_str();
        name.starts_with(&self.prefix) && name >= self.from.as_str() && before_end
    }
}

/// What the archiver says of an object beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Digest of its messages' ids; its count is the number of lines.
    pub digest: Digest,
    /// Earliest first receipt of its messages.
    pub first_received: Timestamp,
    /// Latest first receipt of its messages.
    pub last_received: Timestamp,
}

/// One object of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredObject {
    /// Its name.
    pub name: String,
    /// Its bytes, compressed.
    pub bytes: u64,
    /// When it was stored, where the store knows.
    pub created: Option<Timestamp>,
    /// What is in it, where the store keeps that beside it.
    pub contents: Option<Contents>,
}

/// Some objects, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The objects.
    pub objects: Vec<StoredObject>,
    /// What to ask the next page with; `None` at the end.
    pub next: Option<String>,
}

/// Reads an archive, beside the process that fills it.
///
/// # Contract
/// - `list` answers with finished objects only, in the order of their names over all pages. Objects that come or go
///   meanwhile may be among them or not.
/// - `read` answers with all bytes of an object, or an error.
pub trait ObjectReader: Send + Sync {
    /// The objects in `range`: the first page, or the one that `page` stands for.
    fn list(&self, range: &NameRange, page: Option<String>) -> BoxFuture<'_, Result<Page, StageError>>;

    /// The bytes of the object `name`.
    fn read(&self, name: &str) -> BoxFuture<'_, Result<Bytes, StageError>>;

    /// Where the object `name` lies, for people.
    fn place(&self, name: &str) -> String;
}

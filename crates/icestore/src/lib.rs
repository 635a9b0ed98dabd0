//! Archive: lines, batch keys, object names, the object store trait and the batch processor over it.
//!
//! ```text
//!  Message ──ArchiveTransformer──► BatchKey ──BatchingService, a group per key──► ArchiveProcessor
//!                                                                                   │ known ids left out,
//!                                                                                   │ one line each, compressed
//!                                                                                   ▼
//!                                                              ObjectStore: one complete object with its ids
//! ```

mod error;
mod folder;
#[cfg(feature = "gcs")]
pub mod gcs;
mod key;
mod line;
mod name;
mod object;
mod processor;
mod reader;
pub mod replay;
mod store;
mod transformer;

pub use error::Error;
pub use folder::FolderReader;
pub use key::{BatchKey, KeyConfig, LocationSource, LocationSources, default_locations};
pub use line::{ArchivedMessage, LineForm, decode_line, encode_line};
pub use name::{ObjectName, Prefix};
pub use object::{ArchiveObject, ArchiveSettings, Compression, LineRef, decompress, payload_fingerprint};
pub use processor::ArchiveProcessor;
pub use reader::{Contents, NameRange, ObjectReader, Page, StoredObject};
pub use store::{ObjectStore, PutOutcome};
pub use transformer::ArchiveTransformer;

//! Firestore as the source of truth of look-ups: documents by id, a listener for what changes, and presence.
//!
//! ```text
//!  fetch(keys) ──► FirestoreSource ── BatchGetDocuments, some hundred ids a call ──► collection/id
//!                       │               what failed is asked again within the deadline
//!                       └── changes() ── Listen, from a moment on ──► Change::Key, Change::All
//! ```
//!
//! A document that is read costs money, so nothing is read twice: an id asked for several times in one call is read
//! once, ids that Firestore does not allow are not asked for, and the listener never reads the collection.

mod changes;
mod client;
mod credentials;
mod document;
mod error;
mod ids;
mod listener;
mod options;
mod presence;
mod source;

pub use credentials::emulator_credentials;
pub use error::Error;
pub use options::FirestoreOptions;
pub use presence::FirestorePresence;
pub use source::FirestoreSource;

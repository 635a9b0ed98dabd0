//! Layered look-up by key: LRU with ages, single-flight, negative entries, fallbacks, and a presence cache.
//!
//! ```text
//!  fetch(keys) ──► Lru ──misses──► Layered ──misses──► source of truth
//!                   ▲  one call      │  down? skipped,     │
//!                   │  per key       │  and it says so     │
//!                   └── answers fill every layer on the way ┘
//! ```
//!
//! Every layer is a [`Fetcher`] over an optional next one, so any of them can be left out. Look-ups are batched: a
//! layer asks the next one once for all keys it misses, and answers for each key on its own, so that a failing
//! source fails exactly the keys that needed it.

mod error;
mod fetcher;
mod forgotten;
mod layered;
mod lookups;
mod lru;
mod presence;

pub use error::{FetchError, ZeroSize};
pub use fetcher::{Change, FetchResult, Fetched, Fetcher, fetch_one};
pub use layered::{Layered, Store};
pub use lru::{Ages, Lru};
pub use presence::{MemoryPresence, PresenceCache};

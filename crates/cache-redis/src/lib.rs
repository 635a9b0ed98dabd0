//! The Redis layer of the look-up cache, and presence in Redis.
//!
//! ```text
//!  Layered ──get──► RedisStore ──one pipeline per chunk: MGET, PTTL──► Redis
//!     │                 │  Link: one connection, a deadline on every call, and a breaker before it
//!     └──put, remove──► queue ──► writer: SET PX, UNLINK, in the order in which they were asked for
//! ```
//!
//! An entry's key is `namespace:vVERSION:GENERATION:key`. Clearing the namespace starts a new generation, which takes
//! two commands however much is there; entries of earlier generations are never read again and leave at their age.
//!
//! Redis being down never stops a look-up: the layer above skips it and says so.

mod breaker;
mod client;
mod error;
mod keys;
mod link;
mod options;
mod presence;
mod store;
mod value;
mod writer;

pub use error::Error;
pub use options::RedisOptions;
pub use presence::RedisPresence;
pub use store::RedisStore;
pub use value::CachedValue;

//! Configuration: one YAML file, environment variables in it, overrides from the command line; every mistake at
//! once, with its place and what would be right.
//!
//! ```text
//! text ─► yaml (tree with places) ─► expand ${VAR} ─► overrides ─► validate against the type's JSON Schema
//!                                                                        └─► value ─► T ─► Check (the program's own)
//! ```
//!
//! Types implement `Deserialize` and `JsonSchema` (and `Serialize` for [`print_config`]). Unknown keys are mistakes
//! in every structure without `deny_unknown_fields` too. Keys in messages are written `routes[0].filter`; where the
//! program names one, it does so by JSON Pointer (RFC 6901), `/routes/0/filter`.

mod alternatives;
mod byte_size;
mod check;
mod duration;
mod expand;
mod format;
mod load;
mod overrides;
mod path;
mod print;
mod problem;
mod reference;
mod scalar;
mod schema;
mod secret;
mod shape;
mod source;
mod tree;
mod units;
mod validate;
mod yaml;

pub use byte_size::ByteSize;
pub use check::{Check, pointer};
pub use duration::Duration;
pub use load::{Loaded, Partial, load, load_or_partial};
pub use overrides::Override;
pub use print::print_config;
pub use problem::{ConfigErrors, Place, Problem};
pub use reference::render_reference;
pub use schema::schema;
pub use secret::{Secret, SecretFileError};
pub use source::Source;
pub use units::UnitError;

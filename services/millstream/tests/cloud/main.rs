//! The four services as processes of their own, between a real broker, a real Redis and Google's emulators.
//!
//! They are built with `cargo build --workspace --bins --features google`; `tests/run` does it.

#![cfg(feature = "google")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

#[path = "../common/mod.rs"]
mod common;
mod connections;
mod installation;
mod kills;
mod letters;
mod mistakes;
mod outages;
#[allow(dead_code, reason = "the campaigns use all of it")]
#[path = "../rig/random.rs"]
mod random;
mod service;
mod unavailable;
mod waiting;
mod whole_path;

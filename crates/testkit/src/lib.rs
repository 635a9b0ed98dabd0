//! Test doubles, fault wrappers and the conformance suites that doubles and adapters pass alike. Development only.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a failing suite fails its test by panicking")]

pub mod cache_suite;
pub mod consumer_suite;
pub mod faults;
pub mod gcs_fake;
pub mod memory;
pub mod processors;
pub mod proxy;
pub mod rig;
pub mod scripted_consumer;
pub mod servers;
pub mod session_suite;
pub mod sink_suite;

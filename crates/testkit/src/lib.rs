//! Test doubles, fault wrappers and the conformance suites that doubles and adapters pass alike. Development only.

pub mod cache_suite;
pub mod consumer_suite;
pub mod faults;
pub mod memory;
pub mod sink_suite;

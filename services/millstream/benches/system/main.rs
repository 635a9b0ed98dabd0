//! Figures of the whole program, each with what it is to be held against in the same run.
//!
//! `cargo bench -p millstream --bench system [-- SCENARIO…]`; without a name all of them:
//!
//! | scenario | what |
//! | --- | --- |
//! | `start` | from the start of the process to `/readyz`; size of the binary |
//! | `path` | CPU of the whole path beside the sum of its floors |
//! | `latency` | PUBLISH → PUBACK and PUBLISH → row, at 1,000 messages a second |
//! | `poison` | what a device that sends only bad payloads does to the others' latency |
//! | `stall` | peak memory while a sink is stalled, and of a start with the backlog of that |
//! | `keys` | peak memory with 100,000 open archive keys |
//!
//! `MILLSTREAM_RECORDINGS` names a folder with recordings; without it messages are made up. `MILLSTREAM_BENCH_SCALE`
//! (default 1) multiplies message counts and durations. Every line that begins with `figure` is for programs:
//! name, value, unit, between tabs.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    reason = "a program that prints figures"
)]

mod floors;
mod kernel;
mod keys;
mod latency;
mod messages;
mod path;
mod poison;
mod program;
mod publisher;
mod report;
mod stall;
mod start;

pub(crate) use report::{figure, scaled};

fn main() {
    let scenarios: [(&str, fn()); 6] = [
        ("start", start::run),
        ("path", path::run),
        ("latency", latency::run),
        ("poison", poison::run),
        ("keys", keys::run),
        ("stall", stall::run),
    ];
    report::run(&scenarios);
}

//! Figures of the services on Google Cloud, against a real broker, a real Redis and Google's emulators. CPU is user
//! and system time of the service's process alone.
//!
//! `cargo bench -p millstream --features google --bench cloud [-- SCENARIO…]`; without a name all of them. The services
//! are found beside the program that cargo builds for it, so build them first:
//! `cargo build --release --workspace --bins --features google`.
//!
//! | scenario | what |
//! | --- | --- |
//! | `ingestion` | MQTT → Pub/Sub: CPU at full speed and at 2,000 messages a second, memory, bytes on Pub/Sub |
//! | `situations` | what is lost and doubled when Pub/Sub stands still or ingestion is killed |
//! | `enrichment` | CPU with all look-ups in Redis, and with a cache in memory before it |
//! | `cold` | documents read from Firestore while nothing is known yet |
//! | `redis-killed` | what is lost, and how fast it goes on, when Redis dies half-way |
//! | `archive` | Pub/Sub → archive, 10 keys: CPU, objects, size, memory |
//! | `warehouse` | Pub/Sub → BigQuery in each mode: CPU, rows of a call, memory |
//! | `requests` | requests to each of Google's services while the whole path runs at 1,000 messages a second |
//!
//! `MILLSTREAM_RECORDINGS` names a folder with recordings; without it messages are made up. `MILLSTREAM_BENCH_SCALE`
//! (default 1) multiplies message counts. `MILLSTREAM_BENCH_SERVICES` names another folder with the services. Every line
//! that begins with `figure` is for programs: name, value, unit, between tabs.

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

mod archive;
mod arrivals;
mod beside;
#[allow(dead_code, reason = "each scenario reads its counts")]
mod counting;
mod enrichment;
mod fleet;
mod ingestion;
#[allow(dead_code, reason = "the other bench uses all of it")]
#[path = "../system/kernel.rs"]
mod kernel;
#[allow(dead_code, reason = "the other bench uses all of it")]
#[path = "../system/messages.rs"]
mod messages;
#[allow(dead_code, reason = "each scenario uses its part")]
mod process;
#[allow(dead_code, reason = "the other bench uses all of it")]
#[path = "../system/publisher.rs"]
mod publisher;
#[path = "../system/report.rs"]
mod report;
mod requests;
mod site;
mod situations;
mod waiting;
mod warehouse;

pub(crate) use report::{figure, scaled};

/// What builds the services.
const BUILD: &str = "cargo build --release --workspace --bins --features google";

fn main() {
    let scenarios: [(&str, fn()); 8] = [
        ("ingestion", ingestion::run),
        ("situations", situations::run),
        ("enrichment", enrichment::run),
        ("cold", enrichment::run_cold),
        ("redis-killed", enrichment::run_killed),
        ("archive", archive::run),
        ("warehouse", warehouse::run),
        ("requests", requests::run),
    ];
    report::run(&scenarios);
}

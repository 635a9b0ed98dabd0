//! The `bigquery` program: Pub/Sub in, rows out.
//!
//! Configuration → running parts: `program.rs`, then `app.rs`; the engine is `messagepipeline/src/batching.rs`.

use bigquery_service::BigQueryProgram;
use service_kit::{Exit, program};

fn main() -> Exit {
    program::run::<BigQueryProgram>()
}

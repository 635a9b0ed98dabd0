//! The `ingestion` program: MQTT in, Pub/Sub out.
//!
//! Configuration → running parts: `program.rs`, then `app.rs`; the engine is `messagepipeline/src/batching.rs`.

use ingestion_service::IngestionProgram;
use service_kit::{Exit, program};

fn main() -> Exit {
    program::run::<IngestionProgram>()
}

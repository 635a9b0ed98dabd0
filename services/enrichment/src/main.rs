//! The `enrichment` program: a topic of Pub/Sub in, device data added, another topic out.
//!
//! Configuration → running parts: `program.rs`, then `app.rs`; the engine is `messagepipeline/src/batching.rs`.

use enrichment_service::EnrichmentProgram;
use service_kit::{Exit, program};

fn main() -> Exit {
    program::run::<EnrichmentProgram>()
}

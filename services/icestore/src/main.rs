//! The `icestore` program: Pub/Sub in, objects out.
//!
//! Configuration → running parts: `program.rs`, then `app.rs`; the engine is `messagepipeline/src/batching.rs`.

use icestore_service::IcestoreProgram;
use service_kit::{Exit, program};

fn main() -> Exit {
    program::run::<IcestoreProgram>()
}

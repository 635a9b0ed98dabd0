//! The core of Millstream: messages, settlement, the stage traits and the two services that drive them.
//!
//! ```text
//!             next()                transform()             process()
//!  Consumer ─────────► chunk ─────────────────────► value ─────────────► StreamProcessor
//!     ▲                  │ Skip, Held: ack             │                  or BatchProcessor
//!     │                  │ permanent: dead letter, ack │                       │
//!     │                  │ transient: retry, nack      │                       │
//!     └───── Settle ◄────┴─────────────────────────────┴───────── verdicts ────┘
//! ```
//!
//! Only the two services settle messages; transformers and processors return verdicts. A message is acknowledged
//! when the next stage holds it durably, and given back in every other case, a panic included.
//!
//! The crate knows no cloud, no network and no disk. Time for stamps comes from a [`Clock`]; waiting uses tokio's
//! timers, which tests pause.

mod attributes;
mod consumer;
mod dead_letter;
mod digest;
mod enrichment;
mod error;
mod health;
mod id;
mod message;
pub mod metric_names;
pub mod names;
mod processor;
mod publisher;
mod settle;
mod shutdown;
mod time;
mod transformer;

pub use attributes::{Attributes, AttributesBuilder, InvalidAttributes};
pub use consumer::{BoxConsumer, Consumer};
pub use dead_letter::{DeadLetter, DeadLetters, Skipped};
pub use digest::Digest;
pub use enrichment::Enrichment;
pub use error::{ErrorClass, StageError};
pub use health::{Health, StageHealth};
pub use id::{IdGenerator, foreign_id};
pub use message::{Message, MessageId};
pub use processor::{BatchOutcome, BatchProcessor, Item, StreamProcessor};
pub use publisher::{ID_CONFLICT, PublishProcessor, Publisher, all_done};
pub use settle::{Ack, Chunk, Delivery, Settle, Settlement, Token, Verdict};
pub use shutdown::Shutdown;
pub use time::{Clock, ManualClock, SystemClock, Timestamp};
pub use transformer::{Outcome, PayloadSize, TransformFn, Transformer, transform_fn};

#[doc(no_inline)]
pub use bytes::Bytes;

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
mod batch;
mod batcher;
mod batching;
mod consumer;
mod dead_letter;
mod deadline;
mod digest;
mod enrichment;
mod error;
mod flush;
mod grouping;
mod health;
mod id;
mod keyed_batcher;
mod message;
pub mod metric_names;
pub mod names;
mod owed;
mod processor;
mod publisher;
mod receive;
mod retry;
mod service;
mod settle;
mod shutdown;
mod single;
mod slots;
mod span;
mod stage;
mod streaming;
mod time;
mod transform;
mod transformer;

pub use attributes::{Attributes, AttributesBuilder, InvalidAttributes};
pub use batcher::{BatchLimits, Batcher, Flush, FlushReason};
pub use batching::BatchingService;
pub use consumer::{BoxConsumer, Consumer};
pub use dead_letter::{DeadLetter, DeadLetters, Skipped};
pub use digest::Digest;
pub use enrichment::Enrichment;
pub use error::{ErrorClass, StageError};
pub use flush::FlushRequest;
pub use health::{Health, StageHealth};
pub use id::{IdGenerator, foreign_id};
pub use keyed_batcher::KeyedBatcher;
pub use message::{Message, MessageId};
pub use processor::{BatchOutcome, BatchProcessor, Item, StreamProcessor};
pub use publisher::{ID_CONFLICT, PublishProcessor, Publisher, all_done};
pub use retry::{Backoff, RetryPolicy};
pub use service::{Running, ServiceError, ServiceOptions, Summary};
pub use settle::{Ack, Chunk, Delivery, Settle, Settlement, Token, Verdict};
pub use shutdown::Shutdown;
pub use span::SourceWindow;
pub use streaming::StreamingService;
pub use time::{Clock, ManualClock, SystemClock, Timestamp};
pub use transformer::{Outcome, PayloadSize, TransformFn, Transformer, transform_fn};

#[doc(no_inline)]
pub use bytes::Bytes;

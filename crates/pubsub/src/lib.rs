//! Google Pub/Sub: consumer, publisher, dead letters, and the form of a message on the wire.
//!
//! ```text
//!  subscription ─► stream ─► pump (a task per stream) ─► queue ─► PubSubConsumer::next ─► window ─► Settle
//!                    ▲  leases are extended while a message waits or is worked on                     │
//!                    └── acknowledged in bulk ◄───────────────────────────────────────────────────────┘
//!
//!  PubSubPublisher::publish ─► room for messages and bytes ─► wire ─► batches ─► topic, an answer per message
//! ```
//!
//! The vendor's client keeps the streams open, extends leases and collects acknowledgements; how much is in flight is
//! bounded here, on both sides, because the client bounds nothing when it publishes and Google's emulator ignores the
//! bounds of a subscriber.

mod admin;
mod budget;
mod client;
mod confirm;
mod consumer;
mod dead_letters;
mod error;
mod letters;
mod options;
mod ordered;
mod patience;
mod publisher;
mod pump;
mod reach;
mod records;
mod simple;
mod streams;
mod tally;
mod unsure;
mod window;
mod wire;

pub use admin::SubscriptionSpec;
pub use client::{Client, name_mistake};
pub use consumer::PubSubConsumer;
pub use dead_letters::PubSubDeadLetters;
pub use error::PubSubError;
pub use letters::{LetterReader, LetterSession, Listing};
pub use options::{ConsumerOptions, Ordering, PubSubOptions, PublisherOptions, Wire};
pub use publisher::PubSubPublisher;
pub use records::{Dropped, Foreign, Letter, Record, RecordKey};
pub use simple::SimplePublisher;

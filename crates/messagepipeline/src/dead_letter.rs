//! Where messages go that are given up on, and where endings by rule are recorded.

use crate::{Message, MessageId, StageError};
use futures_util::future::BoxFuture;
use std::borrow::Cow;

/// A message given up on, with its reason.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The message as the stage received it: original bytes and attributes.
    pub message: Message,
    /// The stage that gave up: `ingestion`, `enrichment`, `bigquery`, `icestore`.
    pub stage: Cow<'static, str>,
    /// Reason word in kebab case.
    pub reason: Cow<'static, str>,
    /// What was wrong, for people.
    pub detail: String,
    /// Deliveries until then, this one included.
    pub attempts: u32,
}

/// A message that a rule ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The message.
    pub id: MessageId,
    /// The stage.
    pub stage: Cow<'static, str>,
    /// The rule's word in kebab case.
    pub rule: Cow<'static, str>,
}

/// Keeps dead letters and skips durably.
///
/// # Contract
/// - Both answers come when everything given is durable; the service acknowledges only after them.
/// - Both are idempotent by stage and message id: what comes again is not kept twice.
pub trait DeadLetters: Send + Sync {
    /// Keeps `letters`.
    fn put(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, Result<(), StageError>>;

    /// Records `skips`.
    fn record_skips(&self, skips: Vec<Skipped>) -> BoxFuture<'_, Result<(), StageError>>;
}

//! What the services' tests share.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part of this")]

use messagepipeline::{
    Health, IdGenerator, Message, Outcome, ServiceOptions, StageError, Timestamp, TransformFn,
};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use testkit::memory::MemoryDeadLetters;

static IDS: LazyLock<IdGenerator> = LazyLock::new(IdGenerator::default);

pub(crate) const DEADLINE: Duration = Duration::from_secs(3_600);

/// A message whose payload is the word the test's script acts on.
pub(crate) fn message(word: &str) -> Message {
    Message::new(IDS.next_id(), word.to_owned(), Timestamp::from_millis(1_750_000_000_000))
}

pub(crate) fn messages(word: &str, count: usize) -> Vec<Message> {
    (0..count).map(|_| message(word)).collect()
}

pub(crate) fn word(message: &Message) -> &str {
    std::str::from_utf8(&message.payload).unwrap()
}

pub(crate) fn plain(_: &Message) -> Outcome<()> {
    Outcome::Emit(())
}

/// Every message becomes `()`.
pub(crate) fn as_it_is() -> TransformFn<fn(&Message) -> Outcome<()>> {
    messagepipeline::transform_fn(plain as fn(&Message) -> Outcome<()>)
}

pub(crate) fn transient() -> StageError {
    StageError::transient("busy", "the sink is busy")
}

pub(crate) fn permanent() -> StageError {
    StageError::permanent("broken", "the message is broken")
}

pub(crate) fn configuration() -> StageError {
    StageError::configuration("forbidden", "grant the role of a writer")
}

/// Options with a dead-letter store and a health board to look at.
pub(crate) fn options() -> (ServiceOptions, MemoryDeadLetters, Health) {
    let (dead_letters, health) = (MemoryDeadLetters::new(), Health::new());
    let mut options = ServiceOptions::new("test");
    options.dead_letters = Some(Arc::new(dead_letters.clone()));
    options.health = Some(health.stage("test"));
    (options, dead_letters, health)
}

/// Why the service is not ready.
pub(crate) fn trouble(health: &Health) -> Option<String> {
    health.stages().remove(0).1
}

/// Waits, on paused time, until everything that can go on has gone on for `time`.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

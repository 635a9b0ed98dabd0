//! A processor that does with each message what the test says, and remembers it.

use messagepipeline::{BatchOutcome, BatchProcessor, Item, Message, MessageId, StageError, StreamProcessor};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// What to do with a message.
#[derive(Debug)]
pub enum Act {
    /// It is done.
    Done,
    /// It fails.
    Fail(StageError),
    /// Panic.
    Panic,
    /// Wait for [`ScriptedProcessor::release`], then it is done.
    Wait,
}

/// Does what its script says for a message and the number of its tries, counted from 1. Cloning shares it.
///
/// In a batch each message has its own result; a panic, or a wait, is that of the whole call.
#[derive(Clone)]
pub struct ScriptedProcessor(Arc<Inner>);

type Script = dyn Fn(&Message, u32) -> Act + Send + Sync;

struct Inner {
    script: Box<Script>,
    gate: Semaphore,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    tries: HashMap<MessageId, u32>,
    done: Vec<Message>,
    batches: Vec<Vec<MessageId>>,
    in_flight: usize,
    most_in_flight: usize,
}

impl ScriptedProcessor {
    /// A processor with this script.
    #[must_use]
    pub fn new(script: impl Fn(&Message, u32) -> Act + Send + Sync + 'static) -> Self {
        let (gate, seen) = (Semaphore::new(0), Mutex::default());
        Self(Arc::new(Inner { script: Box::new(script), gate, seen }))
    }

    /// A processor for which every message is done.
    #[must_use]
    pub fn willing() -> Self {
        Self::new(|_, _| Act::Done)
    }

    /// Lets `count` waits go on.
    pub fn release(&self, count: usize) {
        self.0.gate.add_permits(count);
    }

    /// The messages that are done, in the order in which they were.
    #[must_use]
    pub fn done(&self) -> Vec<Message> {
        self.0.seen.lock().done.clone()
    }

    /// How often this message was tried.
    #[must_use]
    pub fn tries(&self, id: MessageId) -> u32 {
        self.0.seen.lock().tries.get(&id).copied().unwrap_or(0)
    }

    /// The batches of all calls, repeated ones included.
    #[must_use]
    pub fn batches(&self) -> Vec<Vec<MessageId>> {
        self.0.seen.lock().batches.clone()
    }

    /// How many calls are under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.seen.lock().in_flight
    }

    /// How many calls were ever under way at once.
    #[must_use]
    pub fn most_in_flight(&self) -> usize {
        self.0.seen.lock().most_in_flight
    }

    fn act(&self, message: &Message) -> Act {
        let mut seen = self.0.seen.lock();
        let tries = seen.tries.entry(message.id).or_default();
        *tries += 1;
        let tries = *tries;
        drop(seen);
        (self.0.script)(message, tries)
    }

    fn enter(&self) -> InFlight<'_> {
        let mut seen = self.0.seen.lock();
        seen.in_flight += 1;
        seen.most_in_flight = seen.most_in_flight.max(seen.in_flight);
        InFlight(self)
    }

    async fn wait(&self) {
        if let Ok(permit) = self.0.gate.acquire().await {
            permit.forget();
        }
    }

    fn note_done(&self, message: &Message) {
        self.0.seen.lock().done.push(message.clone());
    }
}

struct InFlight<'a>(&'a ScriptedProcessor);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.0.seen.lock().in_flight -= 1;
    }
}

impl<T: Send> StreamProcessor<T> for ScriptedProcessor {
    async fn process(&self, message: &Message, _value: T) -> Result<(), StageError> {
        let _in_flight = self.enter();
        match self.act(message) {
            Act::Done => {}
            Act::Wait => self.wait().await,
            Act::Fail(error) => return Err(error),
            Act::Panic => panic!("as scripted"),
        }
        self.note_done(message);
        Ok(())
    }
}

impl<T: Send + Sync> BatchProcessor<T> for ScriptedProcessor {
    async fn process(&self, batch: &[Item<T>]) -> BatchOutcome {
        let _in_flight = self.enter();
        self.0.seen.lock().batches.push(batch.iter().map(|item| item.message.id).collect());
        let acts: Vec<_> = batch.iter().map(|item| self.act(&item.message)).collect();
        assert!(!acts.iter().any(|act| matches!(act, Act::Panic)), "as scripted");
        if acts.iter().any(|act| matches!(act, Act::Wait)) {
            self.wait().await;
        }
        let result = |(act, item): (Act, &Item<T>)| match act {
            Act::Fail(error) => Err(error),
            _ => {
                self.note_done(&item.message);
                Ok(())
            }
        };
        BatchOutcome::Each(acts.into_iter().zip(batch).map(result).collect())
    }
}

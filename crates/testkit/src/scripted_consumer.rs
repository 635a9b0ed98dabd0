//! A consumer that delivers what the test says and remembers every verdict.

use messagepipeline::{
    Chunk, Consumer, Delivery, Message, MessageId, Settle, Settlement, StageError, Token, Verdict,
};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::Notify;

/// What one call of `next` brings.
#[derive(Debug)]
pub enum Step {
    /// These messages.
    Chunk(Vec<Message>),
    /// This error.
    Fail(StageError),
    /// The end of the source.
    End,
}

/// Delivers the steps of its script one after another, then waits for ever. Each chunk is settled by itself, so what
/// is settled through the wrong chunk is refused and shows as a missing verdict.
#[derive(Debug)]
pub struct ScriptedConsumer {
    steps: VecDeque<Step>,
    start: Option<StageError>,
    verdicts: Verdicts,
}

/// What a [`ScriptedConsumer`] was told. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Verdicts(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    book: Mutex<Book>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Book {
    verdicts: HashMap<MessageId, Verdict>,
    delivered: usize,
    closed: bool,
}

impl ScriptedConsumer {
    /// A consumer of these steps.
    #[must_use]
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), start: None, verdicts: Verdicts::default() }
    }

    /// A consumer of one chunk.
    #[must_use]
    pub fn of(messages: Vec<Message>) -> Self {
        Self::new([Step::Chunk(messages)])
    }

    /// A consumer that cannot be opened.
    #[must_use]
    pub fn that_does_not_open(error: StageError) -> Self {
        Self { start: Some(error), ..Self::new([]) }
    }

    /// What it is told.
    #[must_use]
    pub fn verdicts(&self) -> Verdicts {
        self.verdicts.clone()
    }
}

impl Verdicts {
    /// The verdict on this message.
    #[must_use]
    pub fn of(&self, message: &Message) -> Option<Verdict> {
        self.0.book.lock().verdicts.get(&message.id).copied()
    }

    /// How many messages have this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.0.book.lock().verdicts.values().filter(|given| **given == verdict).count()
    }

    /// How many messages were delivered.
    #[must_use]
    pub fn delivered(&self) -> usize {
        self.0.book.lock().delivered
    }

    /// Whether the consumer was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.book.lock().closed
    }

    /// Waits until `count` messages have a verdict.
    pub async fn settled(&self, count: usize) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if self.0.book.lock().verdicts.len() >= count {
                return;
            }
            changed.await;
        }
    }
}

struct ChunkSettle {
    ids: Vec<MessageId>,
    shared: Arc<Shared>,
}

impl Settle for ChunkSettle {
    fn settle(&self, settlements: &[Settlement]) {
        let mut book = self.shared.book.lock();
        for settlement in settlements {
            let id = usize::try_from(settlement.token.0).ok().and_then(|index| self.ids.get(index));
            if let Some(id) = id {
                book.verdicts.entry(*id).or_insert(settlement.verdict);
            }
        }
        self.shared.changed.notify_waiters();
    }
}

impl Consumer for ScriptedConsumer {
    async fn open(&mut self) -> Result<(), StageError> {
        self.start.take().map_or(Ok(()), Err)
    }

    async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        match self.steps.pop_front() {
            None => std::future::pending().await,
            Some(Step::End) => Ok(None),
            Some(Step::Fail(error)) => Err(error),
            Some(Step::Chunk(messages)) => {
                self.verdicts.0.book.lock().delivered += messages.len();
                let ids = messages.iter().map(|message| message.id).collect();
                let settle = Arc::new(ChunkSettle { ids, shared: Arc::clone(&self.verdicts.0) });
                let delivery = |(token, message)| Delivery { message, token: Token(token) };
                Ok(Some(Chunk::new(settle, (0..).zip(messages).map(delivery).collect())))
            }
        }
    }

    async fn close(&mut self) -> Result<(), StageError> {
        self.verdicts.0.book.lock().closed = true;
        Ok(())
    }
}

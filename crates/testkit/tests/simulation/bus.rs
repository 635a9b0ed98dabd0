//! The bus under faults: publishers, consumers whose verdicts are judged, and dead letters.

use crate::stores::Stores;
use crate::world::{Fault, Kind, Op, World, simulated_panic};
use futures_util::future::BoxFuture;
use messagepipeline::{
    BatchOutcome, Chunk, Consumer, DeadLetter, DeadLetters, Message, MessageId, Publisher, Settle,
    Settlement, Skipped, StageError, Verdict,
};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use testkit::memory::{MemoryConsumer, MemoryPublisher};

pub(crate) struct FaultyPublisher {
    pub(crate) world: World,
    pub(crate) life: u32,
    pub(crate) op: Op,
    /// What this topic refuses for good.
    pub(crate) refused: Kind,
    pub(crate) topic: MemoryPublisher,
}

impl FaultyPublisher {
    fn put(&self, message: Message) -> Result<(), StageError> {
        if self.world.kind(message.id) == self.refused {
            return Err(StageError::permanent("refused", "this topic does not take it"));
        }
        self.topic.put(message)
    }
}

impl Publisher for FaultyPublisher {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        Box::pin(async {
            match self.world.call_each(self.life, self.op, messages, |message| self.put(message)).await {
                Ok(results) => BatchOutcome::Each(results),
                Err(error) => BatchOutcome::Failed(error),
            }
        })
    }
}

/// A consumer whose receiving fails at times, and whose verdicts are judged, lost and delayed.
pub(crate) struct WatchedConsumer {
    world: World,
    life: u32,
    inner: MemoryConsumer,
    judge: Arc<Judge>,
}

impl WatchedConsumer {
    pub(crate) fn new(
        world: &World,
        stores: &Stores,
        stage: &'static str,
        budget: usize,
        inner: MemoryConsumer,
    ) -> Self {
        let (world, life) = (world.clone(), world.life());
        let judge = Judge {
            world: world.clone(),
            life,
            stores: stores.clone(),
            stage,
            budget,
            held: Mutex::default(),
        };
        Self { world, life, inner, judge: Arc::new(judge) }
    }
}

impl Consumer for WatchedConsumer {
    async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        if self.world.life() != self.life {
            std::future::pending::<()>().await;
        }
        match self.world.receive_fault() {
            Some(Fault::Before(class)) => return Err(World::error(class)),
            Some(_) => simulated_panic(),
            None => {}
        }
        let Some(chunk) = self.inner.next().await? else { return Ok(None) };
        let (settle, deliveries) = chunk.into_parts();
        self.world.note(Op::Receive, deliveries.len(), None);
        self.judge.hand_out(&deliveries);
        Ok(Some(Chunk::new(Arc::new(Watched { judge: Arc::clone(&self.judge), settle }), deliveries)))
    }

    async fn close(&mut self) -> Result<(), StageError> {
        self.inner.close().await
    }
}

/// Judges the verdicts of one consumer.
struct Judge {
    world: World,
    life: u32,
    stores: Stores,
    stage: &'static str,
    /// Bytes that the service may hold before it must stop receiving.
    budget: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    bytes: usize,
    /// By token; the weight is gone once there was a verdict.
    messages: BTreeMap<u64, (MessageId, Option<usize>)>,
}

impl Judge {
    fn hand_out(&self, deliveries: &[messagepipeline::Delivery]) {
        let mut held = self.held.lock();
        if held.bytes >= self.budget {
            self.world.violation(format!("{} held {} bytes and took more", self.stage, held.bytes));
        }
        for delivery in deliveries {
            let weight = delivery.message.weight();
            held.bytes += weight;
            held.messages.insert(delivery.token.0, (delivery.message.id, Some(weight)));
        }
    }

    fn judge(&self, settlement: &Settlement) {
        let mut held = self.held.lock();
        let Some((id, weight)) = held.messages.get_mut(&settlement.token.0) else {
            return self.world.violation(format!("{}: a verdict on what was not handed out", self.stage));
        };
        let id = *id;
        match weight.take() {
            Some(weight) => held.bytes -= weight,
            None => self.world.violation(format!("{}: {id} had a second verdict", self.stage)),
        }
        drop(held);
        if settlement.verdict == Verdict::Ack && !self.stores.has_ended_at(self.stage, id) {
            self.world.violation(format!("{}: {id} was acknowledged and is nowhere", self.stage));
        }
    }
}

struct Watched {
    judge: Arc<Judge>,
    settle: Arc<dyn Settle>,
}

impl Settle for Watched {
    fn settle(&self, settlements: &[Settlement]) {
        let world = &self.judge.world;
        if world.life() != self.judge.life {
            return;
        }
        settlements.iter().for_each(|settlement| self.judge.judge(settlement));
        match world.settle_fault(settlements.len()) {
            None => self.settle.settle(settlements),
            Some(Fault::Late(by)) => {
                let (settle, settlements) = (Arc::clone(&self.settle), settlements.to_vec());
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    settle.settle(&settlements);
                });
            }
            Some(_) => {}
        }
    }
}

pub(crate) struct FaultyDeadLetters {
    pub(crate) world: World,
    pub(crate) life: u32,
    pub(crate) stores: Stores,
}

impl DeadLetters for FaultyDeadLetters {
    fn put(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, Result<(), StageError>> {
        let keep = move || {
            for letter in letters {
                self.stores.endings.letter(&self.world, letter);
            }
            Ok(())
        };
        Box::pin(self.world.call(self.life, Op::DeadLetter, 1, keep))
    }

    fn record_skips(&self, skips: Vec<Skipped>) -> BoxFuture<'_, Result<(), StageError>> {
        let keep = move || {
            skips.into_iter().for_each(|skip| self.stores.endings.skip(skip));
            Ok(())
        };
        Box::pin(self.world.call(self.life, Op::Skip, 1, keep))
    }
}

//! Doubles of what the enrichment stage meets.

#![allow(dead_code, reason = "every test binary uses some of them")]

use enrichment::{Parked, ParkingLot, Placed};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use messagepipeline::{
    BatchOutcome, DeadLetter, DeadLetters, Delivery, IdGenerator, Message, MessageId, Publisher, Skipped,
    StageError, Timestamp, Token,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The message that device `device` sends as its `n`-th; `None` names no device.
pub(crate) fn delivery(ids: &IdGenerator, device: Option<&str>, n: u64) -> Delivery {
    let mut message = Message::new(ids.next_id(), format!("payload {n}"), Timestamp::from_micros(1));
    let attributes = [("mqtt_topic", "t"), ("device_id", device.unwrap_or_default())];
    message.attributes = attributes.into_iter().collect();
    Delivery { message, token: Token(n) }
}

/// A parking lot in memory with a bound in count, that fails on demand.
#[derive(Default)]
pub(crate) struct MemoryLot {
    pub(crate) room: usize,
    pub(crate) parked: Mutex<Vec<Parked>>,
    pub(crate) failure: Mutex<bool>,
}

impl MemoryLot {
    pub(crate) fn with_room(room: usize) -> Arc<Self> {
        Arc::new(Self { room, ..Self::default() })
    }

    fn check(&self) -> Result<(), StageError> {
        if *self.failure.lock() {
            return Err(StageError::transient("lot-down", "the lot is down"));
        }
        Ok(())
    }

    fn select(&self, limit: usize, wanted: impl Fn(&Parked) -> bool) -> Result<Vec<Parked>, StageError> {
        self.check()?;
        Ok(self.parked.lock().iter().filter(|parked| wanted(parked)).take(limit).cloned().collect())
    }
}

impl ParkingLot for MemoryLot {
    fn park(&self, messages: Vec<Parked>) -> BoxFuture<'_, Result<Vec<Placed>, StageError>> {
        let mut lot = self.parked.lock();
        let place = |message: Parked| {
            if lot.iter().any(|known| known.message.id == message.message.id) {
                return Placed::Held;
            }
            if lot.len() == self.room {
                return Placed::Full;
            }
            lot.push(message);
            Placed::Held
        };
        let placed = self.check().map(|()| messages.into_iter().map(place).collect());
        ready(placed).boxed()
    }

    fn keys<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Box<str>>, StageError>> {
        let keys = self.check().map(|()| {
            let lot = self.parked.lock();
            let keys: BTreeSet<_> = lot.iter().map(|parked| parked.key.clone()).collect();
            keys.into_iter().filter(|key| after.is_none_or(|after| **key > *after)).take(limit).collect()
        });
        ready(keys).boxed()
    }

    fn of_keys(&self, keys: Vec<Box<str>>, limit: usize) -> BoxFuture<'_, Result<Vec<Parked>, StageError>> {
        ready(self.select(limit, |parked| keys.contains(&parked.key))).boxed()
    }

    fn parked_before(
        &self,
        cutoff: Timestamp,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Parked>, StageError>> {
        ready(self.select(limit, |parked| parked.since < cutoff)).boxed()
    }

    fn remove(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<(), StageError>> {
        let removed =
            self.check().map(|()| self.parked.lock().retain(|parked| !ids.contains(&parked.message.id)));
        ready(removed).boxed()
    }

    fn count(&self) -> BoxFuture<'_, Result<u64, StageError>> {
        ready(self.check().map(|()| self.parked.lock().len() as u64)).boxed()
    }
}

/// A topic that knows ids, and refuses or fails on demand.
#[derive(Default)]
pub(crate) struct MemoryTopic {
    pub(crate) messages: Mutex<BTreeMap<MessageId, Message>>,
    /// Calls, repeated publishes included.
    pub(crate) published: Mutex<usize>,
    pub(crate) refuse: Mutex<Option<MessageId>>,
    pub(crate) failure: Mutex<bool>,
}

impl Publisher for MemoryTopic {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        if *self.failure.lock() {
            let error = StageError::transient("topic-down", "the topic is down");
            return ready(BatchOutcome::Failed(error)).boxed();
        }
        let refuse = *self.refuse.lock();
        let take = |message: Message| {
            if refuse == Some(message.id) {
                return Err(StageError::permanent("id-conflict", "other bytes"));
            }
            *self.published.lock() += 1;
            self.messages.lock().entry(message.id).or_insert(message);
            Ok(())
        };
        ready(BatchOutcome::Each(messages.into_iter().map(take).collect())).boxed()
    }
}

/// Dead letters in memory.
#[derive(Default)]
pub(crate) struct MemoryDeadLetters(pub(crate) Mutex<Vec<DeadLetter>>);

impl DeadLetters for MemoryDeadLetters {
    fn put(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, Result<(), StageError>> {
        self.0.lock().extend(letters);
        ready(Ok(())).boxed()
    }

    fn record_skips(&self, _skips: Vec<Skipped>) -> BoxFuture<'_, Result<(), StageError>> {
        ready(Ok(())).boxed()
    }
}

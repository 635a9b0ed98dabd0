//! The spool: a durable buffer on this machine between MQTT and the bus.
//!
//! It is the embedded bus with one subscription per topic, and a service that takes what lies there onward. A device's
//! message is acknowledged when the spool has it on disk; the spool lets go of it when the bus has it.

use crate::{FORWARD, SpoolConfig};
use connectors::ConnectError;
use embedded::bus::{
    Bus, BusOptions, BusReader, ConsumerOptions, Finished, IdLedger, SubscriptionOptions, sequence,
};
use embedded::folder::DataFolder;
use messagepipeline::{
    BatchLimits, BatchingService, BoxConsumer, Clock, DeadLetters, Delivery, Message, MessageId, Outcome,
    PublishProcessor, Publisher, ServiceOptions, Shutdown, StageHealth, Timestamp, Transformer,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Ids in one step of forgetting; some milliseconds of the writer's time.
const STEP: usize = 512;
/// How often old ids are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(60);

/// The service behind one topic of the spool.
pub(crate) type Forward = BatchingService<BoxConsumer, AsIs, PublishProcessor>;

/// The open spool.
#[derive(Debug)]
pub(crate) struct Spool {
    folder: DataFolder,
    bus: Bus,
    ids: Duration,
    /// Its topics, each with the sequence number up to which it was filled when it was opened.
    topics: BTreeMap<String, u64>,
    clock: Arc<dyn Clock>,
}

impl Spool {
    /// Opens the spool in the folder `data`, which is locked while it is open, with room for `topics`.
    ///
    /// # Errors
    /// When the folder is in use or its file cannot be used.
    pub(crate) async fn open(
        data: &Path,
        config: &SpoolConfig,
        topics: &[String],
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConnectError> {
        let folder = DataFolder::open(data)?;
        let options = BusOptions { max_topic_bytes: config.max_size.bytes(), ..BusOptions::default() };
        let bus = Bus::open(&folder.bus(), options, Arc::clone(&clock)).await?;
        let mut spool = Self { folder, bus, ids: config.ids.get(), topics: BTreeMap::new(), clock };
        for name in topics {
            // What has no subscription yet would be trimmed at once.
            spool.consumer(name, &BatchLimits::default()).await?;
            let head = spool.bus.topic(name).await?.head();
            spool.topics.insert(name.clone(), head);
        }
        Ok(spool)
    }

    /// A publisher into the spool.
    ///
    /// # Errors
    /// When the topic cannot be created.
    pub(crate) async fn publisher(&self, topic: &str) -> Result<Arc<dyn Publisher>, ConnectError> {
        let topic = self.bus.topic(topic).await?;
        Ok(Arc::new(self.bus.publisher(&topic)))
    }

    /// Where the endpoint keeps its sessions.
    #[must_use]
    pub(crate) fn sessions(&self) -> Arc<dyn mqttconverter::endpoint::SessionStore> {
        Arc::new(self.bus.sessions())
    }

    async fn consumer(&self, topic: &str, limits: &BatchLimits) -> Result<BoxConsumer, ConnectError> {
        let topic = self.bus.topic(topic).await?;
        let options =
            SubscriptionOptions { max_outstanding_bytes: limits.budget, ..SubscriptionOptions::default() };
        let subscription = self.bus.subscription(&topic, FORWARD, options).await?;
        Ok(BoxConsumer::new(self.bus.consumer(&subscription, ConsumerOptions::default())))
    }

    /// The service that takes what lies in `topic` to `output`.
    ///
    /// # Errors
    /// When the topic cannot be read.
    pub(crate) async fn forward(
        &self,
        topic: &str,
        output: Arc<dyn Publisher>,
        dead_letters: Arc<dyn DeadLetters>,
        health: StageHealth,
        limits: BatchLimits,
    ) -> Result<Forward, ConnectError> {
        let consumer = self.consumer(topic, &limits).await?;
        let options = ServiceOptions {
            dead_letters: Some(dead_letters),
            health: Some(health),
            ..ServiceOptions::new(FORWARD)
        };
        let as_is = AsIs { filled_to: self.topics.get(topic).copied().unwrap_or_default() };
        Ok(BatchingService::new(options, limits, consumer, as_is, PublishProcessor::new(output)))
    }

    /// What forgets the ids of messages that have long left the spool.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn forgetting(&self) -> Result<Forgetting, ConnectError> {
        Ok(Forgetting {
            reader: Some(BusReader::open(self.folder.bus())?),
            ledger: self.bus.id_ledger(),
            topics: self.topics.keys().cloned().collect(),
            ids: self.ids,
            clock: Arc::clone(&self.clock),
        })
    }

    /// Stores all verdicts and closes the spool.
    ///
    /// # Errors
    /// When verdicts could not be stored; those messages go to the bus again, under the same ids.
    pub(crate) async fn close(&self) -> Result<(), ConnectError> {
        Ok(self.bus.close().await?)
    }
}

/// Takes messages as they are, but marks what was in the spool when it was opened: a process that died before it noted
/// that may have published it. Times tell nothing there, because clocks are set back.
#[derive(Debug)]
pub(crate) struct AsIs {
    /// Sequence number of the newest such message.
    filled_to: u64,
}

impl Transformer for AsIs {
    type Output = Message;

    async fn transform<'a>(&'a self, deliveries: &'a [Delivery], outcomes: &'a mut Vec<Outcome<Message>>) {
        outcomes.extend(deliveries.iter().map(|delivery| {
            let mut message = delivery.message.clone();
            if sequence(delivery.token) <= self.filled_to {
                message.mark_redelivered();
            }
            Outcome::Emit(message)
        }));
    }
}

/// Forgets old ids, so that the file does not grow by each message for ever.
#[derive(Debug)]
pub(crate) struct Forgetting {
    reader: Option<BusReader>,
    ledger: IdLedger,
    topics: Vec<String>,
    ids: Duration,
    clock: Arc<dyn Clock>,
}

impl Forgetting {
    /// Works until the shutdown begins.
    pub(crate) async fn run(mut self, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(FORGET_EVERY.min(self.ids.max(Duration::from_secs(1))));
        loop {
            tokio::select! {
                biased;
                () = shutdown.begun() => return,
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.pass(&shutdown).await {
                tracing::warn!(%error, "old ids of the spool were not forgotten; that is tried again");
            }
        }
    }

    async fn pass(&mut self, shutdown: &Shutdown) -> Result<(), embedded::Error> {
        let now = self.clock.now();
        let kept = i64::try_from(self.ids.as_micros()).unwrap_or(i64::MAX);
        let horizon = Timestamp::from_micros(now.as_micros().saturating_sub(kept));
        self.ledger.note_floors(now, horizon, FORGET_EVERY.min(self.ids / 2)).await?;
        for topic in self.topics.clone() {
            let mut after = None;
            while !shutdown.has_begun() {
                let Some((finished, last)) = self.page(&topic, after, horizon).await? else { break };
                after = Some(last);
                if !finished.is_empty() {
                    self.ledger.fold(finished, horizon).await?;
                    self.ledger.fold_done().await?;
                }
            }
        }
        Ok(())
    }

    /// The next page of ids that may be forgotten, read beside the runtime's threads.
    async fn page(
        &mut self,
        topic: &str,
        after: Option<MessageId>,
        horizon: Timestamp,
    ) -> Result<Option<(Vec<Finished>, MessageId)>, embedded::Error> {
        let Some(reader) = self.reader.take() else { return Ok(None) };
        let topic = topic.to_owned();
        let read = move || {
            let page = reader.candidates(&topic, (after, MessageId::from_bytes([0xff; 16])), horizon, STEP);
            (reader, page)
        };
        let (reader, page) = match tokio::task::spawn_blocking(read).await {
            Ok(read) => read,
            // Without its reader nothing would ever be forgotten again, in silence: the process ends and starts anew.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Ok(None),
        };
        self.reader = Some(reader);
        let page = page?;
        let Some(last) = page.last else { return Ok(None) };
        let finished =
            page.candidates.into_iter().map(|candidate| Finished { candidate, stored: Vec::new() });
        Ok(Some((finished.collect(), last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::{BatchOutcome, Consumer, IdGenerator, ManualClock};

    const HOUR: i64 = 3_600_000_000;

    async fn next(consumer: &mut BoxConsumer, as_is: &AsIs) -> Vec<Message> {
        let chunk = consumer.next().await.unwrap().unwrap();
        let mut outcomes = Vec::new();
        as_is.transform(chunk.deliveries(), &mut outcomes).await;
        let emitted = |outcome| match outcome {
            Outcome::Emit(message) => message,
            other => panic!("not emitted: {other:?}"),
        };
        outcomes.into_iter().map(emitted).collect()
    }

    #[tokio::test]
    async fn what_was_in_the_spool_at_the_start_is_marked_also_when_the_clock_was_set_back() {
        let folder = tempfile::tempdir().unwrap();
        let ids = IdGenerator::default();
        let topics = ["raw".to_owned()];
        let open = async |time| {
            let clock = Arc::new(ManualClock::new(Timestamp::from_micros(time)));
            Spool::open(folder.path(), &SpoolConfig::default(), &topics, clock).await.unwrap()
        };
        let publish = async |spool: &Spool| {
            let message = Message::new(ids.next_id(), "x", Timestamp::default());
            let outcome = spool.publisher("raw").await.unwrap().publish(vec![message]).await;
            assert!(!matches!(outcome, BatchOutcome::Failed(_)), "{outcome:?}");
        };
        let before = open(2 * HOUR).await;
        publish(&before).await;
        before.close().await.unwrap();
        drop(before);
        let spool = open(HOUR).await;
        publish(&spool).await;
        let mut consumer = spool.consumer("raw", &BatchLimits::default()).await.unwrap();
        let as_is = AsIs { filled_to: spool.topics["raw"] };
        let mut attempts = Vec::new();
        while attempts.len() < 2 {
            attempts.extend(next(&mut consumer, &as_is).await.iter().map(|message| message.attempt));
        }
        assert_eq!(attempts, [2, 1]);
    }
}

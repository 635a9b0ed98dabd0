//! The bus in one process.

use crate::{BusConfig, ConnectError, Window};
use ::enrichment::ParkingLot;
use embedded::bus::{Backlog, ConsumerOptions, IdLedger, LetterQueue};
use embedded::folder::DataFolder;
use messagepipeline::{BoxConsumer, Clock, DeadLetters, Publisher};
use mqttconverter::endpoint::SessionStore;
use std::sync::Arc;

/// The open bus of a data folder. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Bus {
    config: Arc<BusConfig>,
    inner: embedded::bus::Bus,
}

impl Bus {
    /// Opens the bus of `folder`; `max_parked` bounds its parking lot.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn open(
        config: &BusConfig,
        folder: &DataFolder,
        max_parked: u64,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ConnectError> {
        let inner = embedded::bus::Bus::open(&folder.bus(), config.options(max_parked), clock).await?;
        Ok(Self { config: Arc::new(config.clone()), inner })
    }

    /// A publisher to `topic`, which is created if it is not there.
    ///
    /// # Errors
    /// When the topic cannot be created.
    pub async fn publisher(&self, topic: &str) -> Result<Arc<dyn Publisher>, ConnectError> {
        let topic = self.inner.topic(topic).await?;
        Ok(Arc::new(self.inner.publisher(&topic)))
    }

    /// A consumer of `subscription` on `topic`; both are created if they are not there. A new subscription begins with
    /// the oldest message that the topic still has.
    ///
    /// # Errors
    /// When they cannot be created.
    pub async fn consumer(
        &self,
        topic: &str,
        subscription: &str,
        window: Window,
    ) -> Result<BoxConsumer, ConnectError> {
        let topic = self.inner.topic(topic).await?;
        let subscription =
            self.inner.subscription(&topic, subscription, self.config.subscription(window)).await?;
        Ok(BoxConsumer::new(self.inner.consumer(&subscription, ConsumerOptions::default())))
    }

    /// Where a stage without a subscription gives messages up.
    #[must_use]
    pub fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(self.inner.dead_letters(None))
    }

    /// Where the stage behind `subscription` gives messages up; the message is settled with the letter.
    ///
    /// # Errors
    /// When topic or subscription cannot be created.
    pub async fn dead_letters_of(
        &self,
        topic: &str,
        subscription: &str,
        window: Window,
    ) -> Result<Arc<dyn DeadLetters>, ConnectError> {
        let topic = self.inner.topic(topic).await?;
        let subscription =
            self.inner.subscription(&topic, subscription, self.config.subscription(window)).await?;
        Ok(Arc::new(self.inner.dead_letters(Some(&subscription))))
    }

    /// The dead letters, to be retried or dropped.
    #[must_use]
    pub fn letter_queue(&self) -> LetterQueue {
        self.inner.letter_queue()
    }

    /// Where messages of unknown devices wait.
    #[must_use]
    pub fn parking_lot(&self) -> Arc<dyn ParkingLot> {
        Arc::new(self.inner.parking_lot())
    }

    /// The retention of message ids.
    #[must_use]
    pub fn id_ledger(&self) -> IdLedger {
        self.inner.id_ledger()
    }

    /// Where the MQTT endpoint keeps its sessions.
    #[must_use]
    pub fn sessions(&self) -> Arc<dyn SessionStore> {
        Arc::new(self.inner.sessions())
    }

    /// How far everything is.
    ///
    /// # Errors
    /// When the bus cannot be read.
    pub async fn backlog(&self) -> Result<Backlog, ConnectError> {
        Ok(self.inner.backlog().await?)
    }

    /// Stores all verdicts and closes the bus.
    ///
    /// # Errors
    /// When verdicts could not be stored; those messages come again.
    pub async fn close(&self) -> Result<(), ConnectError> {
        Ok(self.inner.close().await?)
    }
}

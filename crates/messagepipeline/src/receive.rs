//! Receiving: the consumer with its pauses after errors.

use crate::retry::Backoff;
use crate::stage::Stage;
use crate::{Chunk, Consumer, ErrorClass, StageError};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long `next` must have waited after an error, without another one, to count as working again.
const PROBATION: Duration = Duration::from_secs(10);

/// What receiving brought.
pub(crate) enum Received {
    Chunk(Chunk),
    Ended,
    Failed(StageError),
}

/// An opened consumer. Its pause after an error is kept here, so that [`Receiver::next`] may be cancelled.
pub(crate) struct Receiver<C> {
    consumer: C,
    stage: Arc<Stage>,
    pause: Option<(Backoff, Instant)>,
}

impl<C: Consumer> Receiver<C> {
    pub(crate) fn new(stage: &Arc<Stage>, consumer: C) -> Self {
        Self { consumer, stage: Arc::clone(stage), pause: None }
    }

    /// The next chunk. A passing failure is waited out here.
    pub(crate) async fn next(&mut self) -> Received {
        loop {
            if let Some((_, until)) = &self.pause {
                tokio::time::sleep_until(*until).await;
            }
            let next = match &self.pause {
                None => self.consumer.next().await,
                Some(_) => match tokio::time::timeout(PROBATION, self.consumer.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        self.recovered();
                        continue;
                    }
                },
            };
            match next {
                Ok(Some(chunk)) => {
                    self.recovered();
                    return Received::Chunk(chunk);
                }
                Ok(None) => return Received::Ended,
                Err(error) if error.class() == ErrorClass::Permanent => return Received::Failed(error),
                Err(error) => self.failed(&error),
            }
        }
    }

    fn recovered(&mut self) {
        if self.pause.take().is_some() {
            self.stage.consumer_trouble(None);
        }
    }

    fn failed(&mut self, error: &StageError) {
        self.stage.consumer_trouble(Some(error));
        let mut backoff = match self.pause.take() {
            Some((backoff, _)) => backoff,
            None => self.stage.backoff(),
        };
        let until = Instant::now() + backoff.next_delay();
        self.pause = Some((backoff, until));
    }

    pub(crate) async fn close(&mut self) -> Result<(), StageError> {
        self.consumer.close().await
    }
}

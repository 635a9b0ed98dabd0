//! A stream and the task that reads it.
//!
//! The client's `next` opens the stream when it is first called, and a call that is dropped before it is ready begins
//! anew each time: so it stands in a stream that keeps its future, in a task of its own.

use crate::client::{Client, Resource, StreamLimits};
use crate::consumer::{Queued, Shared};
use crate::error::PubSubError;
use crate::options::ConsumerOptions;
use crate::wire::{Decoder, RETRIED_FOR, Received};
use futures_util::{Stream, StreamExt, stream};
use google_cloud_pubsub::model::Message as VendorMessage;
use google_cloud_pubsub::subscriber::MessageStream;
use google_cloud_pubsub::subscriber::handler::Handler;
use messagepipeline::{Backoff, RetryPolicy, Timestamp};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Messages taken from a stream under one lock.
const CHUNK: usize = 256;
/// A stream that has not failed for so long is taken to work: what is missing or forbidden is told at once.
const STANDS: Duration = Duration::from_secs(5);
/// First and longest wait before a stream that failed is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

type Item = Result<(VendorMessage, Handler), google_cloud_pubsub::Error>;
type Chunks = Pin<Box<dyn Stream<Item = Vec<Item>> + Send>>;

/// Why reading a stream ended.
enum Ended {
    /// The consumer is closed.
    Closed,
    /// Nothing came for so long that the connection may be dead.
    Silent,
    Failed(PubSubError),
}

/// Reads one stream after the other and fills the queue.
pub(crate) struct Pump {
    pub(crate) client: Client,
    pub(crate) subscription: Resource,
    pub(crate) options: ConsumerOptions,
    pub(crate) shared: Arc<Shared>,
    pub(crate) closing: CancellationToken,
    pub(crate) decoder: Decoder,
    pub(crate) number: u64,
}

impl Pump {
    pub(crate) async fn run(mut self) {
        let mut backoff = self.backoff();
        loop {
            let ended = match self.client.open_stream(&self.subscription, self.limits()).await {
                Ok(stream) => {
                    self.shared.keep(self.number, stream.shutdown_token());
                    self.read(chunks(stream), &mut backoff).await
                }
                Err(error) => Ended::Failed(error),
            };
            let pause = match ended {
                Ended::Closed => return,
                Ended::Silent => continue,
                Ended::Failed(error) => {
                    self.report(error);
                    backoff.next_delay()
                }
            };
            tokio::select! {
                () = self.closing.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Reads until the stream ends.
    async fn read(&mut self, mut chunks: Chunks, backoff: &mut Backoff) -> Ended {
        let opened = Instant::now();
        let mut stands = false;
        let mut heard = opened;
        loop {
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ended::Closed,
                chunk = chunks.next() => {
                    let Some(chunk) = chunk else { return Ended::Failed(self.ended()) };
                    if let Err(error) = self.take(chunk) {
                        return Ended::Failed(error);
                    }
                    heard = Instant::now();
                    if !std::mem::replace(&mut stands, true) {
                        *backoff = self.backoff();
                    }
                }
                () = sleep_until(opened + STANDS), if !stands => {
                    stands = true;
                    *backoff = self.backoff();
                    self.shared.works();
                }
                () = sleep_until(heard + self.options.max_silence) => {
                    if self.shared.holds_nothing() {
                        return Ended::Silent;
                    }
                    heard = Instant::now();
                }
            }
            tokio::select! {
                () = self.closing.cancelled() => return Ended::Closed,
                () = self.shared.room() => {}
            }
        }
    }

    /// Puts what came into the queue.
    fn take(&mut self, chunk: Vec<Item>) -> Result<(), PubSubError> {
        let received = Instant::now();
        let mut queued = Vec::with_capacity(chunk.len());
        let mut failure = None;
        let mut damaged = 0u64;
        for item in chunk {
            match item {
                Ok((message, handler)) => {
                    let mut delivered = from_vendor(message);
                    let retried_for = delivered.attributes.remove(RETRIED_FOR);
                    if retried_for.as_ref().is_some_and(|service| self.is_for_another(service)) {
                        handler.ack();
                        continue;
                    }
                    let mut decoded = self.decoder.decode(delivered);
                    damaged += u64::from(decoded.is_damaged);
                    if retried_for.is_some() {
                        // It may be there already, though Pub/Sub counts its deliveries from one again.
                        decoded.message.mark_redelivered();
                    }
                    queued.push(Queued { message: decoded.message, handler, received });
                }
                Err(error) => failure = Some(PubSubError::from_vendor(self.subscription.full(), &error)),
            }
        }
        if damaged > 0 {
            tracing::warn!(
                subscription = self.subscription.full(),
                messages = damaged,
                "messages claim a form of Millstream's and do not have it; they are handed on as they are"
            );
        }
        self.shared.arrived(queued);
        failure.map_or(Ok(()), |error| Err(error.of_a_stream()))
    }

    fn is_for_another(&self, service: &str) -> bool {
        self.options.service.as_ref().is_some_and(|own| own != service)
    }

    fn report(&self, error: PubSubError) {
        tracing::warn!(
            subscription = self.subscription.full(),
            stream = self.number,
            %error,
            "the stream ended; it is opened again"
        );
        self.shared.failed(error);
    }

    fn ended(&self) -> PubSubError {
        let message = "the stream ended".to_owned();
        PubSubError::Unavailable { resource: self.subscription.full().to_owned(), message }
    }

    fn backoff(&self) -> Backoff {
        let (base, max) = REOPEN;
        RetryPolicy { base, max, factor: 2, seed: self.options.seed, ..RetryPolicy::default() }
            .backoff(self.number)
    }

    /// The bounds as one stream's share of them; the service keeps them, the emulator does not.
    fn limits(&self) -> StreamLimits {
        let share = |all: usize| i64::try_from(all / self.options.streams.max(1)).unwrap_or(i64::MAX).max(1);
        StreamLimits {
            messages: share(self.options.max_outstanding_messages),
            bytes: share(self.options.max_outstanding_bytes),
            extension: self.options.lease_extension.max(self.options.min_ack_extension),
            lease: self.options.max_lease,
        }
    }
}

fn chunks(stream: MessageStream) -> Chunks {
    let next = |mut stream: MessageStream| async { stream.next().await.map(|item| (item, stream)) };
    Box::pin(stream::unfold(stream, next).ready_chunks(CHUNK))
}

/// What the client delivers, as the wire module takes it.
pub(crate) fn from_vendor(message: VendorMessage) -> Received {
    let time = message.publish_time.unwrap_or_default();
    let micros = time.seconds().saturating_mul(1_000_000).saturating_add(i64::from(time.nanos()) / 1_000);
    Received {
        data: message.data,
        attributes: message.attributes,
        message_id: message.message_id,
        publish_time: Timestamp::from_micros(micros),
    }
}

//! The consumer: what the streams brought, what was handed out, and the verdicts.

use crate::client::{Client, Resource};
use crate::confirm::Confirmer;
use crate::error::PubSubError;
use crate::options::ConsumerOptions;
use crate::pump::Pump;
use crate::reach::Reach;
use crate::streams::Streams;
use crate::tally::Tally;
use crate::window::{Limits, Window};
use crate::wire::Decoder;
use futures_util::FutureExt;
use futures_util::future::join_all;
use google_cloud_pubsub::subscriber::ShutdownToken;
use google_cloud_pubsub::subscriber::handler::{ExactlyOnce, Handler};
use messagepipeline::metric_names::{BUS_LEASES_EXPIRED, BUS_REDELIVERED, PUBSUB_STREAM_FAILURES};
use messagepipeline::{Chunk, Consumer, Delivery, Message, Settle, Settlement, StageError, Token, Verdict};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// Messages handed out together at most.
const CHUNK: usize = 256;

/// Consumes one subscription; see [`crate::Client::consumer`].
///
/// - A message's lease is extended for as long as it waits here or is worked on, up to `max_lease`.
/// - A nack and a return are the same to Pub/Sub: both bring the message again, after the subscription's own delay.
///   [`Message::attempt`] is the service's count where the subscription has a dead letter policy; it counts returns as
///   well. Elsewhere the nacks of this consumer are counted, for as long as it lives.
/// - A subscription that is missing or forbidden makes `next` answer with an error of configuration until it is there;
///   the streams are opened again by themselves.
/// - With exactly-once delivery a message keeps its place in the window until the service has confirmed its
///   acknowledgement. Otherwise the service confirms nothing: an acknowledgement that is lost becomes a redelivery.
pub struct PubSubConsumer {
    client: Client,
    subscription: Resource,
    options: ConsumerOptions,
    shared: Arc<Shared>,
    closing: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    confirmer: Option<JoinHandle<()>>,
}

/// What consumer, streams and verdicts share.
pub(crate) struct Shared {
    state: Mutex<State>,
    limits: Limits,
    /// Wakes `next`.
    arrival: Notify,
    /// Wakes streams that wait for room.
    room: Notify,
    /// Wakes the confirmer.
    pub(crate) confirm: Notify,
    redelivered: metrics::Counter,
    expired: metrics::Counter,
    failures: metrics::Counter,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Queued>,
    queue_weight: usize,
    window: Window<Handler>,
    tally: Tally,
    /// Acknowledgements that must be confirmed.
    confirm: Vec<(u64, ExactlyOnce)>,
    /// Acknowledgements since `close` began that the service did not confirm, or that came too late to be sent.
    unconfirmed: usize,
    /// `close` has begun; verdicts are still taken.
    is_closing: bool,
    failure: Option<PubSubError>,
    /// Why the service is not reached, though the streams do not tell.
    unreachable: Option<PubSubError>,
    /// When messages came last.
    heard: Option<Instant>,
    /// Every stream that may still have verdicts to send.
    streams: Streams<ShutdownToken>,
    /// What had no verdict was given back; verdicts come too late.
    is_closed: bool,
}

/// What `next` finds.
enum HandedOut {
    Messages(Vec<Delivery>),
    /// The consumer is closed.
    End,
    Nothing,
}

/// A message that waits to be handed out.
pub(crate) struct Queued {
    pub(crate) message: Message,
    pub(crate) handler: Handler,
    pub(crate) received: Instant,
}

impl PubSubConsumer {
    pub(crate) fn new(client: Client, subscription: Resource, options: ConsumerOptions) -> Self {
        let name = subscription.short().to_owned();
        let limits =
            Limits { messages: options.max_outstanding_messages, bytes: options.max_outstanding_bytes };
        let shared = Shared {
            state: Mutex::default(),
            limits,
            arrival: Notify::new(),
            room: Notify::new(),
            confirm: Notify::new(),
            redelivered: metrics::counter!(BUS_REDELIVERED, "subscription" => name.clone()),
            expired: metrics::counter!(BUS_LEASES_EXPIRED, "subscription" => name.clone()),
            failures: metrics::counter!(PUBSUB_STREAM_FAILURES, "subscription" => name),
        };
        Self {
            client,
            subscription,
            options,
            shared: Arc::new(shared),
            closing: CancellationToken::new(),
            tasks: Vec::new(),
            confirmer: None,
        }
    }

    fn start(&mut self) {
        if !self.tasks.is_empty() || self.closing.is_cancelled() {
            return;
        }
        for number in 0..self.options.streams.max(1) as u64 {
            let pump = Pump {
                client: self.client.clone(),
                subscription: self.subscription.clone(),
                options: self.options.clone(),
                shared: Arc::clone(&self.shared),
                closing: self.closing.clone(),
                decoder: Decoder::default(),
                number,
            };
            self.tasks.push(tokio::spawn(pump.run()));
        }
        let reach = Reach::new(self.client.clone(), self.subscription.clone());
        self.tasks.push(tokio::spawn(reach.watch(Arc::clone(&self.shared), self.closing.clone())));
        let confirmer = Confirmer { shared: Arc::clone(&self.shared) };
        self.confirmer = Some(tokio::spawn(confirmer.run()));
    }

    /// Ends the streams, gives back what has no verdict, and waits until the rest has reached the service.
    async fn finish(&mut self) -> Result<(), PubSubError> {
        let until = Instant::now() + self.options.close_deadline;
        let name = self.subscription.full();
        let late = || PubSubError::VerdictsLost(format!("{name} did not take all verdicts in time"));
        self.shared.state.lock().is_closing = true;
        self.closing.cancel();
        // The streams end first: what is given back must not come to them again. A task is forgotten when it has ended,
        // so that a close that was given up can be called again.
        while let Some(task) = self.tasks.last_mut() {
            // A panic in it has been reported by the runtime.
            let _ = timeout_at(until, task).await.map_err(|_| late())?;
            self.tasks.pop();
        }
        self.shared.give_back();
        if let Some(confirmer) = &mut self.confirmer {
            let _ = timeout_at(until, confirmer).await.map_err(|_| late())?;
            self.confirmer = None;
        }
        let streams = self.shared.state.lock().streams.all();
        timeout_at(until, join_all(streams.iter().map(ShutdownToken::shutdown))).await.map_err(|_| late())?;
        match self.shared.state.lock().unconfirmed {
            0 => Ok(()),
            count => Err(PubSubError::VerdictsLost(format!("{name} confirmed {count} acknowledgements not"))),
        }
    }
}

impl Consumer for PubSubConsumer {
    /// Starts reading and returns at once; whether the subscription is there shows in `next`.
    async fn open(&mut self) -> Result<(), StageError> {
        self.subscription.checked()?;
        self.start();
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        self.start();
        loop {
            // One consumer waits here at a time, so that its permit is never lost.
            let arrival = self.shared.arrival.notified();
            match self.shared.hand_out(&self.options)? {
                HandedOut::Messages(deliveries) => {
                    let settle: Arc<dyn Settle> = self.shared.clone();
                    return Ok(Some(Chunk::new(settle, deliveries)));
                }
                HandedOut::End => return Ok(None),
                HandedOut::Nothing => arrival.await,
            }
        }
    }

    async fn close(&mut self) -> Result<(), StageError> {
        Ok(self.finish().await?)
    }
}

impl Drop for PubSubConsumer {
    /// The client sends in the background what `close` would have waited for.
    fn drop(&mut self) {
        self.closing.cancel();
        self.shared.give_back();
    }
}

impl std::fmt::Debug for PubSubConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PubSubConsumer")
            .field("subscription", &self.subscription.full())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// A stream brought messages.
    pub(crate) fn arrived(&self, messages: Vec<Queued>) {
        if messages.is_empty() {
            return;
        }
        let weight: usize = messages.iter().map(|queued| queued.message.weight()).sum();
        let refused = {
            let mut state = self.state.lock();
            if state.is_closed {
                messages
            } else {
                state.failure = None;
                state.unreachable = None;
                state.heard = Some(Instant::now());
                state.queue_weight += weight;
                state.queue.extend(messages);
                Vec::new()
            }
        };
        // Outside the lock: dropping gives them back.
        drop(refused);
        self.arrival.notify_one();
    }

    /// A stream ended.
    pub(crate) fn failed(&self, error: PubSubError) {
        self.failures.increment(1);
        self.state.lock().failure = Some(error);
        self.arrival.notify_one();
    }

    /// A stream stands.
    pub(crate) fn works(&self) {
        self.state.lock().failure = None;
    }

    /// When messages came last.
    pub(crate) fn heard(&self) -> Option<Instant> {
        self.state.lock().heard
    }

    /// The service was asked at `asked` whether it is there. Messages that have come since are the better answer.
    pub(crate) fn reached(&self, asked: Instant, failure: Option<PubSubError>) {
        let mut state = self.state.lock();
        let failure = failure.filter(|_| state.heard.is_none_or(|heard| heard < asked));
        let is_failed = failure.is_some();
        state.unreachable = failure;
        drop(state);
        if is_failed {
            self.arrival.notify_one();
        }
    }

    /// The pump `number` opened a stream. Those that have ended and sent everything are forgotten.
    pub(crate) fn keep(&self, number: u64, stream: ShutdownToken) {
        // Asked only of streams that were dropped, and so are told to shut down already.
        let done = |ended: &ShutdownToken| ended.shutdown().now_or_never().is_some();
        self.state.lock().streams.keep(number, stream, done);
    }

    /// Waits until less is held than may be. A message that was settled and keeps its place in the window behind an older
    /// one counts no more: the service would send others for it, and they must not lie unread while their lease runs.
    pub(crate) async fn room(&self) {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            if self.has_room() {
                return;
            }
            room.await;
        }
    }

    fn has_room(&self) -> bool {
        let state = self.state.lock();
        let (unfinished, weight) = state.window.unfinished();
        self.limits.admit(state.queue.len() + unfinished, state.queue_weight + weight, 1)
    }

    /// Whether nothing waits and nothing is without a verdict.
    pub(crate) fn holds_nothing(&self) -> bool {
        self.state.lock().held().0 == 0
    }

    /// What can be handed out now.
    fn hand_out(&self, options: &ConsumerOptions) -> Result<HandedOut, PubSubError> {
        let mut stale = Vec::new();
        let mut state = self.state.lock();
        if state.is_closed {
            return Ok(HandedOut::End);
        }
        let deliveries = state.take(self.limits, Instant::now(), options, &mut stale);
        let again = deliveries.iter().filter(|delivery| delivery.message.is_redelivered()).count();
        let answer = match (deliveries.is_empty(), state.failure.as_ref().or(state.unreachable.as_ref())) {
            (false, _) => Ok(HandedOut::Messages(deliveries)),
            (true, Some(error)) if state.queue.is_empty() => Err(error.clone()),
            (true, _) => Ok(HandedOut::Nothing),
        };
        drop(state);
        self.redelivered.increment(again as u64);
        if !stale.is_empty() {
            self.expired.increment(stale.len() as u64);
            self.room.notify_waiters();
        }
        answer
    }

    /// Gives back everything without a verdict, and takes no more.
    fn give_back(&self) {
        let (queue, handed_out) = {
            let mut state = self.state.lock();
            state.is_closed = true;
            state.queue_weight = 0;
            (std::mem::take(&mut state.queue), state.window.clear())
        };
        // Dropping a handler gives its message back.
        drop((queue, handed_out));
        self.arrival.notify_one();
        self.room.notify_waiters();
        self.confirm.notify_one();
    }

    /// Acknowledgements that are to be confirmed, and whether no more can follow.
    pub(crate) fn take_confirmations(&self) -> (Vec<(u64, ExactlyOnce)>, bool) {
        let mut state = self.state.lock();
        (std::mem::take(&mut state.confirm), state.is_closed)
    }

    /// What became of acknowledgements.
    pub(crate) fn confirmed(&self, tokens: &[(u64, bool)]) {
        let refused = tokens.iter().filter(|(_, is_confirmed)| !is_confirmed).count();
        if refused > 0 {
            tracing::warn!(
                messages = refused,
                "acknowledgements were not confirmed; the messages come again"
            );
        }
        let mut state = self.state.lock();
        if state.is_closing {
            state.unconfirmed += refused;
        }
        tokens.iter().for_each(|(token, _)| state.window.finish(*token));
        drop(state);
        self.arrival.notify_one();
        self.room.notify_waiters();
    }
}

impl State {
    /// Messages and bytes held.
    fn held(&self) -> (usize, usize) {
        (self.queue.len() + self.window.len(), self.queue_weight + self.window.weight())
    }

    /// Takes from the queue what fits the window. What is too old for its lease goes to `stale`.
    fn take(
        &mut self,
        limits: Limits,
        now: Instant,
        options: &ConsumerOptions,
        stale: &mut Vec<Queued>,
    ) -> Vec<Delivery> {
        let mut deliveries = Vec::with_capacity(CHUNK.min(self.queue.len()));
        while deliveries.len() < CHUNK
            && let Some(queued) = self.queue.front()
        {
            let weight = queued.message.weight();
            let is_stale = now.duration_since(queued.received) >= options.max_lease;
            if !is_stale && !limits.admit(self.window.len(), self.window.weight(), weight) {
                break;
            }
            let Some(mut queued) = self.queue.pop_front() else { break };
            self.queue_weight -= weight;
            if is_stale {
                stale.push(queued);
                continue;
            }
            let id = queued.message.id;
            let counted = queued.handler.delivery_attempt().and_then(|count| u32::try_from(count).ok());
            let counted = counted.unwrap_or_else(|| self.tally.attempt(id));
            queued.message.attempt = queued.message.attempt.max(counted);
            let token = Token(self.window.push(id, weight, queued.handler));
            deliveries.push(Delivery { message: queued.message, token });
        }
        deliveries
    }

    /// Notes one verdict; what the service must be told goes to `tell`. `false` for an acknowledgement that comes too late:
    /// its message was given back.
    fn settle(&mut self, settlement: Settlement, tell: &mut Vec<(Handler, bool)>) -> bool {
        let token = settlement.token.0;
        let is_ack = settlement.verdict == Verdict::Ack;
        let Some((id, handler)) = self.window.take(token) else {
            let is_late = self.is_closed && is_ack;
            self.unconfirmed += usize::from(is_late);
            return !is_late;
        };
        match settlement.verdict {
            Verdict::Ack => self.tally.forget(id),
            Verdict::Nack => self.tally.fail(id),
            Verdict::Return => {}
        }
        match handler {
            // It keeps its place until it is confirmed, which bounds the confirmations that are waited for.
            Handler::ExactlyOnce(handler) if is_ack => self.confirm.push((token, handler)),
            handler => {
                self.window.finish(token);
                tell.push((handler, is_ack));
            }
        }
        true
    }
}

impl Settle for Shared {
    fn settle(&self, settlements: &[Settlement]) {
        let mut tell = Vec::with_capacity(settlements.len());
        let (late, must_confirm) = {
            let mut state = self.state.lock();
            let mut late = 0;
            for settlement in settlements {
                late += usize::from(!state.settle(*settlement, &mut tell));
            }
            (late, !state.confirm.is_empty())
        };
        if late > 0 {
            tracing::warn!(
                messages = late,
                "acknowledged after the consumer was closed; the messages come again"
            );
        }
        for (handler, is_ack) in tell {
            if is_ack { handler.ack() } else { handler.nack() }
        }
        if must_confirm {
            self.confirm.notify_one();
        }
        self.arrival.notify_one();
        self.room.notify_waiters();
    }
}

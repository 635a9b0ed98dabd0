//! What is left to do when a connection ends.

use super::super::intake::Will;
use super::super::reason::Reason;
use super::super::reply;
use super::super::session::{Attachment, Sequel};
use super::super::shared::{Phase, Sender, Shared};
use super::reading::deliver;
use super::{Connection, End};
use bytes::BytesMut;
use messagepipeline::Delivery;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};

/// How long a client whose connection we end may take to read our last words.
const FAREWELL: Duration = Duration::from_secs(2);

impl Connection {
    pub(super) async fn conclude(mut self, end: End) -> Option<WaitingWill> {
        (self.large, self.window_full) = (None, None);
        self.wire.input = BytesMut::new();
        self.report(end);
        if end == End::Refused(Reason::ShuttingDown) {
            self.collect();
        }
        if let End::Refused(reason) = end {
            reply::disconnect(&mut self.wire.output, self.gate.version, reason);
        }
        Box::pin(self.keep_expiry()).await;
        let will = self.will.take().filter(|_| end.publishes_will());
        self.shared.sessions.detach(&self.attachment);
        if let Err(error) = Box::pin(self.shared.forget_ended()).await {
            self.shared.store_failed(&error);
        }
        let Self { shared, wire, attachment, sender, expiry, phase, .. } = self;
        if end == End::Gone {
            drop(wire);
        } else {
            wire.finish(FAREWELL).await;
        }
        let (mut will, sender) = will.zip(sender)?;
        let delay = Duration::from_secs(will.delay.into()).min(expiry);
        if !delay.is_zero() && attachment.sequel() == Some(Sequel::Resumed) {
            return None;
        }
        // Without room to wait in, a delayed one goes early, which is better than never, and keeps the connection's place
        // until the pipeline has it: that is what bounds such wills.
        let Some(room) = shared.budget.waiting_will(will.weight()) else {
            publish_will(&shared, &sender, *will).await;
            return None;
        };
        if !delay.is_zero() {
            // Clients that connect may have it.
            will.room = None;
        }
        Some(WaitingWill { shared, sender, attachment, phase, will, delay, _room: room })
    }

    /// A DISCONNECT may have changed how long the session is remembered.
    async fn keep_expiry(&self) {
        if self.expiry_changed && !self.expiry.is_zero() {
            // Without it the session ends sooner or later than asked; the failure has been told.
            let _ = self.shared.remember(&self.attachment, self.expiry).await;
        }
    }

    fn report(&self, end: End) {
        let client_id = &**self.attachment.client_id();
        match end {
            End::Refused(reason @ (Reason::ShuttingDown | Reason::TakenOver)) => {
                tracing::debug!(client_id, reason = reason.word(), "MQTT connection ended");
            }
            End::Refused(reason) => {
                if self.shared.telemetry.refused(reason) {
                    tracing::warn!(
                        client_id,
                        reason = reason.word(),
                        "MQTT connection ended by the endpoint"
                    );
                }
            }
            End::Left { .. } | End::Gone => tracing::debug!(client_id, ?end, "MQTT connection ended"),
        }
    }
}

/// The will of a client that is gone: it waits for its delay, if it has one, and for the pipeline.
pub(in super::super) struct WaitingWill {
    shared: Arc<Shared>,
    sender: Sender,
    attachment: Attachment,
    phase: watch::Receiver<Phase>,
    will: Box<Will>,
    delay: Duration,
    _room: OwnedSemaphorePermit,
}

impl WaitingWill {
    /// Publishes it when its delay is over or the session has ended before (MQTT 5, section 3.1.3.2.2), unless the client
    /// comes back to the session or the endpoint stops. One without a delay is due whatever happens.
    pub(in super::super) async fn publish_when_due(mut self) {
        if self.delay.is_zero() || self.is_due().await {
            publish_will(&self.shared, &self.sender, *self.will).await;
        }
    }

    async fn is_due(&mut self) -> bool {
        let Self { attachment, phase, .. } = self;
        let decided = async {
            loop {
                match attachment.sequel() {
                    // Verdicts of what the connection left wake us, too.
                    None => attachment.woken().await,
                    Some(sequel) => return sequel == Sequel::Ended,
                }
            }
        };
        tokio::select! {
            biased;
            is_due = decided => is_due,
            () = tokio::time::sleep(self.delay) => true,
            _ = phase.wait_for(|phase| *phase != Phase::Open) => false,
        }
    }
}

async fn publish_will(shared: &Shared, sender: &Sender, mut will: Will) {
    let _room = will.room.take();
    let message = will.into_message(shared.now());
    let weight = message.weight();
    let stored_weight = u32::try_from(weight).unwrap_or(u32::MAX);
    let Some(sequence) = shared.wills.with_window(|window| window.take(0, 0, stored_weight)) else { return };
    let mut deliveries = vec![Delivery { message, token: shared.wills.token(sequence) }];
    shared.name(&mut deliveries);
    deliver(shared, sender, deliveries, weight).await;
}

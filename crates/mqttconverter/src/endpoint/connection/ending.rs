//! What is left to do when a connection ends.

use super::super::intake::Will;
use super::super::reason::Reason;
use super::super::reply;
use super::super::session::Attachment;
use super::super::shared::{Phase, Sender, Shared};
use super::reading::deliver;
use super::{Connection, End};
use bytes::BytesMut;
use messagepipeline::Delivery;
use std::time::Duration;
use tokio::sync::watch;

/// How long a client whose connection we end may take to read our last words.
const FAREWELL: Duration = Duration::from_secs(2);

impl Connection {
    pub(super) async fn conclude(mut self, end: End) {
        // What follows may take as long as a will's delay.
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
        let Self { shared, wire, attachment, sender, expiry, mut phase, .. } = self;
        if end == End::Gone {
            drop(wire);
        } else {
            wire.finish(FAREWELL).await;
        }
        if let (Some(will), Some(sender)) = (will, sender) {
            let delay = Duration::from_secs(will.delay.into()).min(expiry);
            if !comes_back(&attachment, delay, &mut phase).await {
                publish_will(&shared, &sender, *will).await;
            }
        }
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

/// Waits for the will's delay; whether the client came back meanwhile, or the endpoint stops.
async fn comes_back(attachment: &Attachment, delay: Duration, phase: &mut watch::Receiver<Phase>) -> bool {
    if delay.is_zero() {
        return false;
    }
    let returned = async {
        // Verdicts of what the connection left wake us, too.
        while attachment.is_latest() {
            attachment.woken.notified().await;
        }
    };
    tokio::select! {
        () = tokio::time::sleep(delay) => !attachment.is_latest(),
        () = returned => true,
        _ = phase.wait_for(|phase| *phase != Phase::Open) => true,
    }
}

async fn publish_will(shared: &Shared, sender: &Sender, will: Will) {
    let message = will.into_message(shared.now());
    let weight = message.weight();
    let stored_weight = u32::try_from(weight).unwrap_or(u32::MAX);
    let Some(sequence) = shared.wills.with_window(|window| window.take(0, 0, stored_weight)) else { return };
    let mut deliveries = vec![Delivery { message, token: shared.wills.token(sequence) }];
    shared.name(&mut deliveries);
    deliver(shared, sender, deliveries, weight).await;
}

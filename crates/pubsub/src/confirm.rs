//! Acknowledgements of exactly-once subscriptions, waited for until the service confirms them.

use crate::consumer::Shared;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use google_cloud_pubsub::subscriber::handler::ExactlyOnce;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Sends acknowledgements and waits. There are never more than the consumer's window holds.
pub(crate) struct Confirmer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) closing: CancellationToken,
}

impl Confirmer {
    /// Runs until the consumer is closed and everything is confirmed or refused.
    pub(crate) async fn run(self) {
        let mut waiting = FuturesUnordered::new();
        loop {
            let is_closing = self.closing.is_cancelled();
            waiting.extend(self.shared.take_confirmations().into_iter().map(confirm));
            if is_closing && waiting.is_empty() {
                return;
            }
            tokio::select! {
                Some(first) = waiting.next() => {
                    let mut answers = vec![first];
                    while let Some(Some(answer)) = futures_util::FutureExt::now_or_never(waiting.next()) {
                        answers.push(answer);
                    }
                    self.shared.confirmed(&answers);
                }
                () = self.shared.confirm.notified() => {}
                () = self.closing.cancelled(), if !is_closing => {}
            }
        }
    }
}

async fn confirm((token, handler): (u64, ExactlyOnce)) -> (u64, bool) {
    (token, handler.confirmed_ack().await.is_ok())
}

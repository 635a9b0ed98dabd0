//! Acknowledgements of exactly-once subscriptions, waited for until the service confirms them.

use crate::consumer::Shared;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use google_cloud_pubsub::subscriber::handler::ExactlyOnce;
use std::sync::Arc;

/// Sends acknowledgements and waits. There are never more than the consumer's window holds.
pub(crate) struct Confirmer {
    pub(crate) shared: Arc<Shared>,
}

impl Confirmer {
    /// Runs until the consumer takes no more verdicts and everything is confirmed or refused.
    pub(crate) async fn run(self) {
        let mut waiting = FuturesUnordered::new();
        loop {
            let (acknowledged, is_all) = self.shared.take_confirmations();
            waiting.extend(acknowledged.into_iter().map(confirm));
            if is_all && waiting.is_empty() {
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
            }
        }
    }
}

async fn confirm((token, handler): (u64, ExactlyOnce)) -> (u64, bool) {
    (token, handler.confirmed_ack().await.is_ok())
}

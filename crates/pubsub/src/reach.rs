//! Whether the service answers at all: a stream that has no messages looks like one that reaches nobody.

use crate::client::{Client, Resource};
use crate::consumer::Shared;
use crate::error::PubSubError;
use google_cloud_gax::error::rpc::Code;
use google_cloud_gax::options::RequestOptionsBuilder;
use google_cloud_gax::retry_policy::NeverRetry;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// How often the service is asked while nothing comes. Far below its 6,000 administrative requests a minute and project
/// (<https://cloud.google.com/pubsub/quotas>), also for hundreds of replicas.
const EVERY: Duration = Duration::from_secs(30);
/// The same while it does not answer.
const AGAIN: Duration = Duration::from_secs(5);

/// Asks the service about a subscription.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    client: Client,
    subscription: Resource,
}

impl Reach {
    pub(crate) fn new(client: Client, subscription: Resource) -> Self {
        Self { client, subscription }
    }

    /// Whether the service answers, over a connection of its own. A refusal is an answer: who may consume need not have
    /// `pubsub.subscriptions.get`, and what is missing or forbidden the stream tells itself.
    pub(crate) async fn ask(&self) -> Result<(), PubSubError> {
        let name = self.subscription.checked()?;
        let asking = async {
            let admin = self.client.subscription_admin().await?;
            let answer =
                admin.get_subscription().set_subscription(name).with_retry_policy(NeverRetry).send().await;
            match answer {
                Err(error) if !is_answer(&error) => Err(PubSubError::from_vendor(name, &error)),
                _ => Ok(()),
            }
        };
        let late = |_| PubSubError::Timeout { resource: name.to_owned(), after: ANSWER };
        timeout(ANSWER, asking).await.map_err(late)?
    }

    /// Asks while the streams bring nothing, and lets the consumer know, until `closing`.
    pub(crate) async fn watch(self, shared: Arc<Shared>, closing: CancellationToken) {
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = closing.cancelled() => return,
                () = sleep_until(next) => {}
            }
            let heard = shared.heard();
            if let Some(heard) = heard.filter(|heard| heard.elapsed() < EVERY) {
                next = heard + EVERY;
                continue;
            }
            let asked = Instant::now();
            let answer = tokio::select! {
                () = closing.cancelled() => return,
                answer = self.ask() => answer,
            };
            next = Instant::now() + if answer.is_ok() { EVERY } else { AGAIN };
            shared.reached(asked, answer.err());
        }
    }
}

fn is_answer(error: &google_cloud_pubsub::Error) -> bool {
    let passing = |code| matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled);
    match error.status() {
        Some(status) => !passing(status.code),
        // What is no message of the service may still be its answer, or that of something before it.
        None => error.http_status_code().is_some_and(|code| (400..500).contains(&code)),
    }
}

//! What lies on a dead letter topic, read without taking it away.

use crate::client::{Client, Resource, StreamLimits};
use crate::dead_letters::{ATTEMPTS, DETAIL, ENDED, LETTER, REASON, RECORD, SKIP, STAGE};
use crate::error::PubSubError;
use crate::pump::from_vendor;
use crate::wire::{Decoder, Received, take_fact};
use google_cloud_pubsub::subscriber::handler::Handler;
use messagepipeline::{Message, MessageId, Skipped, Timestamp};
use std::collections::HashSet;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

/// Messages between the task that reads and the caller.
const AHEAD: usize = 256;
/// Time to connect, beyond what is waited for.
const CONNECTING: Duration = Duration::from_secs(7);
/// How long giving everything back may take.
const GIVE_BACK: Duration = Duration::from_secs(10);

/// A letter as it lies on the topic.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    /// The message as its stage received it.
    pub message: Message,
    /// The stage that gave up.
    pub stage: String,
    /// Reason word in kebab case.
    pub reason: String,
    /// What was wrong, for people.
    pub detail: String,
    /// Deliveries until then.
    pub attempts: u32,
    /// When it was given up; `None` when that was not said.
    pub ended: Option<Timestamp>,
}

/// A record on a dead letter topic.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A message given up on.
    Letter(Box<Letter>),
    /// A message that a rule ended.
    Skip(Skipped),
    /// Something else: what the service itself forwarded by a subscription's dead letter policy, or somebody put there.
    Foreign(Box<Message>),
}

/// How a listing went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Records shown.
    pub records: usize,
    /// Copies of records that were shown already.
    pub copies: usize,
    /// Whether nothing more came; `false` when the bound was reached first.
    pub is_complete: bool,
}

/// Lists a subscription of a dead letter topic; see [`crate::Client::letters`].
///
/// It takes deliveries, shows them, and gives all back. Another reader sees nothing meanwhile, and the service counts a
/// delivery for each.
#[derive(Clone, Debug)]
pub struct LetterReader {
    client: Client,
    subscription: Resource,
}

impl LetterReader {
    pub(crate) fn new(client: Client, subscription: Resource) -> Self {
        Self { client, subscription }
    }

    /// Shows every record once to `show`, at most `max`, until nothing has come for `quiet` (a few seconds: the service
    /// does not say that it has nothing more).
    ///
    /// # Errors
    /// When the subscription cannot be read.
    pub async fn list(
        &self,
        max: usize,
        quiet: Duration,
        mut show: impl FnMut(Record),
    ) -> Result<Listing, PubSubError> {
        let bound = i64::try_from(max).unwrap_or(i64::MAX).max(1);
        let limits = StreamLimits {
            messages: bound,
            bytes: 0,
            extension: Duration::from_secs(10),
            lease: Duration::from_secs(3_600),
        };
        let mut stream = self.client.open_stream(&self.subscription, limits).await?;
        let token = stream.shutdown_token();
        let (sender, mut incoming) = mpsc::channel(AHEAD);
        // Its call must not be dropped while it is open, so it has a task of its own.
        let reader = tokio::spawn(async move {
            while let Some(item) = stream.next().await {
                if sender.send(item).await.is_err() {
                    return;
                }
            }
        });
        let mut shown = Shown::default();
        let ended = loop {
            if shown.held.len() >= max {
                break Ok(false);
            }
            // The first one comes after names, TLS and a token.
            let patience = if shown.held.is_empty() { quiet + CONNECTING } else { quiet };
            match timeout(patience, incoming.recv()).await {
                Err(_) => break Ok(true),
                Ok(Some(Ok((message, handler)))) => shown.take(from_vendor(message), handler, &mut show),
                Ok(Some(Err(error))) => {
                    break Err(PubSubError::from_vendor(self.subscription.full(), &error));
                }
                Ok(None) => break Err(PubSubError::Closed),
            }
        };
        // The stream ends first: what is given back must not come to it again.
        reader.abort();
        let back = Instant::now() + GIVE_BACK;
        let _ = timeout_at(back, reader).await;
        drop(incoming);
        let (records, copies) = (shown.seen.len(), shown.copies);
        drop(shown);
        // Without its answer the leases run out by themselves.
        let _ = timeout_at(back, token.shutdown()).await;
        ended.map(|is_complete| Listing { records, copies, is_complete })
    }
}

/// What was shown and is held back until the end.
#[derive(Default)]
struct Shown {
    decoder: Decoder,
    seen: HashSet<(MessageId, String, String)>,
    held: Vec<Handler>,
    copies: usize,
}

impl Shown {
    fn take(&mut self, received: Received, handler: Handler, show: &mut impl FnMut(Record)) {
        let record = read(&mut self.decoder, received);
        let key = match &record {
            Record::Letter(letter) => (letter.message.id, letter.stage.clone(), LETTER.to_owned()),
            Record::Skip(skip) => (skip.id, skip.stage.to_string(), SKIP.to_owned()),
            Record::Foreign(message) => (message.id, String::new(), String::new()),
        };
        self.held.push(handler);
        if self.seen.insert(key) {
            show(record);
        } else {
            self.copies += 1;
        }
    }
}

/// What was delivered, as a record.
fn read(decoder: &mut Decoder, mut received: Received) -> Record {
    let kind = received.attributes.get(RECORD).cloned();
    let stage = received.attributes.get(STAGE).cloned();
    let (Some(kind), Some(stage)) = (kind, stage) else {
        return Record::Foreign(Box::new(decoder.decode(received).message));
    };
    let mut fact = |name| take_fact(&mut received, name);
    let (reason, detail, attempts, ended) = (fact(REASON), fact(DETAIL), fact(ATTEMPTS), fact(ENDED));
    fact(RECORD);
    fact(STAGE);
    let message = decoder.decode(received).message;
    let reason = reason.unwrap_or_default();
    if kind == SKIP {
        return Record::Skip(Skipped { id: message.id, stage: stage.into(), rule: reason.into() });
    }
    Record::Letter(Box::new(Letter {
        message,
        stage,
        reason,
        detail: detail.unwrap_or_default(),
        attempts: attempts.and_then(|text| text.parse().ok()).unwrap_or(1),
        ended: ended.and_then(|text| text.parse().ok()),
    }))
}

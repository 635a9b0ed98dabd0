//! Carrying an order out, beside a running pipeline or without one.

use super::{Answer, Operation, Request, parse_id};
use embedded::bus::{Decision, LetterFilter, LetterKey, LetterPage, LetterQueue, Retried, StoredLetter};
use ingestion_service::{Ingest, Ingested};
use messagepipeline::ErrorClass;
use tokio::sync::Semaphore;

/// The dead letters and what it takes to bring them back.
///
/// A message that reached its topic goes back there in the transaction that ends its letter. One that ingestion gave
/// up goes through ingestion's rules as they are now: it is published first and its letter ended then, because
/// publishing twice does nothing and a letter ended too soon would be a loss.
#[derive(Debug)]
pub struct Letters {
    queue: LetterQueue,
    ingest: Ingest,
    /// One order at a time, so that no letter is dropped while its message is being published.
    turn: Semaphore,
}

impl Letters {
    /// The letters of `queue`, those of ingestion with its rules.
    #[must_use]
    pub fn new(queue: LetterQueue, ingest: Ingest) -> Self {
        Self { queue, ingest, turn: Semaphore::new(1) }
    }

    /// Does what `request` asks for.
    ///
    /// # Errors
    /// When the request makes no sense, or the bus cannot be written; for people.
    pub async fn carry_out(&self, request: &Request) -> Result<Answer, String> {
        let filter = request.filter()?;
        let after: Option<LetterKey> = match &request.after {
            Some((stage, id)) => Some((stage.clone(), parse_id(id)?)),
            None => None,
        };
        let decision = Decision { by: request.by.clone(), why: request.why.clone() };
        let _turn = self.turn.acquire().await.map_err(|error| error.to_string())?;
        let page = match request.operation {
            Operation::Retry => self.retry(filter, after, decision).await,
            Operation::Drop => self.queue.drop_letters(filter, after, decision).await,
        };
        let page = page.map_err(|error| error.to_string())?;
        let named = |(stage, id): LetterKey| (stage, id.to_string());
        let refused = page.refused.into_iter().map(|(key, why)| {
            let (stage, id) = named(key);
            (stage, id, why)
        });
        Ok(Answer { done: page.done, refused: refused.collect(), next: page.next.map(named) })
    }

    /// Retries a page; what no topic has had yet goes through ingestion.
    async fn retry(
        &self,
        filter: LetterFilter,
        after: Option<LetterKey>,
        decision: Decision,
    ) -> Result<LetterPage, embedded::Error> {
        let mut page = self.queue.retry(filter, after, decision.clone()).await?;
        let letters = std::mem::take(&mut page.unpublished);
        if letters.is_empty() {
            return Ok(page);
        }
        let (keys, messages): (Vec<LetterKey>, Vec<_>) = letters.into_iter().map(taken_apart).unzip();
        let answers = self.ingest.pass(messages).await;
        let mut retried = Vec::with_capacity(keys.len());
        for (key, answer) in keys.into_iter().zip(answers) {
            match answer {
                Ingested::Published => retried.push((key, Retried::Passed)),
                Ingested::Skipped(rule) => retried.push((key, Retried::Skipped(rule))),
                Ingested::Failed(error) => {
                    page.refused.push((key.clone(), error.detail().to_owned()));
                    // A passing failure says nothing about the letter, which stays as it is.
                    if error.class() == ErrorClass::Permanent {
                        retried.push((key, Retried::Failed(error)));
                    }
                }
            }
        }
        page.done += self.queue.end(retried, decision).await?;
        Ok(page)
    }

    /// Closes a queue that nobody else uses.
    pub async fn close(&self) {
        // What was committed is on the disk; the next start reads the write-ahead log.
        let _ = self.queue.close().await;
    }
}

fn taken_apart(letter: StoredLetter) -> (LetterKey, messagepipeline::Message) {
    ((letter.stage, letter.message.id), letter.message)
}

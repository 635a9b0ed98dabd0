//! From the source to the connections: reading ahead a little, pacing, and one connection per topic or device.

use super::Progress;
use super::source::{Item, Numbering, Publication, Source};
use crate::recording::RecordingError;
use messagepipeline::Shutdown;
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

/// Messages, and their bytes, handed over together.
const CHUNK_MESSAGES: usize = 64;
const CHUNK_BYTES: usize = 1024 * 1024;

/// Chunks read ahead.
const CHUNKS_AHEAD: usize = 4;

/// What the reading thread hands over, and how it ended.
pub(super) struct Reading {
    pub(super) chunks: mpsc::Receiver<Vec<Publication>>,
    pub(super) outcome: oneshot::Receiver<Result<(), RecordingError>>,
}

/// Reads `source` on a thread of its own, which nobody waits for: standard input may never answer. It ends with the
/// source, or at the next item once nobody takes its chunks.
pub(super) fn read(mut source: impl Source, progress: Progress) -> std::io::Result<Reading> {
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let (ended, outcome) = oneshot::channel();
    std::thread::Builder::new().name("feed-reader".to_owned()).spawn(move || {
        let result = read_all(&mut source, &sender, &progress);
        // Before the channel closes, so that who sees its end finds the reason.
        let _ = ended.send(result);
        drop(sender);
    })?;
    Ok(Reading { chunks, outcome })
}

fn read_all(
    source: &mut impl Source,
    chunks: &mpsc::Sender<Vec<Publication>>,
    progress: &Progress,
) -> Result<(), RecordingError> {
    let numbering: Numbering = source.numbering();
    let mut chunk = Vec::with_capacity(CHUNK_MESSAGES);
    let mut bytes = 0;
    let result = loop {
        match source.next() {
            Ok(Some(Item::Publish(publication))) => {
                bytes += publication.weight();
                chunk.push(publication);
            }
            Ok(Some(Item::Skip { number, reason })) => progress.skipped(&numbering, number, reason),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
        let full = chunk.len() >= CHUNK_MESSAGES || bytes >= CHUNK_BYTES;
        if !chunk.is_empty() && (full || !source.is_ready()) {
            let ready = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_MESSAGES));
            bytes = 0;
            if chunks.blocking_send(ready).is_err() {
                return Ok(());
            }
        }
    };
    if !chunk.is_empty() {
        // A receiver that is gone needs no chunk.
        let _ = chunks.blocking_send(chunk);
    }
    result
}

/// Hands each message to its connection when it is due. The time of all but the first counts from the end of
/// `connected`: what waited for a slow broker is not sent in a burst. Answers whether it came to the end of the source.
pub(super) async fn dispatch(
    mut chunks: mpsc::Receiver<Vec<Publication>>,
    connections: Vec<mpsc::Sender<Vec<Publication>>>,
    connected: impl Future<Output = ()>,
    shutdown: Shutdown,
) -> bool {
    let playing = async {
        let mut start = Instant::now();
        let mut connected = Some(connected);
        while let Some(chunk) = chunks.recv().await {
            let mut waiting = VecDeque::from(chunk);
            while let Some(next) = waiting.front() {
                if let Some(due) = start.checked_add(next.due) {
                    sleep_until(due).await;
                }
                let first_due = next.due;
                if !hand_over(take_due(&mut waiting, start), &connections).await {
                    return false;
                }
                if let Some(connected) = connected.take() {
                    connected.await;
                    let now = Instant::now();
                    start = now.checked_sub(first_due).unwrap_or(now);
                }
            }
        }
        true
    };
    tokio::select! {
        biased;
        () = shutdown.begun() => false,
        ended = playing => ended,
    }
}

/// The first message, and those behind it that are due as well.
fn take_due(waiting: &mut VecDeque<Publication>, start: Instant) -> Vec<Publication> {
    let elapsed = start.elapsed();
    let mut due = Vec::with_capacity(waiting.len());
    due.extend(waiting.pop_front());
    while waiting.front().is_some_and(|publication| publication.due <= elapsed) {
        due.extend(waiting.pop_front());
    }
    due
}

async fn hand_over(due: Vec<Publication>, connections: &[mpsc::Sender<Vec<Publication>>]) -> bool {
    let mut parts: Vec<Vec<Publication>> = vec![Vec::new(); connections.len()];
    for publication in due {
        let connection = connection_of(publication.order_key(), connections.len());
        parts[connection].push(publication);
    }
    for (part, connection) in parts.into_iter().zip(connections) {
        if !part.is_empty() && connection.send(part).await.is_err() {
            return false;
        }
    }
    true
}

/// The same for every message of an order key, in every run.
fn connection_of(order_key: &[u8], connections: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    order_key.hash(&mut hasher);
    usize::try_from(hasher.finish() % connections as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::source::Origin;
    use super::*;
    use bytes::Bytes;
    use messagepipeline::{Attributes, Timestamp, names};
    use std::time::Duration;
    use tokio::time::sleep;

    fn publication(number: u64, due: u64, topic: &'static str) -> Publication {
        Publication::new(number, Duration::from_secs(due), Bytes::from_static(topic.as_bytes()), Bytes::new())
    }

    #[tokio::test(start_paused = true)]
    async fn messages_are_handed_over_when_they_are_due_after_the_connection_and_in_order() {
        let (chunks, receiver) = mpsc::channel(4);
        let (connection, mut queue) = mpsc::channel(16);
        let start = Instant::now();
        let dispatched = tokio::spawn(dispatch(
            receiver,
            vec![connection],
            sleep(Duration::from_secs(3)),
            Shutdown::new(),
        ));
        chunks
            .send(vec![publication(1, 0, "a"), publication(2, 0, "b"), publication(3, 7, "a")])
            .await
            .unwrap();
        chunks.send(vec![publication(4, 7, "a"), publication(5, 9, "a")]).await.unwrap();
        drop(chunks);
        let mut seen = Vec::new();
        while let Some(batch) = queue.recv().await {
            let at = start.elapsed().as_secs();
            seen.extend(batch.into_iter().map(|publication| (publication.number, at)));
        }
        assert_eq!(seen, [(1, 0), (2, 0), (3, 3 + 7), (4, 3 + 7), (5, 3 + 9)]);
        assert!(dispatched.await.unwrap());
    }

    #[test]
    fn all_topics_of_a_device_that_is_known_go_through_one_connection() {
        let attributes = Attributes::from_pairs(&[(names::DEVICE_ID, "meter-7")]);
        let origin = Origin { attributes, received_at: Timestamp::default() };
        let connections = ["a", "b", "c", "d", "e", "f"].map(|topic| {
            let publication =
                Publication { origin: Some(Box::new(origin.clone())), ..publication(1, 0, topic) };
            connection_of(publication.order_key(), 64)
        });
        assert_eq!(connections, [connections[0]; 6]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_the_wait_for_a_message_far_in_the_future() {
        let (chunks, receiver) = mpsc::channel(4);
        let (connection, _queue) = mpsc::channel(1);
        let shutdown = Shutdown::new();
        let never = Publication { due: Duration::MAX, ..publication(1, 0, "a") };
        chunks.send(vec![publication(0, 1_000_000_000, "a"), never]).await.unwrap();
        let dispatched =
            tokio::spawn(dispatch(receiver, vec![connection], std::future::ready(()), shutdown.clone()));
        tokio::task::yield_now().await;
        shutdown.begin();
        assert!(!dispatched.await.unwrap());
    }
}

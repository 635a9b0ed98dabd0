//! The consumer that the ingestion service drives.

use super::certificates::Certificates;
use super::listener::Listener;
use super::shared::{Phase, Sender, Shared};
use messagepipeline::{Chunk, Consumer, Delivery, Settle, Settlement, StageError, Verdict};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Chunks of many small reads are joined up to this many messages, so that what a chunk shares is shared.
const JOIN_MESSAGES: usize = 256;

/// What MQTT clients publish. Made by [`super::Endpoint::bind`].
///
/// Connections are accepted from [`Consumer::open`] on. A nack or return of a QoS 1 message ends its connection
/// without the PUBACK, so that the client sends it again. After [`super::EndpointHandle::drain`] `next` answers
/// `None` once everything that was read is handed out. `close` writes the PUBACKs whose verdicts are there, tells
/// MQTT 5 clients that the server shuts down, and ends all connections; dropping the consumer cuts them.
pub struct EndpointConsumer {
    shared: Arc<Shared>,
    receiver: mpsc::Receiver<Vec<Delivery>>,
    tracker: TaskTracker,
    kill: DropGuard,
    /// Present until `open`.
    unopened: Option<Unopened>,
}

struct Unopened {
    socket: TcpListener,
    certificates: Option<Arc<Certificates>>,
    sender: Sender,
}

impl EndpointConsumer {
    pub(super) fn new(
        shared: Arc<Shared>,
        socket: TcpListener,
        certificates: Option<Arc<Certificates>>,
        chunks: usize,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(chunks);
        Self {
            shared,
            receiver,
            tracker: TaskTracker::new(),
            kill: CancellationToken::new().drop_guard(),
            unopened: Some(Unopened { socket, certificates, sender }),
        }
    }

    fn chunk(&mut self, mut deliveries: Vec<Delivery>) -> Chunk {
        while deliveries.len() < JOIN_MESSAGES
            && let Ok(more) = self.receiver.try_recv()
        {
            deliveries.extend(more);
        }
        Chunk::new(Arc::clone(&self.shared.sessions) as Arc<dyn Settle>, deliveries)
    }
}

impl Consumer for EndpointConsumer {
    async fn open(&mut self) -> Result<(), StageError> {
        let Some(Unopened { socket, certificates, sender }) = self.unopened.take() else { return Ok(()) };
        let listener = Listener {
            shared: Arc::clone(&self.shared),
            socket,
            certificates,
            tracker: self.tracker.clone(),
            kill: self.kill.token().clone(),
        };
        self.tracker.spawn(listener.run(sender));
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Chunk>, StageError> {
        let Some(deliveries) = self.receiver.recv().await else { return Ok(None) };
        Ok(Some(self.chunk(deliveries)))
    }

    async fn close(&mut self) -> Result<(), StageError> {
        self.unopened = None;
        self.receiver.close();
        while let Ok(deliveries) = self.receiver.try_recv() {
            let returned: Vec<_> = deliveries
                .iter()
                .map(|delivery| Settlement { token: delivery.token, verdict: Verdict::Return })
                .collect();
            self.shared.sessions.settle(&returned);
        }
        self.shared.phase.send_replace(Phase::Closing);
        self.tracker.close();
        self.tracker.wait().await;
        Ok(())
    }
}

impl std::fmt::Debug for EndpointConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EndpointConsumer")
    }
}

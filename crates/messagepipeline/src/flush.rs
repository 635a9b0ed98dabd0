//! Asking a batching service to hand over what it has grouped so far.

use std::sync::Arc;
use tokio::sync::Notify;

/// Asks the services that were given it to flush their open groups now, as far as workers are free. Cloning shares it.
///
/// For a program that knows that nothing more will come for a while and wants the sinks up to date without waiting
/// for the age of their groups.
#[derive(Clone, Debug, Default)]
pub struct FlushRequest(Arc<Notify>);

impl FlushRequest {
    /// A request that nobody has made yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks every service that waits for it at this moment.
    pub fn ask(&self) {
        self.0.notify_waiters();
    }

    pub(crate) async fn asked(request: Option<&Self>) {
        match request {
            Some(request) => request.0.notified().await,
            None => std::future::pending().await,
        }
    }
}

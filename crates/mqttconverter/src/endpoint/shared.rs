//! What all connections of an endpoint have in common.

use super::auth::Authenticator;
use super::budget::Budget;
use super::options::EndpointOptions;
use super::session::{Attachment, Sessions};
use super::store::SessionStore;
use super::telemetry::Telemetry;
use hashbrown::DefaultHashBuilder;
use messagepipeline::{Clock, Delivery, IdGenerator, Timestamp};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

/// Where connections hand chunks over.
pub(super) type Sender = mpsc::Sender<Vec<Delivery>>;

/// How far the endpoint has come in stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Open,
    /// Nothing more is read; what was read is handed over; PUBACKs are written.
    Draining,
    /// PUBACKs that are ready are written, then connections end.
    Closing,
}

/// See the module's documentation.
pub(super) struct Shared {
    pub(super) options: EndpointOptions,
    pub(super) budget: Arc<Budget>,
    pub(super) sessions: Arc<Sessions>,
    /// Where sessions are kept over a restart; without it they end with the process.
    pub(super) store: Option<Arc<dyn SessionStore>>,
    /// Held while the store forgets sessions.
    pub(super) ending: tokio::sync::Mutex<()>,
    /// The session under which wills are in the pipeline.
    pub(super) wills: Attachment,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) authenticator: Authenticator,
    pub(super) ids: Arc<IdGenerator>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) hasher: DefaultHashBuilder,
    pub(super) phase: watch::Sender<Phase>,
}

impl Shared {
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Gives every delivery its id.
    pub(super) fn name(&self, deliveries: &mut [Delivery]) {
        let mut ids = Vec::with_capacity(deliveries.len());
        self.ids.fill(deliveries.len(), &mut ids);
        for (delivery, id) in deliveries.iter_mut().zip(ids) {
            delivery.message.id = id;
        }
    }
}

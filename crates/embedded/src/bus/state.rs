//! What the parts of an open bus share in memory: topics, subscriptions and who waits for what.

use super::leases::Leases;
use super::probation::Probation;
use super::schema::TopicSql;
use super::tail::Tail;
use crate::Error;
use parking_lot::{Mutex, RwLock};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::Notify;

/// Topics and subscriptions that are open.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) topics: RwLock<Vec<Arc<TopicState>>>,
    pub(super) subscriptions: RwLock<Vec<Arc<SubscriptionState>>>,
    /// Unclean starts in a row, this one included.
    pub(super) unclean: u32,
    /// Why verdicts could not be written the last time.
    pub(super) failure: Mutex<Option<String>>,
}

impl Shared {
    /// The open topic `name`.
    pub(super) fn topic(&self, name: &str) -> Option<Arc<TopicState>> {
        self.topics.read().iter().find(|topic| topic.name == name).cloned()
    }

    /// The open subscription `name` of a topic.
    pub(super) fn subscription(&self, topic: i64, name: &str) -> Option<Arc<SubscriptionState>> {
        self.subscriptions.read().iter().find(|s| s.topic.id == topic && s.name == name).cloned()
    }
}

/// A topic.
#[derive(Debug)]
pub(super) struct TopicState {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) sql: TopicSql,
    /// Highest committed sequence number.
    head: AtomicU64,
    /// Everything up to it is settled by every subscription, on the disk.
    pub(super) floor: AtomicU64,
    /// Everything up to it is gone from the log, on the disk.
    pub(super) trimmed: AtomicU64,
    /// Its newest messages.
    pub(super) tail: Tail,
    listeners: RwLock<Vec<Weak<SubscriptionState>>>,
}

impl TopicState {
    /// # Errors
    /// When `name` is not a topic name.
    pub(super) fn new(id: i64, name: &str, head: u64, trimmed: u64, floor: u64) -> Result<Self, Error> {
        Ok(Self {
            id,
            name: name.to_owned(),
            sql: TopicSql::new(name)?,
            head: AtomicU64::new(head),
            floor: AtomicU64::new(floor),
            trimmed: AtomicU64::new(trimmed),
            tail: Tail::default(),
            listeners: RwLock::default(),
        })
    }

    /// Highest committed sequence number.
    pub(super) fn head(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Makes messages up to `head` known to the subscriptions.
    pub(super) fn announce(&self, head: u64) {
        self.head.fetch_max(head, Ordering::AcqRel);
        for listener in self.listeners.read().iter().filter_map(Weak::upgrade) {
            listener.wake.notify_waiters();
        }
    }

    /// Whether some open subscription waits for its messages.
    pub(super) fn has_listeners(&self) -> bool {
        !self.listeners.read().is_empty()
    }

    /// Has `subscription` woken by [`TopicState::announce`].
    pub(super) fn listen(&self, subscription: &Arc<SubscriptionState>) {
        self.listeners.write().push(Arc::downgrade(subscription));
    }
}

/// A subscription.
#[derive(Debug)]
pub(super) struct SubscriptionState {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) topic: Arc<TopicState>,
    pub(super) leases: Mutex<Leases>,
    /// What is suspected of killing the process.
    pub(super) probation: Mutex<Option<Probation>>,
    /// The number up to which messages may be handed out without writing that down first.
    pub(super) delivered: AtomicU64,
    /// Something may be there to hand out.
    pub(super) wake: Notify,
    consumers: AtomicU64,
}

impl SubscriptionState {
    pub(super) fn new(
        id: i64,
        name: &str,
        topic: Arc<TopicState>,
        leases: Leases,
        probation: Option<Probation>,
        delivered: u64,
    ) -> Self {
        Self {
            probation: Mutex::new(probation),
            delivered: AtomicU64::new(delivered),
            id,
            name: name.to_owned(),
            topic,
            leases: Mutex::new(leases),
            wake: Notify::new(),
            consumers: AtomicU64::new(0),
        }
    }

    /// A number for a new consumer.
    pub(super) fn new_consumer(&self) -> u64 {
        self.consumers.fetch_add(1, Ordering::Relaxed)
    }
}

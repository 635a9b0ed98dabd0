//! From packets to deliveries: which publishes are taken, which are refused, which end the connection.

use super::auth::Grant;
use super::packet::{Publish, Version, WillRequest};
use super::reason::Reason;
use super::window::Window;
use crate::message::{self, MAX_USER_PROPERTIES, PublishInfo};
use crate::topic::{TopicError, validate_name};
use bytes::Bytes;
use hashbrown::DefaultHashBuilder;
use messagepipeline::{Attributes, Delivery, Enrichment, Message, MessageId, Timestamp, Token};
use std::hash::{BuildHasher, Hasher};

/// Topic aliases that a connection may use at once (announced in CONNACK).
pub(super) const TOPIC_ALIASES: u16 = 16;

/// Longest topic that is taken, in bytes. MQTT allows 65,535; no fleet uses them, and each alias keeps one.
const MAX_TOPIC_BYTES: usize = 4_096;

/// How a publish that is not taken is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// In its PUBACK, where there is one that can say so.
    Refuse(Reason),
    /// By ending the connection.
    End(Reason),
}

/// The topic aliases of a connection (MQTT 5, section 3.3.2.3.4).
#[derive(Debug, Default)]
pub(super) struct Aliases(Vec<Option<Box<str>>>);

impl Aliases {
    /// The topic that `publish` means.
    fn resolve<'a>(&'a self, publish: &Publish<'a>) -> Result<&'a str, Rejected> {
        match publish.alias {
            Some(alias) if alias == 0 || alias > TOPIC_ALIASES => {
                Err(Rejected::End(Reason::TopicAliasInvalid))
            }
            Some(alias) if publish.topic.is_empty() => self
                .0
                .get(usize::from(alias) - 1)
                .and_then(Option::as_deref)
                .ok_or(Rejected::End(Reason::ProtocolError)),
            _ => Ok(publish.topic),
        }
    }

    fn keep(&mut self, publish: &Publish<'_>) {
        let Some(alias) = publish.alias.filter(|_| !publish.topic.is_empty()) else { return };
        self.0.resize(usize::from(TOPIC_ALIASES), None);
        if let Some(entry) = self.0.get_mut(usize::from(alias).wrapping_sub(1)) {
            *entry = Some(publish.topic.into());
        }
    }
}

/// What decides about publishes on one connection.
pub(super) struct Gate {
    pub(super) version: Version,
    pub(super) grant: Grant,
    pub(super) aliases: Aliases,
    pub(super) hasher: DefaultHashBuilder,
}

/// Publishes of one read, on their way into the pipeline.
#[derive(Default)]
pub(super) struct Intake {
    pub(super) deliveries: Vec<Delivery>,
    steps: Vec<Step>,
    /// Bytes of the deliveries.
    pub(super) weight: usize,
    /// PUBACKs that this intake will owe.
    pub(super) replies: usize,
    /// Publishes by quality of service, repeated ones included.
    pub(super) taken: [u64; 2],
}

struct Step {
    packet_id: u16,
    fingerprint: u64,
    weight: u32,
    dup: bool,
    /// Set if the publish is refused and therefore has no delivery.
    refusal: Option<Reason>,
}

impl Gate {
    /// Takes `publish`, which stands in `frame`, into `intake`.
    pub(super) fn take(
        &mut self,
        publish: &Publish<'_>,
        frame: &Bytes,
        client_id: &str,
        now: Timestamp,
        intake: &mut Intake,
    ) -> Result<(), Rejected> {
        let topic = self.judge(publish)?;
        let info = PublishInfo {
            topic,
            client_id: Some(client_id),
            qos: publish.qos,
            packet_id: publish.packet_id,
            retain: publish.retain,
            dup: publish.dup,
            will: false,
            properties: publish.properties,
        };
        let attributes = message::attributes(&info, publish.user_properties());
        let fingerprint = if publish.qos == 0 { 0 } else { self.fingerprint(topic, publish.payload) };
        self.aliases.keep(publish);
        let message = new_message(frame.slice_ref(publish.payload), attributes, now);
        intake.add(message, publish, fingerprint);
        Ok(())
    }

    fn judge<'a>(&'a self, publish: &Publish<'a>) -> Result<&'a str, Rejected> {
        if publish.qos == 2 {
            return Err(Rejected::End(Reason::QosNotSupported));
        }
        let topic = self.aliases.resolve(publish)?;
        if topic.is_empty() && self.version == Version::V5 {
            return Err(Rejected::End(Reason::ProtocolError));
        }
        let is_utf8 = !publish.properties.payload_is_utf8 || std::str::from_utf8(publish.payload).is_ok();
        check(&self.grant, topic, publish.user_property_count, is_utf8).map_err(Rejected::Refuse)?;
        Ok(topic)
    }

    /// Tells publishes under one packet identifier apart; seeded at random per process, never stored.
    fn fingerprint(&self, topic: &str, payload: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(topic.as_bytes());
        hasher.write_usize(topic.len());
        hasher.write(payload);
        hasher.finish()
    }
}

/// Why a message is refused for good, if it is.
fn check(grant: &Grant, topic: &str, user_properties: usize, is_utf8: bool) -> Result<(), Reason> {
    validate_name(topic).map_err(|_: TopicError| Reason::TopicNameInvalid)?;
    if topic.len() > MAX_TOPIC_BYTES {
        return Err(Reason::TopicNameInvalid);
    }
    if !grant.allows(topic) {
        return Err(Reason::NotAuthorized);
    }
    if !is_utf8 {
        return Err(Reason::PayloadFormatInvalid);
    }
    if user_properties > MAX_USER_PROPERTIES { Err(Reason::QuotaExceeded) } else { Ok(()) }
}

/// A will, ready to be published.
#[derive(Debug)]
pub(super) struct Will {
    payload: Bytes,
    attributes: Attributes,
    /// Will Delay Interval in seconds.
    pub(super) delay: u32,
}

impl Will {
    /// Checks the will as its publish would be checked.
    pub(super) fn new(
        request: &WillRequest<'_>,
        version: Version,
        grant: &Grant,
        client_id: &str,
    ) -> Result<Self, Reason> {
        // At 3.1.1 nothing could tell the client so; it is published once in any case.
        if request.qos == 2 && version == Version::V5 {
            return Err(Reason::QosNotSupported);
        }
        let is_utf8 = !request.properties.payload_is_utf8 || std::str::from_utf8(request.payload).is_ok();
        check(grant, request.topic, request.user_property_count, is_utf8)?;
        let info = PublishInfo {
            topic: request.topic,
            client_id: Some(client_id),
            qos: request.qos,
            packet_id: 0,
            retain: request.retain,
            dup: false,
            will: true,
            properties: request.properties,
        };
        let attributes = message::attributes(&info, request.user_properties());
        Ok(Self { payload: Bytes::copy_from_slice(request.payload), attributes, delay: request.delay })
    }

    pub(super) fn into_message(self, now: Timestamp) -> Message {
        new_message(self.payload, self.attributes, now)
    }
}

/// A message whose id is still to be set: ids are made for a whole chunk at once.
fn new_message(payload: Bytes, attributes: Attributes, now: Timestamp) -> Message {
    Message {
        id: MessageId::from_bytes([0; 16]),
        payload,
        attributes,
        publish_time: now,
        enrichment: Enrichment::none(),
        attempt: 1,
    }
}

impl Intake {
    fn add(&mut self, message: Message, publish: &Publish<'_>, fingerprint: u64) {
        let weight = u32::try_from(message.weight()).unwrap_or(u32::MAX);
        self.weight += weight as usize;
        let at_least_once = usize::from(publish.qos > 0);
        self.replies += at_least_once;
        self.taken[at_least_once] += 1;
        self.steps.push(Step {
            packet_id: publish.packet_id,
            fingerprint,
            weight,
            dup: publish.dup,
            refusal: None,
        });
        self.deliveries.push(Delivery { message, token: Token(0) });
    }

    /// Notes a publish that is refused in its PUBACK.
    pub(super) fn refuse(&mut self, packet_id: u16, reason: Reason) {
        self.replies += 1;
        self.steps.push(Step { packet_id, fingerprint: 0, weight: 0, dup: false, refusal: Some(reason) });
    }

    /// Whether there is nothing to enter into the window.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Enters everything into the window, in order of receipt. Deliveries that repeat one in flight are dropped;
    /// the answer is how many.
    pub(super) fn register(&mut self, window: &mut Window, token: impl Fn(u32) -> Token) -> usize {
        let mut repeated = Vec::new();
        let mut index = 0;
        for step in &self.steps {
            if let Some(reason) = step.refusal {
                window.refuse(step.packet_id, reason.code());
                continue;
            }
            if step.dup && window.repeat(step.packet_id, step.fingerprint) {
                repeated.push(index);
                self.weight -= step.weight as usize;
            } else {
                self.deliveries[index].token =
                    token(window.take(step.packet_id, step.fingerprint, step.weight));
            }
            index += 1;
        }
        for &index in repeated.iter().rev() {
            self.deliveries.remove(index);
        }
        self.steps.clear();
        repeated.len()
    }
}

//! From packets to deliveries: which publishes are taken, which are refused, which end the connection.

use super::auth::Grant;
use super::exchange::{Release, Released};
use super::packet::{Publish, Version, WillRequest};
use super::reason::Reason;
use super::store::Held;
use super::window::{Sequence, Taking, Window};
use crate::message::{self, MAX_USER_PROPERTIES, PublishInfo};
use crate::topic::{TopicError, validate_name};
use bytes::Bytes;
use hashbrown::DefaultHashBuilder;
use messagepipeline::{Attributes, Delivery, Enrichment, Message, MessageId, Timestamp, Token};
use std::hash::{BuildHasher, Hasher};
use tokio::sync::OwnedSemaphorePermit;

/// Topic aliases that a connection may use at once (announced in CONNACK).
pub(super) const TOPIC_ALIASES: u16 = 16;

/// Longest topic that is taken, in bytes. MQTT allows 65,535; no fleet uses them, and each alias keeps one.
const MAX_TOPIC_BYTES: usize = 4_096;

/// How a publish that is not taken is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// In its PUBACK or PUBREC, where there is one that can say so.
    Refuse(Reason),
    /// By ending the connection.
    End(Reason),
}

/// The topic aliases of a connection (MQTT 5, section 3.3.2.3.4).
#[derive(Debug, Default)]
pub(super) struct Aliases(Vec<Option<Box<str>>>);

/// What the topics under all aliases of a connection may have together, in bytes: they stay as long as it does.
const MAX_ALIASED_BYTES: usize = 8 * 1024;

impl Aliases {
    /// The topic that `publish` means.
    fn resolve<'a>(&'a self, publish: &Publish<'a>) -> Result<&'a str, Rejected> {
        match publish.alias {
            Some(alias) if publish.topic.is_empty() => self
                .0
                .get(usize::from(alias).wrapping_sub(1))
                .and_then(Option::as_deref)
                .ok_or(Rejected::End(Reason::ProtocolError)),
            _ => Ok(publish.topic),
        }
    }

    /// Notes the alias of `publish`, whatever becomes of its message: what comes under it later means this topic.
    fn keep(&mut self, publish: &Publish<'_>) -> Result<(), Rejected> {
        let Some(alias) = publish.alias else { return Ok(()) };
        if alias == 0 || alias > TOPIC_ALIASES {
            return Err(Rejected::End(Reason::TopicAliasInvalid));
        }
        if publish.topic.is_empty() {
            return Ok(());
        }
        self.0.resize(usize::from(TOPIC_ALIASES), None);
        // In place of one that is too long stands another that no message may have, so that it takes no room.
        let topic = if publish.topic.len() > MAX_TOPIC_BYTES { "#" } else { publish.topic };
        self.0[usize::from(alias) - 1] = Some(topic.into());
        let bytes: usize = self.0.iter().flatten().map(|topic| topic.len()).sum();
        if bytes > MAX_ALIASED_BYTES { Err(Rejected::End(Reason::QuotaExceeded)) } else { Ok(()) }
    }
}

/// What decides about publishes on one connection.
pub(super) struct Gate {
    pub(super) version: Version,
    pub(super) grant: Grant,
    pub(super) aliases: Aliases,
    pub(super) hasher: DefaultHashBuilder,
}

/// Publishes and PUBRELs of one read.
#[derive(Default)]
pub(super) struct Intake {
    pub(super) deliveries: Vec<Delivery>,
    steps: Vec<Step>,
    /// Bytes of the deliveries.
    pub(super) weight: usize,
    /// Replies that this intake will owe.
    pub(super) replies: usize,
    /// Publishes by quality of service, repeated ones included.
    pub(super) taken: [u64; 3],
    /// What is to be made durable before anything of QoS 2 goes on.
    pub(super) changes: Changes,
    /// PUBCOMPs to be written then, with their reason codes.
    pub(super) completions: Vec<(u16, u8)>,
}

/// What changes in the packet state of QoS 2.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) held: Vec<Held>,
    pub(super) released: Vec<Released>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.released.is_empty()
    }
}

struct Step {
    packet_id: u16,
    fingerprint: u64,
    weight: u32,
    kind: StepKind,
}

#[derive(Clone, Copy)]
enum StepKind {
    /// QoS 0 and 1.
    Publish {
        dup: bool,
    },
    ExactlyOnce,
    /// Has no delivery.
    Refused {
        reason: Reason,
        exactly_once: bool,
    },
    /// PUBREL; has no delivery.
    Release,
}

impl StepKind {
    fn has_delivery(self) -> bool {
        matches!(self, Self::Publish { .. } | Self::ExactlyOnce)
    }
}

/// What came of entering an intake into the window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Registered {
    /// Publishes that repeat one in flight or stored, and enter the pipeline no second time.
    pub(super) repeated: usize,
    /// Packet identifiers under which a device sent another message without having released the first.
    pub(super) replaced: usize,
    /// Why the connection must end: a packet that is not taken, nor what came behind it.
    pub(super) end: Option<Reason>,
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
        self.aliases.keep(publish)?;
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
        let fingerprint = match publish.qos {
            0 => 0,
            1 => self.fingerprint(topic, publish.payload),
            _ => stable_fingerprint(topic, publish),
        };
        let message = new_message(frame.slice_ref(publish.payload), attributes, now);
        intake.add(message, publish, fingerprint);
        Ok(())
    }

    fn judge<'a>(&'a self, publish: &Publish<'a>) -> Result<&'a str, Rejected> {
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

/// As [`Gate::fingerprint`] for QoS 2, and over the properties too: it is stored, so it is FarmHash's `Fingerprint64`,
/// the same in every version. The Message Expiry Interval is left out, because senders may count it down.
fn stable_fingerprint(topic: &str, publish: &Publish<'_>) -> u64 {
    let mut text = Vec::with_capacity(64 + topic.len());
    let mut put = |part: &[u8]| {
        text.extend_from_slice(&(part.len() as u64).to_le_bytes());
        text.extend_from_slice(part);
    };
    put(topic.as_bytes());
    put(&farmhash::fingerprint64(publish.payload).to_le_bytes());
    put(&publish.payload.len().to_le_bytes());
    let properties = &publish.properties;
    put(properties.content_type.unwrap_or_default().as_bytes());
    put(properties.response_topic.unwrap_or_default().as_bytes());
    put(properties.correlation_data.unwrap_or_default());
    for (name, value) in publish.user_properties() {
        put(name.as_bytes());
        put(value.as_bytes());
    }
    farmhash::fingerprint64(&text)
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
    /// For what it takes, until the pipeline has it.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

impl Will {
    /// In bytes.
    pub(super) fn weight(&self) -> usize {
        self.payload.len() + self.attributes.size()
    }

    /// Checks the will as its publish would be checked.
    pub(super) fn new(request: &WillRequest<'_>, grant: &Grant, client_id: &str) -> Result<Self, Reason> {
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
        Ok(Self {
            payload: Bytes::copy_from_slice(request.payload),
            attributes,
            delay: request.delay,
            room: None,
        })
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
        self.replies += usize::from(publish.qos > 0);
        self.taken[usize::from(publish.qos.min(2))] += 1;
        let kind =
            if publish.qos == 2 { StepKind::ExactlyOnce } else { StepKind::Publish { dup: publish.dup } };
        self.steps.push(Step { packet_id: publish.packet_id, fingerprint, weight, kind });
        self.deliveries.push(Delivery { message, token: Token(0) });
    }

    /// Notes a publish that is refused in its reply.
    pub(super) fn refuse(&mut self, packet_id: u16, exactly_once: bool, reason: Reason) {
        self.replies += 1;
        let kind = StepKind::Refused { reason, exactly_once };
        self.steps.push(Step { packet_id, fingerprint: 0, weight: 0, kind });
    }

    /// Notes a PUBREL.
    pub(super) fn release(&mut self, packet_id: u16) {
        self.steps.push(Step { packet_id, fingerprint: 0, weight: 0, kind: StepKind::Release });
    }

    /// Whether there is nothing to enter into the window.
    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether another packet must wait for the next intake, so that this one stays bounded.
    pub(super) fn is_full(&self, messages: usize, bytes: usize) -> bool {
        self.steps.len() >= messages || self.weight >= bytes
    }

    /// Enters everything into the window, in order of receipt. Deliveries that repeat one in flight or stored are
    /// dropped. The deliveries must have their ids; a message at QoS 2 that is published again gets its first one. The
    /// session may come to hold `most` packet identifiers at QoS 2.
    pub(super) fn register(
        &mut self,
        window: &mut Window,
        most: usize,
        token: impl Fn(Sequence) -> Token,
    ) -> Registered {
        let mut registered = Registered::default();
        let mut repeated = Vec::new();
        let (mut index, mut weight) = (0, 0);
        let steps = std::mem::take(&mut self.steps);
        for step in &steps {
            let entry = match step.kind {
                StepKind::Refused { reason, exactly_once } => {
                    // The refusal frees the packet identifier.
                    if exactly_once && let Release::Due(released) = window.release(step.packet_id) {
                        self.changes.released.push(released);
                    }
                    window.refuse(step.packet_id, exactly_once, reason.code());
                    continue;
                }
                StepKind::Release => {
                    if self.enter_release(window, step.packet_id) {
                        continue;
                    }
                    registered.end = Some(Reason::ProtocolError);
                    break;
                }
                StepKind::Publish { dup: true } if window.repeat(step.packet_id, step.fingerprint) => None,
                StepKind::Publish { .. } => Some(window.take(step.packet_id, step.fingerprint, step.weight)),
                StepKind::ExactlyOnce => {
                    match self.enter_exactly_once(window, most, step, index, &mut registered) {
                        Ok(entry) => entry,
                        Err(reason) => {
                            registered.end = Some(reason);
                            break;
                        }
                    }
                }
            };
            match entry {
                Some(sequence) => {
                    self.deliveries[index].token = token(sequence);
                    weight += step.weight as usize;
                }
                None => repeated.push(index),
            }
            index += 1;
        }
        self.weight = weight;
        self.deliveries.truncate(index);
        for &index in repeated.iter().rev() {
            self.deliveries.remove(index);
        }
        registered.repeated = repeated.len();
        registered
    }

    /// The messages at QoS 0 alone, with their weight, when nothing else can be entered any more.
    pub(super) fn into_orphans(self, mut token: impl FnMut(u32) -> Token) -> (Vec<Delivery>, usize) {
        let publishes = self.steps.iter().filter(|step| step.kind.has_delivery());
        let mut weight = 0;
        let orphans = self.deliveries.into_iter().zip(publishes).filter(|(_, step)| step.packet_id == 0).map(
            |(mut delivery, step)| {
                delivery.token = token(step.weight);
                weight += step.weight as usize;
                delivery
            },
        );
        let orphans = orphans.collect();
        (orphans, weight)
    }

    /// False if no client may send this PUBREL now.
    fn enter_release(&mut self, window: &mut Window, packet_id: u16) -> bool {
        match window.release(packet_id) {
            Release::Due(released) => {
                self.changes.released.push(released);
                self.completions.push((packet_id, 0));
            }
            Release::Unknown => self.completions.push((packet_id, Reason::PacketIdentifierNotFound.code())),
            Release::Violation => return false,
        }
        true
    }

    /// Where the message stands in the window, if it enters the pipeline.
    fn enter_exactly_once(
        &mut self,
        window: &mut Window,
        most: usize,
        step: &Step,
        index: usize,
        registered: &mut Registered,
    ) -> Result<Option<Sequence>, Reason> {
        let message = &mut self.deliveries[index].message;
        match window.take_exactly_once(step.packet_id, step.fingerprint, step.weight, message.id, most) {
            Taking::New { sequence, replaces } => {
                registered.replaced += usize::from(replaces);
                let (packet_id, fingerprint) = (step.packet_id, step.fingerprint);
                self.changes.held.push(Held { packet_id, message_id: message.id, fingerprint });
                Ok(Some(sequence))
            }
            Taking::Again { sequence, message_id } => {
                message.id = message_id;
                Ok(Some(sequence))
            }
            Taking::Repeated => Ok(None),
            Taking::Violation => Err(Reason::ProtocolError),
            // No PUBREC can say it: clients take every error code for final.
            Taking::Full => Err(Reason::QuotaExceeded),
        }
    }
}

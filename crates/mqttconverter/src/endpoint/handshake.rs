//! From the first byte of a connection to its CONNACK.

use super::auth::Grant;
use super::budget::LEAST_READ_BYTES;
use super::intake::{TOPIC_ALIASES, Will};
use super::packet::{Connect, ConnectRefused, FixedHeader, Version};
use super::reason::Reason;
use super::reply::{self, ConnackProperties};
use super::session::Attachment;
use super::shared::Shared;
use super::wire::{Event, Wire};
use bytes::{Bytes, BytesMut};
use std::time::Duration;
use tokio::sync::SemaphorePermit;

/// Longest CONNECT, in bytes: it is read before anybody knows who sends it. A will of the greatest length fits.
const MAX_CONNECT_BYTES: usize = 128 * 1024;

/// Up to this many bytes a CONNECT is read without asking, as long as one from a device.
const SMALL_CONNECT: usize = 4 * 1024;

/// Longest client identifier in bytes; it becomes an attribute of every message.
const MAX_CLIENT_ID_BYTES: usize = 1_024;

/// A client that got in.
pub(super) struct Accepted {
    pub(super) attachment: Attachment,
    pub(super) version: Version,
    pub(super) grant: Grant,
    /// One and a half times the client's keep-alive interval (section 3.1.2.10); none if it is 0.
    pub(super) keep_alive: Option<Duration>,
    pub(super) will: Option<Box<Will>>,
    /// The session was known (Session Present).
    pub(super) is_resumed: bool,
    /// How long the session is remembered.
    pub(super) expiry: Duration,
}

/// Why there is no connection.
pub(super) enum Failure {
    /// The client went away, or sent what is not MQTT.
    Silent(&'static str),
    /// A CONNACK says why, where the version has one for it.
    Refused(ConnectRefused),
}

impl From<ConnectRefused> for Failure {
    fn from(refused: ConnectRefused) -> Self {
        Self::Refused(refused)
    }
}

/// Reads the CONNECT, decides, and puts the CONNACK into the wire's output. With `refuse`, refuses whatever comes.
pub(super) async fn shake_hands(
    shared: &Shared,
    wire: &mut Wire,
    refuse: Option<Reason>,
) -> Result<Accepted, Failure> {
    let (header, frame, _permit) = read_first_packet(shared, wire).await?;
    let connect = Connect::read(header, &frame)?;
    let refused = |reason| ConnectRefused { answer_in: Some(connect.version), reason };
    if let Some(reason) = refuse {
        return Err(refused(reason).into());
    }
    accept(shared, wire, &connect).await.map_err(|reason| match reason {
        // No reason code of CONNACK (section 3.2.2.2), and its client has another connection.
        Reason::TakenOver => Failure::Silent(reason.word()),
        reason => refused(reason).into(),
    })
}

/// The CONNECT, and the permit for a large one as long as it is needed: who never ends what they began, or waits for
/// their turn, is cut off by `connect_timeout`.
async fn read_first_packet<'a>(
    shared: &'a Shared,
    wire: &mut Wire,
) -> Result<(FixedHeader, Bytes, Option<SemaphorePermit<'a>>), Failure> {
    let most = MAX_CONNECT_BYTES.min(shared.options.max_packet_bytes as usize);
    let mut permit = None;
    loop {
        let header = FixedHeader::read(&wire.input).map_err(|_| Failure::Silent("not-mqtt"))?;
        // Told by the first byte, so that a client of another protocol does not wait for an answer.
        if wire.input.first().is_some_and(|first| *first != 0x10) {
            return Err(Failure::Silent("not-mqtt"));
        }
        if let Some(header) = header.filter(|header| header.is_connect()) {
            if header.packet > most {
                return Err(Failure::Silent("connect-too-large"));
            }
            if wire.input.len() >= header.packet {
                let frame = wire.input.split_to(header.packet).freeze();
                // What came behind it would keep all of it, without a permit.
                wire.input = BytesMut::from(&wire.input[..]);
                return Ok((header, frame, permit));
            }
            if header.packet > SMALL_CONNECT && permit.is_none() {
                let turn = shared.budget.connecting(header.packet).await;
                permit = Some(turn.map_err(|_| Failure::Silent("shutting-down"))?);
            }
        }
        match wire.next(LEAST_READ_BYTES).await {
            Ok(Event::Read) => {}
            Ok(Event::Written | Event::End) | Err(_) => return Err(Failure::Silent("closed-before-connect")),
        }
    }
}

async fn accept(shared: &Shared, wire: &mut Wire, connect: &Connect<'_>) -> Result<Accepted, Reason> {
    if connect.extended_authentication {
        return Err(Reason::BadAuthenticationMethod);
    }
    if connect.client_id.len() > MAX_CLIENT_ID_BYTES {
        return Err(Reason::ClientIdNotValid);
    }
    // Section 3.1.3.1 of 3.1.1: whoever has no identifier cannot have a session that is kept.
    if connect.client_id.is_empty() && connect.version == Version::V311 && !connect.clean {
        return Err(Reason::ClientIdNotValid);
    }
    let grant = shared.authenticator.check(connect.credentials).await?;
    let assigned = connect.client_id.is_empty().then(|| shared.ids.next_id().to_string());
    let client_id = assigned.as_deref().unwrap_or(connect.client_id);
    let mut will = connect.will.as_ref().map(|will| Will::new(will, &grant, client_id)).transpose()?;
    if let Some(will) = &mut will {
        will.room = Some(shared.budget.will(will.weight()).ok_or(Reason::QuotaExceeded)?);
    }
    let expiry = session_expiry(connect, shared.options.max_session_expiry);
    let (attachment, present) = shared.sessions.attach(client_id, connect.clean)?;
    let attachment = remembered(shared, attachment, expiry).await?;
    write_connack(shared, wire, connect, present, expiry, assigned.as_deref());
    Ok(Accepted {
        attachment,
        is_resumed: present,
        version: connect.version,
        grant,
        keep_alive: (connect.keep_alive > 0).then(|| Duration::from_secs(connect.keep_alive.into()) * 3 / 2),
        will: will.map(Box::new),
        expiry,
    })
}

/// Has the session remembered where it outlives its connection. If that fails, or is not waited for, the session is as
/// if there had been no CONNECT; one that began with it is gone.
async fn remembered(shared: &Shared, attachment: Attachment, expiry: Duration) -> Result<Attachment, Reason> {
    let mut admission = Admission { shared, attachment: Some(attachment) };
    if let Some(attachment) = &admission.attachment {
        shared.remember(attachment, expiry).await?;
        attachment.admit(expiry)?;
    }
    admission.attachment.take().ok_or(Reason::ServerUnavailable)
}

struct Admission<'a> {
    shared: &'a Shared,
    attachment: Option<Attachment>,
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let Some(attachment) = &self.attachment {
            self.shared.sessions.detach(attachment);
        }
    }
}

fn session_expiry(connect: &Connect<'_>, longest: Duration) -> Duration {
    match connect.version {
        Version::V5 => Duration::from_secs(connect.session_expiry.unwrap_or(0).into()).min(longest),
        Version::V311 if connect.clean => Duration::ZERO,
        Version::V311 => longest,
    }
}

fn write_connack(
    shared: &Shared,
    wire: &mut Wire,
    connect: &Connect<'_>,
    present: bool,
    expiry: Duration,
    assigned: Option<&str>,
) {
    if connect.version == Version::V311 {
        reply::connack_v311(&mut wire.output, present);
        return;
    }
    let expiry = u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX);
    let properties = ConnackProperties {
        receive_maximum: shared.options.receive_maximum,
        maximum_packet_size: shared.options.max_packet_bytes,
        topic_alias_maximum: TOPIC_ALIASES,
        session_expiry: connect.session_expiry.filter(|asked| *asked != expiry).map(|_| expiry),
        assigned_client_id: assigned,
    };
    reply::connack_v5(&mut wire.output, present, &properties);
}

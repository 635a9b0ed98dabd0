//! MQTT 3.1.1 on the codec of rumqttc.

use super::client::{ConnAck, Incoming, Publish, Refusal};
use super::{BrokerError, BrokerOptions, Subscription};
use bytes::{Bytes, BytesMut};
use rumqttc_v4::mqttbytes::{Error, QoS, v4};
use v4::{ConnectReturnCode, Packet};

pub(super) fn connect(options: &BrokerOptions, out: &mut BytesMut) -> Result<(), BrokerError> {
    let mut connect = v4::Connect::new(options.client_id.clone());
    connect.keep_alive = u16::try_from(options.keep_alive.as_secs()).unwrap_or(u16::MAX);
    connect.clean_session = false;
    match (&options.username, &options.password) {
        (Some(username), Some(password)) => {
            let password = Bytes::copy_from_slice(password.reveal().as_bytes());
            connect.set_credentials(username.clone(), password);
        }
        (Some(username), None) => {
            connect.set_username(username.clone());
        }
        (None, _) => {}
    }
    write(&Packet::Connect(connect), out)
}

pub(super) fn subscribe(
    packet_id: u16,
    topics: &[Subscription],
    out: &mut BytesMut,
) -> Result<(), BrokerError> {
    let filters = topics.iter().map(|subscription| {
        let qos = if subscription.qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        v4::SubscribeFilter::new(subscription.filter.clone(), qos)
    });
    let mut subscribe = v4::Subscribe::new_many(filters);
    subscribe.pkid = packet_id;
    write(&Packet::Subscribe(subscribe), out)
}

fn write(packet: &Packet, out: &mut BytesMut) -> Result<(), BrokerError> {
    packet.write(out, usize::MAX).map(drop).map_err(|error| BrokerError::Protocol(error.to_string()))
}

pub(super) fn read(buffer: &mut BytesMut, max_packet_size: u32) -> Result<Option<Incoming>, BrokerError> {
    let packet = match Packet::read(buffer, max_packet_size as usize) {
        Ok(packet) => packet,
        Err(Error::InsufficientBytes(_)) => return Ok(None),
        Err(Error::PayloadSizeLimitExceeded(size)) => {
            return Err(BrokerError::PacketTooLarge { size, max: max_packet_size });
        }
        Err(error) => return Err(BrokerError::Protocol(error.to_string())),
    };
    Ok(Some(match packet {
        Packet::ConnAck(ack) => Incoming::ConnAck(ConnAck {
            session_present: ack.session_present,
            refusal: refusal(ack.code),
            keep_alive: None,
            session_expiry: None,
        }),
        Packet::SubAck(ack) => Incoming::SubAck(
            ack.return_codes
                .iter()
                .map(|code| match code {
                    v4::SubscribeReasonCode::Success(qos) => Ok(*qos as u8),
                    v4::SubscribeReasonCode::Failure => Err("refused".to_owned()),
                })
                .collect(),
        ),
        Packet::Publish(publish) => Incoming::Publish(Publish {
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos as u8,
            packet_id: publish.pkid,
            dup: publish.dup,
            retain: publish.retain,
            properties: None,
        }),
        _ => Incoming::Alive,
    }))
}

fn refusal(code: ConnectReturnCode) -> Option<Refusal> {
    let reason = match code {
        ConnectReturnCode::Success => return None,
        ConnectReturnCode::RefusedProtocolVersion => "unacceptable protocol version",
        ConnectReturnCode::BadClientId => "client identifier rejected",
        ConnectReturnCode::ServiceUnavailable => "server unavailable",
        ConnectReturnCode::BadUserNamePassword => "bad user name or password",
        ConnectReturnCode::NotAuthorized => "not authorized",
    };
    Some(Refusal { reason: reason.to_owned(), lasting: code != ConnectReturnCode::ServiceUnavailable })
}

//! MQTT 5 on the codec of rumqttc.

use super::client::{ConnAck, Grant, Incoming, Publish, Refusal};
use super::{BrokerError, BrokerOptions, Subscription};
use bytes::{Bytes, BytesMut};
use rumqttc_v5::mqttbytes::{Error, QoS, v5};
use v5::{ConnectReturnCode, Packet};

pub(super) fn connect(options: &BrokerOptions, out: &mut BytesMut) -> Result<(), BrokerError> {
    let properties = v5::ConnectProperties {
        session_expiry_interval: Some(u32::try_from(options.session_expiry.as_secs()).unwrap_or(u32::MAX)),
        receive_maximum: Some(options.window_messages),
        max_packet_size: Some(options.max_packet_size),
        topic_alias_max: None,
        request_response_info: None,
        request_problem_info: None,
        user_properties: Vec::new(),
        authentication_method: None,
        authentication_data: None,
    };
    let connect = v5::Connect {
        keep_alive: u16::try_from(options.keep_alive.as_secs()).unwrap_or(u16::MAX),
        client_id: options.client_id.clone(),
        clean_start: false,
        properties: Some(properties),
    };
    let auth = match (&options.username, &options.password) {
        (Some(username), Some(password)) => v5::ConnectAuth::UsernamePassword {
            username: username.clone(),
            password: Bytes::copy_from_slice(password.reveal().as_bytes()),
        },
        (Some(username), None) => v5::ConnectAuth::Username { username: username.clone() },
        (None, _) => v5::ConnectAuth::None,
    };
    write(&Packet::Connect(connect, None, auth), out)
}

pub(super) fn subscribe(
    packet_id: u16,
    topics: &[Subscription],
    out: &mut BytesMut,
) -> Result<(), BrokerError> {
    let filters = topics.iter().map(|subscription| {
        let qos = if subscription.qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        let mut filter = v5::SubscribeFilter::new(subscription.filter.clone(), qos);
        // Subscribing again after a restart must not bring every retained message again. A shared subscription gets
        // none at all, and may not carry the option.
        filter.retain_forward_rule = v5::RetainForwardRule::OnNewSubscribe;
        filter
    });
    let mut subscribe = v5::Subscribe::new_many(filters, None);
    subscribe.pkid = packet_id;
    write(&Packet::Subscribe(subscribe), out)
}

fn write(packet: &Packet, out: &mut BytesMut) -> Result<(), BrokerError> {
    packet.write(out, None).map(drop).map_err(|error| BrokerError::Protocol(error.to_string()))
}

pub(super) fn read(buffer: &mut BytesMut, max_packet_size: u32) -> Result<Option<Incoming>, BrokerError> {
    let packet = match Packet::read(buffer, Some(max_packet_size)) {
        Ok(packet) => packet,
        Err(Error::InsufficientBytes(_)) => return Ok(None),
        Err(Error::PayloadSizeLimitExceeded { pkt_size, max }) => {
            return Err(BrokerError::PacketTooLarge { size: pkt_size, max });
        }
        Err(error) => return Err(BrokerError::Protocol(error.to_string())),
    };
    Ok(Some(match packet {
        Packet::ConnAck(ack) => Incoming::ConnAck(connack(&ack)),
        Packet::SubAck(ack) => Incoming::SubAck(ack.return_codes.iter().map(grant).collect()),
        Packet::Publish(publish) => Incoming::Publish(Publish {
            topic: publish.topic,
            payload: publish.payload,
            qos: publish.qos as u8,
            packet_id: publish.pkid,
            dup: publish.dup,
            retain: publish.retain,
            properties: publish.properties.map(Box::new),
        }),
        Packet::Disconnect(disconnect) => {
            Incoming::Disconnect(spell(&format!("{:?}", disconnect.reason_code)))
        }
        _ => Incoming::Alive,
    }))
}

fn connack(ack: &v5::ConnAck) -> ConnAck {
    let refusal = (ack.code != ConnectReturnCode::Success).then(|| {
        let text = ack.properties.as_ref().and_then(|properties| properties.reason_string.clone());
        let reason = spell(&format!("{:?}", ack.code));
        Refusal {
            reason: text.map_or_else(|| reason.clone(), |text| format!("{reason} ({text})")),
            lasting: !matches!(
                ack.code,
                ConnectReturnCode::ServerUnavailable
                    | ConnectReturnCode::ServerBusy
                    | ConnectReturnCode::ServiceUnavailable
                    | ConnectReturnCode::UnspecifiedError
                    | ConnectReturnCode::QuotaExceeded
                    | ConnectReturnCode::ConnectionRateExceeded
            ),
        }
    });
    let properties = ack.properties.as_ref();
    ConnAck {
        session_present: ack.session_present,
        refusal,
        keep_alive: properties.and_then(|properties| properties.server_keep_alive),
        session_expiry: properties.and_then(|properties| properties.session_expiry_interval),
    }
}

fn grant(code: &v5::SubscribeReasonCode) -> Grant {
    match code {
        v5::SubscribeReasonCode::Success(qos) => Ok(*qos as u8),
        other => Err(spell(&format!("{other:?}"))),
    }
}

/// `NotAuthorized` becomes `not authorized`.
fn spell(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push(' ');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

use crate::support::*;
use messagepipeline::Ack;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::timeout;

const MESSAGES: u16 = 500;
const PATIENCE: Duration = Duration::from_secs(30);

/// Acknowledges all that comes, oldest last in every chunk, and collects the payloads until all are there.
async fn receive_all(mut rig: Rig) -> Rig {
    let mut seen = BTreeSet::new();
    while seen.len() < usize::from(MESSAGES) {
        for (message, ack) in rig.next().await.into_iter().rev() {
            assert!(seen.insert(message.payload.clone()), "no message comes twice");
            Ack::ack(ack);
        }
    }
    rig
}

#[tokio::test]
async fn rumqttc_for_mqtt_5_gets_a_puback_for_every_publish() {
    use rumqttc_v5::{AsyncClient, Broker, Event, Incoming, MqttOptions, PublishOptions, QoS};
    let rig = Rig::with(|options| options.receive_maximum = 20).await;
    let options = MqttOptions::new("real", Broker::tcp(rig.address.ip().to_string(), rig.address.port()));
    let (client, mut events) = AsyncClient::builder(options).capacity(usize::from(MESSAGES)).build();
    let receiver = tokio::spawn(receive_all(rig));
    for n in 0..MESSAGES {
        client.try_publish("devices/a/up", n.to_be_bytes(), PublishOptions::new(QoS::AtLeastOnce)).unwrap();
    }
    let mut acknowledged = 0;
    while acknowledged < MESSAGES {
        let event = timeout(PATIENCE, events.poll()).await.expect("a PUBACK is missing").unwrap();
        acknowledged += u16::from(matches!(event, Event::Incoming(Incoming::PubAck(_))));
    }
    receiver.await.unwrap();
}

#[tokio::test]
async fn rumqttc_for_mqtt_3_1_1_gets_a_puback_for_every_publish() {
    use rumqttc_v4::{AsyncClient, Broker, Event, Incoming, MqttOptions, PublishOptions, QoS};
    let rig = Rig::with(|options| options.receive_maximum = 20).await;
    let options = MqttOptions::new("real", Broker::tcp(rig.address.ip().to_string(), rig.address.port()));
    let (client, mut events) = AsyncClient::builder(options).capacity(usize::from(MESSAGES)).build();
    let receiver = tokio::spawn(receive_all(rig));
    for n in 0..MESSAGES {
        client.try_publish("devices/a/up", n.to_be_bytes(), PublishOptions::new(QoS::AtLeastOnce)).unwrap();
    }
    let mut acknowledged = 0;
    while acknowledged < MESSAGES {
        let event = timeout(PATIENCE, events.poll()).await.expect("a PUBACK is missing").unwrap();
        acknowledged += u16::from(matches!(event, Event::Incoming(Incoming::PubAck(_))));
    }
    receiver.await.unwrap();
}

#[tokio::test]
async fn rumqttc_for_mqtt_5_completes_every_publish_at_qos_2() {
    use rumqttc_v5::{AsyncClient, Broker, Event, Incoming, MqttOptions, PublishOptions, QoS};
    let rig = Rig::with(|options| options.receive_maximum = 20).await;
    let options = MqttOptions::new("real", Broker::tcp(rig.address.ip().to_string(), rig.address.port()));
    let (client, mut events) = AsyncClient::builder(options).capacity(usize::from(MESSAGES)).build();
    let receiver = tokio::spawn(receive_all(rig));
    for n in 0..MESSAGES {
        client.try_publish("devices/a/up", n.to_be_bytes(), PublishOptions::new(QoS::ExactlyOnce)).unwrap();
    }
    let mut acknowledged = 0;
    while acknowledged < MESSAGES {
        let event = timeout(PATIENCE, events.poll()).await.expect("a PUBCOMP is missing").unwrap();
        acknowledged += u16::from(matches!(event, Event::Incoming(Incoming::PubComp(_))));
    }
    receiver.await.unwrap();
}

#[tokio::test]
async fn rumqttc_for_mqtt_3_1_1_completes_every_publish_at_qos_2() {
    use rumqttc_v4::{AsyncClient, Broker, Event, Incoming, MqttOptions, PublishOptions, QoS};
    let rig = Rig::with(|options| options.receive_maximum = 20).await;
    let options = MqttOptions::new("real", Broker::tcp(rig.address.ip().to_string(), rig.address.port()));
    let (client, mut events) = AsyncClient::builder(options).capacity(usize::from(MESSAGES)).build();
    let receiver = tokio::spawn(receive_all(rig));
    for n in 0..MESSAGES {
        client.try_publish("devices/a/up", n.to_be_bytes(), PublishOptions::new(QoS::ExactlyOnce)).unwrap();
    }
    let mut acknowledged = 0;
    while acknowledged < MESSAGES {
        let event = timeout(PATIENCE, events.poll()).await.expect("a PUBCOMP is missing").unwrap();
        acknowledged += u16::from(matches!(event, Event::Incoming(Incoming::PubComp(_))));
    }
    receiver.await.unwrap();
}

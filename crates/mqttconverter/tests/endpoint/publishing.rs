use crate::support::*;
use messagepipeline::names;

#[tokio::test]
async fn a_puback_is_written_only_after_the_verdict() {
    for connect in [V311, V5] {
        let mut rig = Rig::new().await;
        let mut client = rig.client(connect).await;
        client.send(&publish(connect.level, 7, "devices/a/up", b"21.5")).await;
        let (message, ack) = rig.take(1).await.remove(0);
        client.ping().await;
        ack.ack();
        client.expect(&puback(7)).await;
        assert_eq!(&message.payload[..], b"21.5");
        for (name, value) in [
            (names::TOPIC, "devices/a/up"),
            (names::QOS, "1"),
            (names::PACKET_ID, "7"),
            (names::CLIENT_ID, "device"),
        ] {
            assert_eq!(message.attributes.get(name), Some(value));
        }
    }
}

#[tokio::test]
async fn pubacks_keep_the_order_of_receipt_though_settled_in_another() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(V311).await;
    let packets: Vec<u8> = (1..=5).flat_map(|id| publish(4, id, "t", &id.to_be_bytes())).collect();
    client.send(&packets).await;
    let mut messages = rig.take(5).await;
    let first = messages.remove(0).1;
    for (_, ack) in messages.into_iter().rev() {
        ack.ack();
    }
    client.ping().await;
    first.ack();
    for id in 1..=5 {
        client.expect(&puback(id)).await;
    }
}

#[tokio::test]
async fn a_3_1_1_client_with_a_full_window_is_not_read_from() {
    let mut rig = Rig::with(|options| options.receive_maximum = 2).await;
    let mut client = rig.client(V311).await;
    let mut packets: Vec<u8> = (1..=3).flat_map(|id| publish(4, id, "t", &[0, id as u8])).collect();
    packets.extend(PINGREQ);
    client.send(&packets).await;
    let mut messages = rig.take(2).await;
    messages.remove(0).1.ack();
    // The PINGREQ stands behind the third publish, which had no place before this PUBACK.
    client.expect(&puback(1)).await;
    client.expect(&PINGRESP).await;
    messages.extend(rig.take(1).await);
    for (_, ack) in messages {
        ack.ack();
    }
    client.expect(&puback(2)).await;
    client.expect(&puback(3)).await;
}

#[tokio::test]
async fn at_the_budget_of_all_connections_a_further_message_waits_at_qos_0_too() {
    let mut rig = Rig::with(|options| options.max_in_flight_messages = 2).await;
    let mut first = rig.client(V311).await;
    first.send(&[publish(4, 1, "t", b"1"), publish(4, 2, "t", b"2")].concat()).await;
    let mut held = rig.take(2).await;
    let mut second = rig.client(Connect { client_id: "other", ..V311 }).await;
    second.send(&[publish(4, 0, "t", b"3"), PINGREQ.to_vec()].concat()).await;
    second.expect(&PINGRESP).await;
    assert!(rig.is_quiet().await);
    held.remove(0).1.ack();
    assert_eq!(payloads(&rig.take(1).await), [b"3"]);
}

#[tokio::test]
async fn packets_that_come_byte_by_byte_are_understood() {
    let mut rig = Rig::new().await;
    let mut client = Client::open(rig.address).await;
    let bytes = [V5.bytes(), publish(5, 9, "t", b"slow"), publish(5, 0, "t", b"")].concat();
    for byte in bytes {
        client.send(&[byte]).await;
    }
    let messages = rig.take(2).await;
    assert_eq!(payloads(&messages), [&b"slow"[..], b""], "an empty payload is a message");
}

#[tokio::test]
async fn a_packet_larger_than_a_read_arrives_whole() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(V311).await;
    let large: Vec<u8> = (0..900_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    client.send(&[publish(4, 1, "t", &large), publish(4, 2, "t", b"next")].concat()).await;
    let messages = rig.take(2).await;
    assert!(payloads(&messages) == [&large[..], b"next"]);
}

#[tokio::test]
async fn what_an_mqtt_5_publish_carries_becomes_attributes() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(V5).await;
    let properties = b"\x23\x00\x02\x26\x00\x04site\x00\x05north\x03\x00\x09text/html\x02\x00\x00\x00\x3c";
    let first = publish_with(5, 1, "devices/a/up", properties, b"1");
    client.send(&[first, publish_with(5, 2, "", b"\x23\x00\x02", b"2")].concat()).await;
    let messages = rig.take(2).await;
    let attributes = &messages[0].0.attributes;
    assert_eq!(attributes.get("user.site"), Some("north"));
    assert_eq!(attributes.get(names::CONTENT_TYPE), Some("text/html"));
    assert_eq!(attributes.get("mqtt_message_expiry_seconds"), Some("60"));
    assert_eq!(messages[1].0.attributes.get(names::TOPIC), Some("devices/a/up"), "by its alias");
}

#[tokio::test]
async fn a_failed_message_closes_the_connection_without_its_puback_and_comes_again() {
    for connect in [V311, V5] {
        let connect = Connect { clean: false, expiry: 60, ..connect };
        let mut rig = Rig::new().await;
        let mut client = rig.client(connect).await;
        let packets = [1, 2].map(|id| publish(connect.level, id, "t", &[0, id as u8]));
        client.send(&packets.concat()).await;
        let mut messages = rig.take(2).await;
        messages.pop().unwrap().1.ack();
        messages.pop().unwrap().1.nack();
        if connect.level == 5 {
            client.expect(&[0xE0, 1, 0x89]).await;
        }
        client.expect_closed().await;

        let mut client = rig.client(connect).await;
        client.send(&packets.map(again).concat()).await;
        let mut messages = rig.take(1).await;
        let (message, ack) = messages.remove(0);
        assert_eq!(message.payload, [0, 1][..], "the second is stored already");
        assert_eq!(message.attributes.get(names::DUP), Some("true"));
        ack.ack();
        client.expect(&puback(1)).await;
        client.expect(&puback(2)).await;
    }
}

#[tokio::test]
async fn every_message_has_an_id_of_its_own_whatever_its_packet_identifier() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(V311).await;
    let mut ids = std::collections::HashSet::new();
    for round in [b"a", b"b"] {
        client
            .send(&[publish(4, 0, "t", round), publish(4, 0, "t", round), publish(4, 7, "t", round)].concat())
            .await;
        for (message, ack) in rig.take(3).await {
            ids.insert(message.id);
            ack.ack();
        }
        client.expect(&puback(7)).await;
    }
    assert_eq!(ids.len(), 6);
}

#[tokio::test]
async fn a_large_packet_behind_a_full_window_is_read_to_its_end() {
    for (connect, qos) in [(V311, 1), (V311, 0), (V5, 0)] {
        let mut rig = Rig::with(|options| options.receive_maximum = 4).await;
        let mut client = rig.client(connect).await;
        let id = |at: u16| if qos > 0 { at } else { 0 };
        let sizes = [10, 10, 10, 10, 10, 10, 100_000, 10, 40_000, 10];
        let packets =
            (1..).zip(sizes).map(|(at, size)| publish(connect.level, id(at), "t", &vec![b'x'; size]));
        // All of it arrives while the first few have no verdict.
        client.send(&packets.collect::<Vec<_>>().concat()).await;
        let mut taken = 0;
        while taken < sizes.len() {
            for (message, ack) in rig.next().await {
                assert_eq!(message.payload.len(), sizes[taken]);
                ack.ack();
                taken += 1;
            }
        }
        for at in 1..=sizes.len() {
            if qos > 0 {
                client.expect(&puback(u8::try_from(at).unwrap())).await;
            }
        }
        client.ping().await;
    }
}

/// An endpoint with room for four of the packet in flight, and for as many that arrive.
async fn rig_for_four_large_packets() -> (Rig, Vec<u8>) {
    (Rig::tight(|_| {}).await, publish(4, 1, "t", &[b'x'; 240_000]))
}

#[tokio::test]
async fn a_connection_that_waits_to_send_a_large_packet_ends_when_its_client_comes_back() {
    let (mut rig, large) = rig_for_four_large_packets().await;
    let mut begun = Vec::new();
    for client_id in ["a", "b", "c", "d"] {
        let mut client = rig.client(Connect { client_id, ..V311 }).await;
        // The PINGRESP says that the room for what follows it is taken.
        client.send(&[&PINGREQ, &large[..30_000]].concat()).await;
        client.expect(&PINGRESP).await;
        begun.push(client);
    }
    let mut waiting = rig.client(V311).await;
    waiting.send(&[&PINGREQ, &large[..30_000]].concat()).await;
    waiting.expect(&PINGRESP).await;
    let mut back = rig.client(V311).await;
    waiting.expect_closed().await;
    back.send(&large).await;
    drop(begun);
    rig.take(1).await.remove(0).1.ack();
    back.expect(&puback(1)).await;
}

#[tokio::test]
async fn while_the_pipeline_is_full_no_more_large_packets_are_read_than_the_budget_holds() {
    let (mut rig, large) = rig_for_four_large_packets().await;
    let names: Vec<_> = (0..12).map(|n| format!("device-{n}")).collect();
    let mut clients = Vec::new();
    for client_id in &names {
        let mut client = rig.client(Connect { client_id, ..V311 }).await;
        client.send(&[&PINGREQ, &large[..]].concat()).await;
        client.expect(&PINGRESP).await;
        clients.push(client);
    }
    let held = rig.take(4).await;
    // Time to read what should not be read; with none the test says less, but nothing wrong.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    rig.handle.drain();
    let mut taken = held.len();
    held.into_iter().for_each(|(_, ack)| ack.ack());
    taken += rig.drain().await.len();
    assert!((4..=8).contains(&taken), "{taken}: four are in flight, and four may wait for it");
}

use crate::support::*;
use messagepipeline::names;
use testkit::session_suite::MemorySessions;

/// In seconds.
const AN_HOUR: u32 = 3_600;

const KEPT: Connect<'static> = Connect { clean: false, expiry: 60, ..V5 };

#[tokio::test]
async fn a_publish_sent_again_while_the_first_is_in_flight_is_one_message_with_one_puback() {
    for connect in [KEPT, Connect { level: 4, ..KEPT }] {
        let mut rig = Rig::new().await;
        let packet = publish(connect.level, 5, "t", b"once");
        let mut first = rig.client(connect).await;
        first.send(&packet).await;
        let mut messages = rig.take(1).await;
        drop(first);
        let mut second = rig.client(connect).await;
        second.send(&again(packet.clone())).await;
        second.ping().await;
        assert!(rig.is_quiet().await);
        messages.remove(0).1.ack();
        second.expect(&puback(5)).await;
        // Now the PUBACK is written, and nobody can know whether it arrived.
        second.send(&again(packet)).await;
        assert_eq!(payloads(&rig.take(1).await), [b"once"]);
    }
}

#[tokio::test]
async fn a_publish_stored_after_its_connection_died_is_answered_at_once() {
    let mut rig = Rig::new().await;
    let mut first = rig.client(KEPT).await;
    first.send(&publish(5, 5, "t", b"once")).await;
    let mut messages = rig.take(1).await;
    let mut second = rig.client(KEPT).await;
    messages.remove(0).1.ack();
    second.send(&again(publish(5, 5, "t", b"once"))).await;
    second.expect(&puback(5)).await;
    assert!(rig.is_quiet().await);
}

#[tokio::test]
async fn the_same_identifier_with_other_bytes_or_after_a_clean_start_is_a_new_message() {
    let mut rig = Rig::new().await;
    let mut first = rig.client(KEPT).await;
    first.send(&publish(5, 5, "t", b"one")).await;
    let _one = rig.take(1).await;
    let mut second = rig.client(KEPT).await;
    second.send(&again(publish(5, 5, "t", b"two"))).await;
    let two = rig.take(1).await;
    assert_eq!(payloads(&two), [b"two"]);
    let mut third = rig.client(V5).await;
    third.send(&again(publish(5, 5, "t", b"two"))).await;
    assert_eq!(payloads(&rig.take(1).await), [b"two"]);
}

#[tokio::test]
async fn session_present_tells_whether_the_session_is_known() {
    let rig = Rig::new().await;
    // What is kept is known again; a clean start forgets; a session without expiry ends with its connection.
    for (connect, expected) in [(KEPT, 0), (KEPT, 1), (V5, 0), (KEPT, 0), (KEPT, 1)] {
        let mut client = Client::open(rig.address).await;
        client.send(&connect.bytes()).await;
        assert_eq!(client.packet().await[2], expected);
        client.send(&DISCONNECT).await;
        client.expect_closed().await;
    }
}

#[tokio::test]
async fn a_second_connection_takes_the_session_over() {
    let rig = Rig::new().await;
    for connect in [V311, V5] {
        let mut first = rig.client(connect).await;
        let mut second = rig.client(connect).await;
        if connect.level == 5 {
            first.expect(&[0xE0, 1, 0x8E]).await;
        }
        first.expect_closed().await;
        second.ping().await;
    }
}

#[tokio::test]
async fn an_empty_client_identifier_is_assigned_where_the_session_is_not_kept() {
    let rig = Rig::new().await;
    let mut client = Client::open(rig.address).await;
    client.send(&Connect { client_id: "", ..V5 }.bytes()).await;
    let connack = client.packet().await;
    let at = connack.windows(3).position(|bytes| bytes == [0x12, 0, 36]).expect("Assigned Client Identifier");
    assert_eq!(connack.len(), at + 3 + 36);
    rig.client(Connect { client_id: "", ..V311 }).await;
    let mut client = Client::open(rig.address).await;
    client.send(&Connect { client_id: "", clean: false, ..V311 }.bytes()).await;
    client.expect(&[0x20, 2, 0, 2]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn a_will_is_published_unless_the_client_says_goodbye() {
    for connect in [V311, V5] {
        let mut rig = Rig::new().await;
        let polite = Connect { client_id: "polite", will: Some(("wills", "polite")), ..connect };
        let mut client = rig.client(polite).await;
        client.send(&DISCONNECT).await;
        client.expect_closed().await;
        let rude = Connect { client_id: "rude", will: Some(("wills", "rude")), ..connect };
        drop(rig.client(rude).await);
        let messages = rig.take(1).await;
        let attributes = &messages[0].0.attributes;
        assert_eq!(payloads(&messages), [b"rude"]);
        assert_eq!(attributes.get(names::WILL), Some("true"));
        assert_eq!(attributes.get(names::TOPIC), Some("wills"));
        assert!(rig.drain().await.is_empty());
    }
}

#[tokio::test]
async fn a_client_that_falls_silent_is_cut_off_but_not_while_it_is_us_who_do_not_read() {
    let mut rig = Rig::with(|options| options.receive_maximum = 1).await;
    let mut stalled = rig.client(Connect { client_id: "stalled", keep_alive: 1, ..V311 }).await;
    stalled.send(&[publish(4, 1, "t", b"1"), publish(4, 2, "t", b"2")].concat()).await;
    let mut held = rig.take(1).await;
    for _ in 0..2 {
        let mut silent = rig.client(Connect { keep_alive: 1, ..V5 }).await;
        silent.expect(&[0xE0, 1, 0x8D]).await;
        silent.expect_closed().await;
    }
    held.remove(0).1.ack();
    stalled.expect(&puback(1)).await;
    rig.take(1).await.remove(0).1.ack();
    stalled.expect(&puback(2)).await;
}

#[tokio::test]
async fn what_clients_said_while_the_process_was_paused_counts_for_their_keep_alive() {
    let rig = Rig::new().await;
    let mut clients = Vec::new();
    for id in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        clients.push(rig.client(Connect { client_id: id, keep_alive: 3, ..V5 }).await);
    }
    // The runtime has this one thread: whoever blocks it pauses the endpoint. What is sent meanwhile waits.
    std::thread::sleep(std::time::Duration::from_secs(4));
    for client in &clients {
        assert_eq!(client.stream.try_write(&PINGREQ).unwrap(), PINGREQ.len());
    }
    std::thread::sleep(std::time::Duration::from_secs(1));
    for client in &mut clients {
        client.expect(&PINGRESP).await;
    }
}

#[tokio::test]
async fn a_will_with_a_delay_is_published_after_it() {
    let mut rig = Rig::new().await;
    let mut client = Client::open(rig.address).await;
    client.send(&connect_with_delayed_will("delays", true, 1)).await;
    assert_eq!(client.packet().await[3], 0);
    let begin = std::time::Instant::now();
    drop(client);
    assert_eq!(payloads(&rig.take(1).await), [b"x"]);
    assert!(begin.elapsed() >= std::time::Duration::from_secs(1), "never earlier, however slow the machine");
}

#[tokio::test]
async fn a_connect_that_is_refused_takes_back_no_will() {
    let store = MemorySessions::default();
    let mut rig = Rig::on(&store).await;
    let mut client = Client::open(rig.address).await;
    client.send(&connect_with_delayed_will("delays", false, 1)).await;
    assert_eq!(client.packet().await[3], 0);
    store.fail(true);
    let mut refused = Client::open(rig.address).await;
    refused.send(&Connect { client_id: "delays", clean: false, expiry: 90, ..V5 }.bytes()).await;
    refused.expect(&[0x20, 3, 0, 0x88, 0]).await;
    assert_eq!(payloads(&rig.take(1).await), [b"x"]);
}

/// A CONNECT of MQTT 5 with a session for a day and a will for `delay` seconds after the connection.
fn connect_with_delayed_will(client_id: &str, clean: bool, delay: u32) -> Vec<u8> {
    let mut body = b"\x00\x04MQTT\x05".to_vec();
    body.extend_from_slice(&[0x04 | u8::from(clean) << 1, 0, 0]);
    body.extend_from_slice(b"\x05\x11\x00\x01\x51\x80\x00");
    body.push(u8::try_from(client_id.len()).unwrap());
    body.extend_from_slice(client_id.as_bytes());
    body.extend_from_slice(b"\x05\x18");
    body.extend_from_slice(&delay.to_be_bytes());
    body.extend_from_slice(b"\x00\x04gone\x00\x01x");
    packet(0x10, &body)
}

#[tokio::test]
async fn a_client_that_is_gone_holds_no_place_until_its_will_is_due() {
    let mut rig = Rig::with(|options| options.max_connections = 1).await;
    for client_id in ["a", "b", "c"] {
        // Until the endpoint has seen that the one before is gone, there is no place.
        let enters = async {
            loop {
                let mut client = Client::open(rig.address).await;
                client.send(&connect_with_delayed_will(client_id, true, AN_HOUR)).await;
                if client.packet().await[3] == 0 {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, enters).await.expect("no place became free");
        if client_id != "c" {
            assert!(rig.is_quiet().await, "none of the wills was due");
        }
    }
    // There are as many sessions as places. The first one has ended, and with it the wait for its will.
    assert_eq!(rig.next().await[0].0.payload, "x");
}

#[tokio::test]
async fn a_client_that_is_gone_holds_no_place_while_its_will_waits_for_the_pipeline() {
    let mut rig = Rig::with(|options| {
        options.max_connections = 2;
        options.max_in_flight_messages = 1;
    })
    .await;
    let mut busy = rig.client(V311).await;
    busy.send(&publish(4, 1, "t", b"busy")).await;
    let mut held = rig.take(1).await;
    for client_id in ["a", "b", "c", "d"] {
        // Until the endpoint has seen that the one before is gone, there is no place.
        let enters = async {
            loop {
                let mut client = Client::open(rig.address).await;
                client.send(&Connect { client_id, will: Some(("wills", client_id)), ..V311 }.bytes()).await;
                if client.packet().await[3] == 0 {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, enters).await.expect("no place became free");
    }
    for client_id in ["a", "b", "c", "d"] {
        held.remove(0).1.ack();
        held = rig.take(1).await;
        assert_eq!(payloads(&held), [client_id.as_bytes()]);
    }
}

#[tokio::test]
async fn a_will_is_due_when_its_client_begins_a_new_session_and_is_not_when_it_comes_back_to_the_old_one() {
    let mut rig = Rig::new().await;
    for (clean, gone_before) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut former = Client::open(rig.address).await;
        former.send(&connect_with_delayed_will("device", false, AN_HOUR)).await;
        assert_eq!(former.packet().await[3], 0);
        if gone_before {
            drop(former);
        }
        let mut client = Client::open(rig.address).await;
        client.send(&connect_with_delayed_will("device", clean, AN_HOUR)).await;
        assert_eq!(client.packet().await[3], 0);
        client.ping().await;
        if clean {
            assert_eq!(payloads(&rig.take(1).await), [b"x"]);
        }
        client.send(&[0xE0, 0]).await;
        client.expect_closed().await;
        assert!(rig.is_quiet().await);
    }
}

#[tokio::test]
async fn a_client_that_comes_back_again_and_again_before_its_will_is_due_holds_no_places() {
    let mut rig = Rig::with(|options| options.max_connections = 4).await;
    for _ in 0..20 {
        let mut client = Client::open(rig.address).await;
        client.send(&connect_with_delayed_will("delays", false, AN_HOUR)).await;
        assert_eq!(client.packet().await[3], 0, "accepted");
        // A turn through the endpoint, in which the former connection finds that its client is back.
        client.ping().await;
    }
    assert!(rig.is_quiet().await, "none of the wills was due");
}

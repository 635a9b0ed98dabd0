use crate::support::*;
use futures_util::FutureExt;
use testkit::session_suite::MemorySessions;
use tokio::io::AsyncWriteExt;

async fn refused_by(rig: &Rig, packet: &[u8], code: u8) {
    let mut client = rig.client(V5).await;
    client.send(packet).await;
    client.expect(&[0xE0, 1, code]).await;
    client.expect_closed().await;
}

async fn closed_by(rig: &Rig, packet: &[u8]) {
    let mut client = rig.client(V311).await;
    client.send(packet).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn a_subscription_is_refused_and_the_connection_stays() {
    let rig = Rig::new().await;
    let mut client = rig.client(V311).await;
    client.send(&packet(0x82, b"\x00\x07\x00\x01a\x01\x00\x01b\x00")).await;
    client.expect(&[0x90, 4, 0, 7, 0x80, 0x80]).await;
    client.send(&packet(0xA2, b"\x00\x08\x00\x01a")).await;
    client.expect(&[0xB0, 2, 0, 8]).await;
    client.ping().await;
    let mut client = rig.client(Connect { client_id: "other", ..V5 }).await;
    client.send(&packet(0x82, b"\x00\x07\x00\x00\x01a\x01")).await;
    client.expect(&[0x90, 4, 0, 7, 0, 0x87]).await;
    client.send(&packet(0xA2, b"\x00\x08\x00\x00\x01a")).await;
    client.expect(&[0xB0, 4, 0, 8, 0, 0x11]).await;
    client.ping().await;
    // As gateways do that want commands for each of their devices.
    let filter = [&[0, 100], &[b'a'; 100][..], &[1]].concat();
    client.send(&packet(0x82, &[b"\x00\x07\x00", &filter.repeat(200)[..]].concat())).await;
    assert_eq!(client.packet().await.len(), 206);
    client.ping().await;
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_connection_with_its_code() {
    let rig = Rig::with(|options| {
        options.max_packet_bytes = 1_024;
        options.receive_maximum = 1;
    })
    .await;
    // Only the fixed header is sent: it says enough.
    refused_by(&rig, &[0x30, 0xFE, 0x07], 0x95).await;
    refused_by(&rig, &[publish(5, 1, "t", b""), publish(5, 2, "t", b"")].concat(), 0x93).await;
    refused_by(&rig, &publish_with(5, 1, "", b"\x23\x00\x11", b""), 0x94).await;
    refused_by(&rig, &publish_with(5, 1, "", b"\x23\x00\x01", b""), 0x82).await;
    refused_by(&rig, &publish(5, 0, "a/#", b""), 0x90).await;
    refused_by(&rig, &publish(5, 1, "a\0b", b""), 0x81).await;
    refused_by(&rig, &[0xF0, 0], 0x82).await;
    refused_by(&rig, b"\x00\x00", 0x81).await;
    refused_by(&rig, &V5.bytes(), 0x82).await;
    closed_by(&rig, &[0x30, 0xFE, 0x07]).await;
    closed_by(&rig, &publish(4, 1, "a/+", b"")).await;
    closed_by(&rig, &publish(4, 1, "", b"")).await;
    closed_by(&rig, &[0xFF; 64]).await;
}

#[tokio::test]
async fn a_publish_refused_for_good_gets_its_code_in_order_and_the_connection_stays() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(V5).await;
    let packets = [
        publish(5, 1, "t", b"good"),
        publish(5, 2, "a/#", b""),
        publish_with(5, 3, "t", b"\x01\x01", b"\xff"),
        publish_with(5, 4, "t", &b"\x26\x00\x00\x00\x00".repeat(25), b""),
    ];
    client.send(&packets.concat()).await;
    let mut messages = rig.take(2).await;
    client.ping().await;
    messages.remove(0).1.ack();
    client.expect(&puback(1)).await;
    client.expect(&[0x40, 3, 0, 2, 0x90]).await;
    client.expect(&[0x40, 3, 0, 3, 0x99]).await;
    messages.remove(0).1.ack();
    client.expect(&puback(4)).await;
}

#[tokio::test]
async fn a_topic_alias_means_its_last_topic_though_the_publish_that_set_it_was_refused() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(V5).await;
    let packets = [
        publish_with(5, 1, "before", b"\x23\x00\x01", b""),
        publish_with(5, 2, "after", b"\x23\x00\x01\x01\x01", b"\xff"),
        publish_with(5, 3, "", b"\x23\x00\x01", b"x"),
        publish_with(5, 4, "new", b"\x23\x00\x02\x01\x01", b"\xff"),
        publish_with(5, 5, "", b"\x23\x00\x02", b"x"),
        publish_with(5, 6, &"\u{e9}".repeat(10_000), b"\x23\x00\x02", b"x"),
        publish_with(5, 7, &"a".repeat(4_097), b"\x23\x00\x03", b"x"),
        publish_with(5, 9, "", b"\x23\x00\x02", b"x"),
        publish_with(5, 8, "", b"\x23\x00\x01", b"x"),
    ];
    client.send(&packets.concat()).await;
    let taken = rig.take(4).await;
    let topics: Vec<_> = taken.iter().map(|(message, _)| message.attributes.get("mqtt_topic")).collect();
    assert_eq!(topics, [Some("before"), Some("after"), Some("new"), Some("after")]);
}

#[tokio::test]
async fn only_mqtt_3_1_1_and_5_get_in() {
    let rig = Rig::new().await;
    let mut body = V311.bytes()[2..].to_vec();
    body[6] = 3;
    for (bytes, answer) in [
        (packet(0x10, b"\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01a"), &[0x20, 2, 0, 1][..]),
        (packet(0x10, &body), &[0x20, 2, 0, 1]),
        (Connect { level: 6, ..V311 }.bytes(), &[0x20, 3, 0, 0x84, 0]),
    ] {
        let mut client = Client::open(rig.address).await;
        client.send(&bytes).await;
        client.expect(answer).await;
        client.expect_closed().await;
    }
    for garbage in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x10\xff\xff\xff\xff", b"\x10\xff\xff\xff\x7f", b"\xc0\x00"]
    {
        let mut client = Client::open(rig.address).await;
        client.send(garbage).await;
        client.expect_closed().await;
    }
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_told_so() {
    let rig = Rig::with(|options| options.max_connections = 1).await;
    let mut first = rig.client(V311).await;
    for (connect, answer) in [(V5, &[0x20, 3, 0, 0x97, 0][..]), (V311, &[0x20, 2, 0, 3])] {
        let mut client = Client::open(rig.address).await;
        client.send(&Connect { client_id: "second", ..connect }.bytes()).await;
        client.expect(answer).await;
        client.expect_closed().await;
    }
    first.ping().await;
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut_off_at_the_connect_deadline() {
    let rig = Rig::with(|options| options.connect_timeout = std::time::Duration::from_millis(50)).await;
    Client::open(rig.address).await.expect_closed().await;
}

#[tokio::test]
async fn large_connects_of_nobody_known_take_turns_and_hold_up_no_small_one() {
    let rig = Rig::tight(|_| {}).await;
    let will = "x".repeat(60_000);
    let large = |client_id| Connect { client_id, will: Some(("wills", &will)), ..V311 }.bytes();
    let mut begun = Vec::new();
    for client_id in ["a", "b"] {
        let mut client = Client::open(rig.address).await;
        client.send(&large(client_id)[..30_000]).await;
        begun.push(client);
    }
    // One who was read later is served: those before have what there is for large ones.
    rig.client(Connect { client_id: "small", ..V311 }).await.ping().await;
    let mut third = Client::open(rig.address).await;
    third.send(&large("third")).await;
    rig.client(Connect { client_id: "small", ..V311 }).await.ping().await;
    assert!(third.packet().now_or_never().is_none(), "there was no room for its CONNECT");
    begun.pop();
    third.expect(&[0x20, 2, 0, 0]).await;
}

#[tokio::test]
async fn wills_beyond_their_budget_are_refused_and_those_of_who_is_gone_make_room() {
    let rig = Rig::tight(|_| {}).await;
    let will = "x".repeat(60_000);
    let mut clients = Vec::new();
    for client_id in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        clients.push(rig.client(Connect { client_id, will: Some(("wills", &will)), ..V311 }).await);
    }
    let mut refused = Client::open(rig.address).await;
    refused.send(&Connect { client_id: "i", will: Some(("wills", &will)), ..V311 }.bytes()).await;
    refused.expect(&[0x20, 2, 0, 3]).await;
    rig.client(Connect { client_id: "j", ..V311 }).await.ping().await;
    let mut polite = clients.remove(0);
    polite.send(&[0xE0, 0]).await;
    polite.expect_closed().await;
    rig.client(Connect { client_id: "i", will: Some(("wills", &will)), ..V311 }).await.ping().await;
}

#[tokio::test]
async fn a_will_keeps_its_room_until_the_pipeline_has_it() {
    let mut rig = Rig::tight(|options| options.max_in_flight_messages = 1).await;
    let will = "x".repeat(60_000);
    let mut first = rig.client(V311).await;
    first.send(&publish(4, 1, "t", b"x")).await;
    let held = rig.take(1).await;
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    for client_id in names {
        rig.client(Connect { client_id, will: Some(("wills", &will)), ..V311 }).await.ping().await;
    }
    // All of them are gone without a word, and their wills wait.
    let connect = Connect { client_id: "i", will: Some(("wills", &will)), ..V311 }.bytes();
    for _ in 0..20 {
        let mut refused = Client::open(rig.address).await;
        refused.send(&connect).await;
        refused.expect(&[0x20, 2, 0, 3]).await;
        refused.expect_closed().await;
    }
    held.into_iter().for_each(|(_, ack)| ack.ack());
    for _ in names {
        rig.take(1).await.remove(0).1.ack();
    }
    rig.client(Connect { client_id: "i", will: Some(("wills", &will)), ..V311 }).await.ping().await;
}

#[tokio::test]
async fn what_one_connection_would_keep_or_be_answered_without_bound_ends_it() {
    let rig = Rig::new().await;
    let mut subscribe = vec![0, 1, 0];
    subscribe.extend(b"\0\x01a\0".repeat(3_000));
    refused_by(&rig, &packet(0x82, &subscribe), 0x97).await;
    subscribe.extend(vec![0; 70_000]);
    refused_by(&rig, &packet(0x82, &subscribe), 0x95).await;
    let topic = "t".repeat(3_000);
    let aliased = |alias: u8| publish_with(5, 0, &topic, &[0x23, 0, alias], b"");
    refused_by(&rig, &[aliased(1), aliased(2), aliased(3)].concat(), 0x97).await;
}

#[tokio::test]
async fn who_is_slow_with_a_large_packet_makes_room_when_others_wait() {
    let mut rig = Rig::tight(|options| options.stall_timeout = std::time::Duration::from_millis(100)).await;
    let large = publish(4, 1, "t", &[b'x'; 240_000]);
    let mut slow = Vec::new();
    for client_id in ["a", "b", "c", "d"] {
        let mut client = rig.client(Connect { client_id, ..V311 }).await;
        // What has come would do for half a minute if nobody waited.
        client.send(&[&PINGREQ, &large[..30_000]].concat()).await;
        client.expect(&PINGRESP).await;
        slow.push(client);
    }
    let mut quick = rig.client(V311).await;
    quick.send(&large).await;
    rig.take(1).await.remove(0).1.ack();
    quick.expect(&puback(1)).await;
}

#[tokio::test]
async fn a_client_that_announces_a_large_packet_and_falls_silent_is_cut_off() {
    let rig = Rig::with(|options| options.stall_timeout = std::time::Duration::from_millis(50)).await;
    let mut client = rig.client(V5).await;
    client.send(&publish(5, 1, "t", &[b'x'; 1_000_000])[..100]).await;
    client.expect(&[0xE0, 1, 0x8D]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn a_client_that_never_reads_our_answers_is_cut_off() {
    let rig = Rig::with(|options| options.stall_timeout = std::time::Duration::from_millis(100)).await;
    let mut client = rig.client(V311).await;
    let pings = PINGREQ.repeat(32 * 1024);
    let flood = async { while client.stream.write_all(&pings).await.is_ok() {} };
    tokio::time::timeout(std::time::Duration::from_secs(60), flood).await.expect("still reading");
}

#[tokio::test]
async fn packets_of_one_size_are_not_taken_for_one_that_never_comes_while_the_pipeline_is_full() {
    let stall = std::time::Duration::from_secs(1);
    let mut rig = Rig::with(|options| {
        options.stall_timeout = stall;
        options.max_in_flight_messages = 1;
    })
    .await;
    let mut client = rig.client(V311).await;
    let packets = [1, 2, 3].map(|id| publish(4, id, "t", &[b'x'; 300]));
    let (half, rest) = packets[1].split_at(150);
    client.send(&[&packets[0], half].concat()).await;
    let first = rig.take(1).await.remove(0).1;
    client.send(&[rest, &packets[2][..150]].concat()).await;
    // Nothing is read while the second has no room, which takes longer than a packet may.
    tokio::time::sleep(stall + stall / 5).await;
    first.ack();
    client.expect(&puback(1)).await;
    rig.take(1).await.remove(0).1.ack();
    client.expect(&puback(2)).await;
    // The endpoint looks twice at the clock before it ends a connection.
    tokio::time::sleep(stall / 10).await;
    client.send(&packets[2][150..]).await;
    rig.take(1).await.remove(0).1.ack();
    client.expect(&puback(3)).await;
}

#[tokio::test]
async fn a_pubrel_whose_identifier_cannot_be_forgotten_gets_no_pubcomp() {
    let connect = Connect { clean: false, expiry: 3_600, ..V5 };
    let store = MemorySessions::default();
    let mut rig = Rig::on(&store).await;
    let mut client = rig.client(connect).await;
    client.send(&publish_once(5, 1, b"once")).await;
    rig.take(1).await.remove(0).1.ack();
    client.expect(&pubrec(1)).await;
    store.fail(true);
    client.send(&pubrel(1)).await;
    client.expect(&[0xE0, 1, 0x88]).await;
    client.expect_closed().await;
    store.fail(false);
    let mut client = rig.client(connect).await;
    client.send(&pubrel(1)).await;
    client.expect(&pubcomp(1)).await;
}

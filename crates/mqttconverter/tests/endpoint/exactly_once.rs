//! QoS 2, with sessions that outlive the process.

use crate::support::*;
use std::ops::RangeInclusive;
use std::time::Duration;
use testkit::session_suite::MemorySessions;

/// A session that is kept.
const KEPT_V311: Connect<'static> = Connect { clean: false, ..V311 };
const KEPT_V5: Connect<'static> = Connect { clean: false, expiry: 3_600, ..V5 };

fn held(store: &MemorySessions) -> Vec<u16> {
    store.all().iter().flat_map(|session| &session.held).map(|held| held.packet_id).collect()
}

/// Lets other tasks run until `count` writes have begun.
async fn writes(store: &MemorySessions, count: usize) {
    while store.writes() < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_pubrec_follows_the_verdict_and_a_pubcomp_the_pubrel() {
    for connect in [V311, V5, KEPT_V311, KEPT_V5] {
        let store = MemorySessions::default();
        let mut rig = Rig::on(&store).await;
        let mut client = rig.client(connect).await;
        client.send(&publish_once(connect.level, 7, b"21.5")).await;
        let (message, ack) = rig.take(1).await.remove(0);
        assert_eq!(&message.payload[..], b"21.5");
        assert_eq!(message.attributes.get(messagepipeline::names::QOS), Some("2"));
        let is_kept = !connect.clean;
        assert_eq!(held(&store), if is_kept { vec![7] } else { vec![] }, "before the message went on");
        client.ping().await;
        ack.ack();
        client.expect(&pubrec(7)).await;
        assert_eq!(held(&store).is_empty(), !is_kept);
        client.send(&pubrel(7)).await;
        client.expect(&pubcomp(7)).await;
        assert!(held(&store).is_empty());
        client.send(&publish_once(connect.level, 7, b"21.5")).await;
        let (second, _) = rig.take(1).await.remove(0);
        assert_ne!(message.id, second.id, "the identifier is free again");
    }
}

#[tokio::test]
async fn a_message_goes_on_only_when_its_identifier_is_kept() {
    let store = MemorySessions::default();
    let mut rig = Rig::on(&store).await;
    let mut client = rig.client(KEPT_V5).await;
    let before = store.writes();
    store.close_gate();
    client.send(&publish_once(5, 1, b"a")).await;
    writes(&store, before + 1).await;
    assert!(rig.is_quiet().await);
    store.open_gate();
    rig.take(1).await.remove(0).1.ack();
    client.expect(&pubrec(1)).await;
    store.close_gate();
    client.send(&pubrel(1)).await;
    writes(&store, before + 2).await;
    assert_eq!(held(&store), [1]);
    store.open_gate();
    client.expect(&pubcomp(1)).await;
}

#[tokio::test]
async fn a_read_of_many_packets_is_one_write() {
    let store = MemorySessions::default();
    let mut rig = Rig::on(&store).await;
    let mut client = rig.client(KEPT_V5).await;
    let publishes: Vec<u8> = (1..=5).flat_map(|id| publish_once(5, id, b"a")).collect();
    client.send(&publishes).await;
    rig.take(5).await.into_iter().for_each(|(_, ack)| ack.ack());
    for id in 1..=5 {
        client.expect(&pubrec(id)).await;
    }
    let before = store.writes();
    let more: Vec<u8> =
        (1..=5).flat_map(|id| [pubrel(id), publish_once(5, u16::from(id) + 5, b"b")].concat()).collect();
    client.send(&more).await;
    rig.take(5).await.into_iter().for_each(|(_, ack)| ack.ack());
    assert_eq!(store.writes(), before + 1);
    assert_eq!(held(&store), [6, 7, 8, 9, 10]);
}

#[tokio::test]
async fn a_publish_that_comes_again_with_or_without_dup_is_one_message() {
    for connect in [KEPT_V311, KEPT_V5] {
        let mut rig = Rig::on(&MemorySessions::default()).await;
        let first = publish_once(connect.level, 1, b"a");
        let mut client = rig.client(connect).await;
        client.send(&first).await;
        let (_, ack) = rig.take(1).await.remove(0);
        // In flight, then stored.
        for bytes in [first.clone(), again(first.clone())] {
            (client, _) = rig.session(connect).await;
            client.send(&bytes).await;
            client.ping().await;
        }
        ack.ack();
        client.expect(&pubrec(1)).await;
        for bytes in [first.clone(), again(first)] {
            let (mut client, present) = rig.session(connect).await;
            assert!(present);
            client.send(&bytes).await;
            client.expect(&pubrec(1)).await;
        }
        assert!(rig.is_quiet().await);
        let (mut client, _) = rig.session(connect).await;
        client.send(&pubrel(1)).await;
        client.expect(&pubcomp(1)).await;
    }
}

#[tokio::test]
async fn after_a_crash_a_publish_comes_again_under_its_first_id() {
    for connect in [KEPT_V311, KEPT_V5] {
        let store = MemorySessions::default();
        let mut rig = Rig::on(&store).await;
        let mut client = rig.client(connect).await;
        let publishes = [1, 2].map(|id| publish_once(connect.level, id, b"a")).concat();
        client.send(&publishes).await;
        let mut messages = rig.take(2).await;
        let ids = [messages[0].0.id, messages[1].0.id];
        messages.remove(0).1.ack();
        client.expect(&pubrec(1)).await;
        drop(rig);
        let mut rig = Rig::on(&store).await;
        let (mut client, present) = rig.session(connect).await;
        assert!(present);
        let written = store.writes();
        client.send(&[pubrel(1), again(publish_once(connect.level, 2, b"a"))].concat()).await;
        let (message, ack) = rig.take(1).await.remove(0);
        assert_eq!((message.id, &message.payload[..]), (ids[1], &b"a"[..]));
        client.expect(&pubcomp(1)).await;
        ack.ack();
        client.expect(&pubrec(2)).await;
        assert_eq!(store.writes(), written + 1, "only the release");
        assert_eq!(held(&store), [2]);
    }
}

#[tokio::test]
async fn a_failed_message_ends_its_connection_and_comes_again_under_its_first_id() {
    let mut rig = Rig::on(&MemorySessions::default()).await;
    let mut client = rig.client(KEPT_V5).await;
    client.send(&publish_once(5, 1, b"a")).await;
    let (first, ack) = rig.take(1).await.remove(0);
    drop(ack);
    client.expect(&[0xE0, 1, 0x89]).await;
    client.expect_closed().await;
    let mut client = rig.client(KEPT_V5).await;
    client.send(&again(publish_once(5, 1, b"a"))).await;
    let (second, ack) = rig.take(1).await.remove(0);
    assert_eq!(first.id, second.id);
    ack.ack();
    client.expect(&pubrec(1)).await;
}

#[tokio::test]
async fn another_message_under_a_held_identifier_replaces_it() {
    let store = MemorySessions::default();
    let mut rig = Rig::on(&store).await;
    let mut client = rig.client(KEPT_V5).await;
    client.send(&publish_once(5, 1, b"a")).await;
    let (first, ack) = rig.take(1).await.remove(0);
    ack.ack();
    client.expect(&pubrec(1)).await;
    drop(rig);
    let mut rig = Rig::on(&store).await;
    let mut client = rig.client(KEPT_V5).await;
    client.send(&publish_once(5, 1, b"b")).await;
    let (second, ack) = rig.take(1).await.remove(0);
    assert_ne!(first.id, second.id);
    assert_eq!(store.all()[0].held[0].message_id, second.id);
    ack.ack();
    client.expect(&pubrec(1)).await;
}

#[tokio::test]
async fn a_clean_start_forgets_durably_before_its_connack() {
    for connect in [KEPT_V311, KEPT_V5] {
        let store = MemorySessions::default();
        let mut rig = Rig::on(&store).await;
        let mut client = rig.client(connect).await;
        client.send(&publish_once(connect.level, 1, b"a")).await;
        let (first, _ack) = rig.take(1).await.remove(0);
        let clean = Connect { clean: true, ..connect };
        let (mut client, present) = rig.session(clean).await;
        assert!(!present);
        assert!(held(&store).is_empty());
        client.send(&publish_once(connect.level, 1, b"a")).await;
        let (second, _ack) = rig.take(1).await.remove(0);
        assert_ne!(first.id, second.id);
    }
}

#[tokio::test]
async fn a_session_that_was_to_end_with_its_connection_is_not_taken_over() {
    let resuming_v5 = Connect { clean: false, ..V5 };
    for (first, second) in [(V311, KEPT_V311), (V5, KEPT_V5), (V5, resuming_v5), (resuming_v5, KEPT_V5)] {
        let mut rig = Rig::on(&MemorySessions::default()).await;
        let mut client = rig.client(first).await;
        hold(&mut rig, &mut client, first.level, 1..=1).await;
        // The device is there again before the endpoint knows that its connection is gone, and counts from 1.
        let (mut client, present) = rig.session(second).await;
        assert!(!present);
        hold(&mut rig, &mut client, second.level, 1..=1).await;
    }
}

#[tokio::test]
async fn a_kept_session_that_is_now_to_end_with_its_connection_does_not_come_back_after_a_crash() {
    let store = MemorySessions::default();
    let mut rig = Rig::on(&store).await;
    let mut client = rig.client(KEPT_V5).await;
    hold(&mut rig, &mut client, 5, 1..=1).await;
    let (mut client, present) = rig.session(Connect { expiry: 0, ..KEPT_V5 }).await;
    assert!(present);
    client.send(&again(publish_once(5, 1, b"a"))).await;
    client.expect(&pubrec(1)).await;
    drop(rig);
    let mut rig = Rig::on(&store).await;
    let (mut client, present) = rig.session(KEPT_V5).await;
    assert!(!present);
    hold(&mut rig, &mut client, 5, 1..=1).await;
}

#[tokio::test]
async fn a_clean_start_empties_the_store_though_the_connect_that_it_overtakes_is_being_written() {
    let store = MemorySessions::default();
    let mut rig = Rig::on(&store).await;
    let mut client = rig.client(KEPT_V5).await;
    hold(&mut rig, &mut client, 5, 1..=1).await;
    let before = store.writes();
    store.close_gate();
    let [mut overtaken, mut last] = [Client::open(rig.address).await, Client::open(rig.address).await];
    overtaken.send(&Connect { expiry: 60, ..KEPT_V5 }.bytes()).await;
    writes(&store, before + 1).await;
    last.send(&Connect { expiry: 60, clean: true, ..KEPT_V5 }.bytes()).await;
    // Whoever comes later is served: so the other has been read.
    rig.client(Connect { client_id: "later", ..V5 }).await.ping().await;
    store.open_gate();
    overtaken.expect_closed().await;
    let connack = last.packet().await;
    assert_eq!((connack[0], connack[2], connack[3]), (0x20, 0, 0), "{connack:02x?}");
    assert!(held(&store).is_empty());
}

#[tokio::test]
async fn a_connect_that_is_refused_leaves_no_session_and_ends_none() {
    let store = MemorySessions::default();
    let mut rig = Rig::on(&store).await;
    let known = Connect { client_id: "known", ..KEPT_V5 };
    let mut client = rig.client(known).await;
    hold(&mut rig, &mut client, 5, 1..=1).await;
    store.fail(true);
    for connect in [KEPT_V5, Connect { expiry: 60, ..known }, Connect { expiry: 0, ..known }] {
        let mut refused = Client::open(rig.address).await;
        refused.send(&connect.bytes()).await;
        refused.expect(&[0x20, 3, 0, 0x88, 0]).await;
        refused.expect_closed().await;
    }
    store.fail(false);
    assert!(!rig.session(KEPT_V5).await.1, "the client never had one");
    let (mut client, present) = rig.session(known).await;
    assert!(present);
    client.send(&again(publish_once(5, 1, b"a"))).await;
    client.expect(&pubrec(1)).await;
}

#[tokio::test]
async fn a_session_is_known_after_a_restart_and_reconnecting_writes_nothing() {
    let store = MemorySessions::default();
    let rig = Rig::on(&store).await;
    assert!(!rig.session(KEPT_V311).await.1);
    assert!(!rig.session(Connect { client_id: "other", ..KEPT_V5 }).await.1);
    let written = store.writes();
    assert_eq!(written, 2);
    drop(rig);
    let rig = Rig::on(&store).await;
    assert!(rig.session(KEPT_V311).await.1);
    assert!(rig.session(Connect { client_id: "other", ..KEPT_V5 }).await.1);
    assert!(rig.session(KEPT_V311).await.1);
    assert_eq!(store.writes(), written);
    // A session that ends with its connection costs nothing either.
    assert!(!rig.session(Connect { client_id: "third", ..V311 }).await.1);
    assert_eq!(store.writes(), written);
    // The client asks for another time.
    assert!(rig.session(Connect { client_id: "other", expiry: 60, ..KEPT_V5 }).await.1);
    assert_eq!(store.all()[1].expiry, Duration::from_secs(60));
}

#[tokio::test]
async fn a_session_that_its_client_ends_is_forgotten_durably() {
    let store = MemorySessions::default();
    let mut rig = Rig::on(&store).await;
    let mut client = rig.client(KEPT_V5).await;
    client.send(&publish_once(5, 1, b"a")).await;
    rig.take(1).await.remove(0).1.ack();
    client.expect(&pubrec(1)).await;
    // DISCONNECT with Session Expiry Interval 0.
    client.send(&packet(0xE0, &[0, 5, 0x11, 0, 0, 0, 0])).await;
    client.expect_closed().await;
    assert_eq!(store.all(), []);
    let mut client = rig.client(KEPT_V5).await;
    client.send(&packet(0xE0, &[0, 5, 0x11, 0, 0, 0, 9])).await;
    client.expect_closed().await;
    assert_eq!(store.all()[0].expiry, Duration::from_secs(9));
}

#[tokio::test]
async fn an_unknown_pubrel_is_completed_and_one_before_its_pubrec_ends_the_connection() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(V311).await;
    client.send(&pubrel(9)).await;
    client.expect(&pubcomp(9)).await;
    let mut client = rig.client(V5).await;
    client.send(&pubrel(9)).await;
    client.expect(&[0x70, 3, 0, 9, 0x92]).await;
    // In a session that was resumed it repeats one whose PUBCOMP was lost, and nothing is wrong.
    let kept = Connect { client_id: "kept", ..KEPT_V5 };
    rig.client(kept).await;
    let (mut resumed, _) = rig.session(kept).await;
    resumed.send(&pubrel(9)).await;
    resumed.expect(&pubcomp(9)).await;
    client.send(&publish_once(5, 1, b"a")).await;
    let _held = rig.take(1).await;
    client.send(&pubrel(1)).await;
    client.expect(&[0xE0, 1, 0x82]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn replies_keep_the_order_of_receipt_over_both_qualities_of_service() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(V5).await;
    let packets = [publish_once(5, 1, b"a"), publish(5, 2, "t", b"b"), publish_once(5, 3, b"c")];
    client.send(&packets.concat()).await;
    for (_, ack) in rig.take(3).await.into_iter().rev() {
        ack.ack();
    }
    for expected in [pubrec(1), puback(2), pubrec(3)] {
        client.expect(&expected).await;
    }
}

#[tokio::test]
async fn the_receive_maximum_counts_a_publish_until_its_pubcomp() {
    let mut rig = Rig::with(|options| options.receive_maximum = 2).await;
    let mut client = rig.client(V5).await;
    client.send(&[publish_once(5, 1, b"a"), publish_once(5, 2, b"b")].concat()).await;
    rig.take(2).await.into_iter().for_each(|(_, ack)| ack.ack());
    client.expect(&pubrec(1)).await;
    client.expect(&pubrec(2)).await;
    client.send(&pubrel(1)).await;
    client.expect(&pubcomp(1)).await;
    client.send(&publish_once(5, 3, b"c")).await;
    rig.take(1).await.remove(0).1.ack();
    client.expect(&pubrec(3)).await;
    client.send(&publish(5, 4, "t", b"d")).await;
    client.expect(&[0xE0, 1, 0x93]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn a_3_1_1_client_may_send_more_before_it_releases() {
    let mut rig = Rig::with(|options| options.receive_maximum = 2).await;
    let mut client = rig.client(V311).await;
    hold(&mut rig, &mut client, 4, 1..=100).await;
    for id in 1..=100 {
        client.send(&pubrel(id)).await;
        client.expect(&pubcomp(id)).await;
    }
}

/// Sends messages that are stored, up to their PUBREC.
async fn hold(rig: &mut Rig, client: &mut Client, level: u8, ids: RangeInclusive<u16>) {
    for id in ids {
        client.send(&publish_once(level, id, b"a")).await;
        rig.take(1).await.remove(0).1.ack();
        client.expect(&packet(0x50, &id.to_be_bytes())).await;
    }
}

#[tokio::test]
async fn a_session_that_holds_all_it_may_takes_repetitions_and_goes_on_after_a_pubrel() {
    let mut rig = Rig::with(|options| options.receive_maximum = 100).await;
    let mut client = rig.client(KEPT_V311).await;
    hold(&mut rig, &mut client, 4, 1..=400).await;
    client.send(&publish_once(4, 401, b"a")).await;
    client.expect_closed().await;
    let mut client = rig.client(KEPT_V311).await;
    client.send(&again(publish_once(4, 1, b"a"))).await;
    client.expect(&pubrec(1)).await;
    client.send(&pubrel(1)).await;
    client.expect(&pubcomp(1)).await;
    hold(&mut rig, &mut client, 4, 401..=401).await;
    // An MQTT 5 client that releases nothing gets no further with ever new connections.
    let other = Connect { client_id: "other", ..KEPT_V5 };
    for first in [1, 101, 201, 301] {
        let mut client = rig.client(other).await;
        hold(&mut rig, &mut client, 5, first..=first + 99).await;
    }
    let mut client = rig.client(other).await;
    client.send(&publish_once(5, 401, b"a")).await;
    client.expect(&[0xE0, 1, 0x97]).await;
    client.expect_closed().await;
}

#[tokio::test]
async fn when_all_sessions_hold_what_they_may_only_new_identifiers_are_refused() {
    let mut rig = Rig::with(|options| options.max_held = 3).await;
    let mut client = rig.client(KEPT_V5).await;
    hold(&mut rig, &mut client, 5, 1..=3).await;
    let other = Connect { client_id: "other", ..V5 };
    let mut refused = rig.client(other).await;
    refused.send(&[publish(5, 1, "t", b"at least once"), publish_once(5, 2, b"a")].concat()).await;
    assert_eq!(payloads(&rig.take(1).await), [b"at least once"]);
    refused.expect(&[0xE0, 1, 0x97]).await;
    refused.expect_closed().await;
    // What is held comes again, and makes room.
    let mut client = rig.client(KEPT_V5).await;
    client.send(&[again(publish_once(5, 1, b"a")), pubrel(2)].concat()).await;
    client.expect(&pubcomp(2)).await;
    client.expect(&pubrec(1)).await;
    let mut client = rig.client(other).await;
    hold(&mut rig, &mut client, 5, 1..=1).await;
}

#[tokio::test]
async fn a_refusal_stands_in_the_pubrec_and_frees_the_identifier() {
    let store = MemorySessions::default();
    let mut rig = Rig::bind(Some(&store), |options| options.receive_maximum = 1).await;
    let mut client = rig.client(KEPT_V5).await;
    let mut bad = publish(5, 1, "a/#", b"");
    bad[0] = 0x34;
    for _ in 0..3 {
        client.send(&bad).await;
        client.expect(&[0x50, 3, 0, 1, 0x90]).await;
    }
    client.send(&publish_once(5, 1, b"good")).await;
    rig.take(1).await.remove(0).1.ack();
    client.expect(&pubrec(1)).await;
    let mut client = rig.client(V311).await;
    client
        .send(&{
            let mut bad = publish(4, 1, "a/#", b"");
            bad[0] = 0x34;
            bad
        })
        .await;
    client.expect_closed().await;
}

#[tokio::test]
async fn when_the_store_fails_only_what_needs_it_is_turned_away() {
    let store = MemorySessions::default();
    let mut rig = Rig::on(&store).await;
    let ended = Connect { client_id: "ended", ..KEPT_V5 };
    let mut leaving = rig.client(ended).await;
    let mut client = rig.client(KEPT_V5).await;
    store.fail(true);
    // DISCONNECT with Session Expiry Interval 0: the store is to forget the session, and cannot.
    leaving.send(&packet(0xE0, &[0, 5, 0x11, 0, 0, 0, 0])).await;
    leaving.expect_closed().await;
    client.send(&[publish_once(5, 1, b"once"), publish(5, 2, "t", b"at least once")].concat()).await;
    let messages = rig.take(1).await;
    assert_eq!(payloads(&messages), [b"at least once"]);
    client.expect(&[0xE0, 1, 0x88]).await;
    client.expect_closed().await;
    let is_to_forget = Connect { expiry: 0, ..ended };
    for connect in [Connect { client_id: "new", ..KEPT_V5 }, is_to_forget] {
        let mut turned_away = Client::open(rig.address).await;
        turned_away.send(&connect.bytes()).await;
        turned_away.expect(&[0x20, 3, 0, 0x88, 0]).await;
    }
    let mut client = rig.client(Connect { client_id: "clean", ..V5 }).await;
    client.send(&publish_once(5, 1, b"clean")).await;
    assert_eq!(payloads(&rig.take(1).await), [b"clean"]);
    store.fail(false);
    let mut client = rig.client(KEPT_V5).await;
    client.send(&again(publish_once(5, 1, b"once"))).await;
    rig.take(1).await.remove(0).1.ack();
    client.expect(&pubrec(1)).await;
    assert_eq!(held(&store), [1]);
    assert!(!rig.session(is_to_forget).await.1);
    assert!(store.all().iter().all(|session| &*session.client_id != "ended"));
}

#[tokio::test]
async fn a_will_at_qos_2_is_published() {
    let mut rig = Rig::new().await;
    let mut connect = Connect { will: Some(("gone", "x")), ..V5 }.bytes();
    // The will's quality of service in the connect flags, behind `MQTT` and the level.
    connect[9] = connect[9] & !0b0001_1000 | 0b0001_0000;
    let mut client = Client::open(rig.address).await;
    client.send(&connect).await;
    assert_eq!(client.packet().await[3], 0);
    drop(client);
    assert_eq!(payloads(&rig.take(1).await), [b"x"]);
}

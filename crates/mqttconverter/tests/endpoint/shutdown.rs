use crate::support::*;
use messagepipeline::Consumer;

#[tokio::test]
async fn close_writes_the_pubacks_that_are_due_and_says_that_the_server_shuts_down() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(V5).await;
    let mut older = rig.client(Connect { client_id: "older", ..V311 }).await;
    client.send(&[publish(5, 1, "t", b"1"), publish(5, 2, "t", b"2")].concat()).await;
    older.send(&publish(4, 1, "t", b"3")).await;
    let mut messages = rig.take(3).await;
    messages.sort_by(|(left, _), (right, _)| left.payload.cmp(&right.payload));
    messages.pop().unwrap().1.ack();
    messages.remove(0).1.ack();
    let address = rig.address;
    let closing = tokio::spawn(async move { rig.consumer.close().await });
    client.expect(&puback(1)).await;
    client.expect(&[0xE0, 1, 0x8B]).await;
    client.expect_closed().await;
    older.expect(&puback(1)).await;
    older.expect_closed().await;
    drop((client, older));
    closing.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
    drop(messages);
}

#[tokio::test]
async fn drain_hands_out_all_that_was_read_writes_pubacks_and_then_ends() {
    let mut rig = Rig::with(|options| options.max_in_flight_messages = 2).await;
    let mut client = rig.client(V5).await;
    client.send(&[publish(5, 1, "t", b"1"), publish(5, 2, "t", b"2")].concat()).await;
    let mut held = rig.take(2).await;
    // Read and decoded, and without a place in the budget.
    client.send(&[publish(5, 0, "t", b"3"), PINGREQ.to_vec()].concat()).await;
    client.expect(&PINGRESP).await;
    rig.handle.drain();
    held.remove(0).1.ack();
    assert_eq!(payloads(&rig.drain().await), [b"3"]);
    client.expect(&puback(1)).await;
    held.remove(0).1.ack();
    client.expect(&puback(2)).await;
}

#[tokio::test]
async fn drain_hands_out_what_had_no_place_in_the_window_of_its_client() {
    let mut rig = Rig::with(|options| options.receive_maximum = 1).await;
    let mut client = rig.client(V311).await;
    client.send(&[publish(4, 1, "t", b"1"), publish(4, 2, "t", b"2")].concat()).await;
    let (_, first) = rig.take(1).await.remove(0);
    rig.handle.drain();
    // So that the connection sees the drain before there is room.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    first.ack();
    client.expect(&puback(1)).await;
    let (second, ack) = rig.take(1).await.remove(0);
    assert_eq!(&second.payload[..], b"2");
    ack.ack();
    client.expect(&puback(2)).await;
}

#[tokio::test]
async fn dropping_the_consumer_cuts_every_connection() {
    let rig = Rig::new().await;
    let mut client = rig.client(V5).await;
    drop(rig.consumer);
    client.expect_closed().await;
}

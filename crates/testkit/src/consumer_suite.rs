//! What every bus promises: the conformance suite that the memory double and each adapter pass alike.
//!
//! An adapter implements [`BusUnderTest`] and calls [`consumer_suite!`](crate::consumer_suite!) in an integration
//! test; it makes one test of each promise. What an adapter cannot do by its nature it declares in [`Features`].
//!
//! The suite asserts that something comes by waiting for it (at most [`PATIENCE`]), and that something does not come
//! by a later message that would have come after it. Only where `next` must *wait* does it watch for
//! [`Features::silence`]; an adapter that works never fails there, however slow the machine is.

use messagepipeline::{
    Ack, Attributes, BatchOutcome, Consumer, Enrichment, ErrorClass, ID_CONFLICT, IdGenerator, Message,
    Publisher, Settlement, Timestamp, Verdict,
};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// How long the suite waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a bus can do by its nature.
#[derive(Clone, Copy, Debug)]
pub struct Features {
    /// It counts deliveries: a nack raises [`Message::attempt`], a return does not.
    pub counts_attempts: bool,
    /// It delivers in the order of publishing.
    pub ordered: bool,
    /// It knows ids it holds: publishing one again changes nothing, with another payload it is refused.
    pub knows_ids: bool,
    /// [`BusUnderTest::reopen`] works.
    pub reopens: bool,
    /// How long `next` must have waited to count as waiting.
    pub silence: Duration,
}

/// Bounds for a consumer: the distance between the newest message handed out and the oldest without a verdict.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// In messages.
    pub messages: usize,
    /// In bytes, counted as [`Message::weight`] does.
    pub bytes: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { messages: 10_000, bytes: 64 << 20 }
    }
}

/// A bus that the suite drives. One value serves one test and starts empty.
pub trait BusUnderTest: Send {
    /// Its consumers.
    type Consumer: Consumer;

    /// What it can do.
    fn features(&self) -> Features;

    /// Adds `topic` with `subscriptions`, each of which receives all of it.
    fn create(&mut self, topic: &str, subscriptions: &[&str]) -> impl Future<Output = ()> + Send;

    /// A publisher to `topic`.
    fn publisher(&mut self, topic: &str) -> impl Future<Output = Arc<dyn Publisher>> + Send;

    /// A consumer of `subscription`, not opened.
    fn consumer(&mut self, subscription: &str, bounds: Bounds)
    -> impl Future<Output = Self::Consumer> + Send;

    /// Closes the bus and opens it again, as a restarted process does. All publishers and consumers are gone.
    fn reopen(&mut self) -> impl Future<Output = ()> + Send;
}

/// One test per promise of the suite.
///
/// `consumer_suite!(paused, make)` runs on paused time, `consumer_suite!(real, make)` on the machine's; `make` is
/// an async function without arguments that makes the bus.
#[macro_export]
macro_rules! consumer_suite {
    (paused, $make:path) => { $crate::consumer_suite!(@each $make, [(start_paused = true)]); };
    (real, $make:path) => { $crate::consumer_suite!(@each $make, [(flavor = "multi_thread", worker_threads = 2)]); };
    (@each $make:path, $how:tt) => {
        $crate::consumer_suite!(@test $make, $how, every_message_comes_as_it_was_published);
        $crate::consumer_suite!(@test $make, $how, each_subscription_receives_all_by_itself);
        $crate::consumer_suite!(@test $make, $how, messages_of_one_publisher_keep_their_order);
        $crate::consumer_suite!(@test $make, $how, an_acknowledged_message_never_comes_again);
        $crate::consumer_suite!(@test $make, $how, a_nacked_message_comes_again_with_its_attempt_raised);
        $crate::consumer_suite!(@test $make, $how, a_returned_message_comes_again_with_the_same_attempt);
        $crate::consumer_suite!(@test $make, $how, a_dropped_chunk_comes_again);
        $crate::consumer_suite!(@test $make, $how, only_the_first_verdict_of_a_delivery_counts);
        $crate::consumer_suite!(@test $make, $how, next_loses_nothing_when_it_is_cancelled);
        $crate::consumer_suite!(@test $make, $how, what_is_handed_out_is_bounded_in_messages);
        $crate::consumer_suite!(@test $make, $how, what_is_handed_out_is_bounded_in_bytes);
        $crate::consumer_suite!(@test $make, $how, close_delivers_verdicts_and_gives_back_the_rest);
        $crate::consumer_suite!(@test $make, $how, a_consumer_dropped_without_close_gives_back_the_rest);
        $crate::consumer_suite!(@test $make, $how, a_reopened_bus_delivers_what_was_not_acknowledged);
        $crate::consumer_suite!(@test $make, $how, publishing_an_id_again_changes_nothing);
        $crate::consumer_suite!(@test $make, $how, an_id_with_another_payload_is_refused_alone);
    };
    (@test $make:path, [($($how:tt)*)], $name:ident) => {
        #[::tokio::test($($how)*)]
        async fn $name() {
            let mut bus = $make().await;
            $crate::consumer_suite::$name(&mut bus).await;
        }
    };
}

const TOPIC: &str = "suite";
const SUBSCRIPTION: &str = "suite-reader";

/// Makes messages with different payloads and rising ids.
struct Source(IdGenerator);

impl Source {
    fn new() -> Self {
        Self(IdGenerator::default())
    }

    fn message(&self, text: impl Into<String>) -> Message {
        Message::new(self.0.next_id(), text.into(), Timestamp::from_micros(1_750_000_000_123_456))
    }

    fn messages(&self, count: usize) -> Vec<Message> {
        (0..count).map(|n| self.message(format!("message {n}"))).collect()
    }
}

async fn set_up<B: BusUnderTest>(bus: &mut B) -> (Arc<dyn Publisher>, B::Consumer) {
    bus.create(TOPIC, &[SUBSCRIPTION]).await;
    let publisher = bus.publisher(TOPIC).await;
    let consumer = opened(bus, Bounds::default()).await;
    (publisher, consumer)
}

async fn opened<B: BusUnderTest>(bus: &mut B, bounds: Bounds) -> B::Consumer {
    let mut consumer = bus.consumer(SUBSCRIPTION, bounds).await;
    consumer.open().await.expect("the consumer opens");
    consumer
}

async fn publish(publisher: &Arc<dyn Publisher>, messages: &[Message]) {
    let outcome = tokio::time::timeout(PATIENCE, publisher.publish(messages.to_vec())).await;
    messagepipeline::all_done(outcome.expect("publishing ends")).expect("publishing works");
}

/// The next `count` messages; more in the same chunks are a failure.
async fn receive<C: Consumer>(consumer: &mut C, count: usize) -> Vec<(Message, Ack)> {
    let mut received = Vec::with_capacity(count);
    while received.len() < count {
        let next = tokio::time::timeout(PATIENCE, consumer.next()).await;
        let next = next.unwrap_or_else(|_| panic!("{} of {count} messages came", received.len()));
        let chunk = next.expect("receiving works").expect("the source goes on");
        assert!(!chunk.is_empty(), "a chunk holds at least one message");
        received.extend(chunk.into_acks());
    }
    assert_eq!(received.len(), count, "more came than was expected");
    received
}

async fn acknowledge<C: Consumer>(consumer: &mut C, count: usize) -> Vec<Message> {
    receive(consumer, count).await.into_iter().map(|(message, ack)| (message, ack.ack()).0).collect()
}

/// Publishes one more message and proves that it alone comes.
async fn nothing_but_a_new_message_comes<C: Consumer>(publisher: &Arc<dyn Publisher>, consumer: &mut C) {
    let last = Source::new().message("last");
    publish(publisher, std::slice::from_ref(&last)).await;
    let received = acknowledge(consumer, 1).await;
    assert_eq!(received[0].id, last.id, "a settled message came again");
}

fn ids(messages: &[Message]) -> Vec<messagepipeline::MessageId> {
    let mut ids: Vec<_> = messages.iter().map(|message| message.id).collect();
    ids.sort_unstable();
    ids
}

/// Payload, attributes, enrichment, time and id arrive byte for byte: empty, binary and large ones.
pub async fn every_message_comes_as_it_was_published<B: BusUnderTest>(bus: &mut B) {
    let (publisher, mut consumer) = set_up(bus).await;
    let source = Source::new();
    let mut published = source.messages(500);
    published[0].payload = Vec::new().into();
    published[1].payload = (0..=255).collect::<Vec<u8>>().into();
    published[2].payload = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into();
    published[3].attributes =
        Attributes::from_iter([("device_id", "Straße/7"), ("user.empty", ""), ("x", "a\0b\n")]);
    published[3].enrichment =
        Enrichment::from_text(r#"{"client_id":"C-1","nested":{"list":[1,2.5,null]}}"#).unwrap();
    for part in published.chunks(100) {
        publish(&publisher, part).await;
    }
    let mut received = acknowledge(&mut consumer, published.len()).await;
    received.sort_unstable_by_key(|message| message.id);
    published.sort_unstable_by_key(|message| message.id);
    for (received, published) in received.iter().zip(&published) {
        assert!(received == published, "{} did not come as it was published", published.id);
    }
}

/// What one subscription does with a message is nothing to the other.
pub async fn each_subscription_receives_all_by_itself<B: BusUnderTest>(bus: &mut B) {
    bus.create("shared", &["left", "right"]).await;
    let publisher = bus.publisher("shared").await;
    let published = Source::new().messages(50);
    publish(&publisher, &published).await;
    for subscription in ["left", "right"] {
        let mut consumer = bus.consumer(subscription, Bounds::default()).await;
        consumer.open().await.expect("the consumer opens");
        let received = acknowledge(&mut consumer, published.len()).await;
        assert_eq!(ids(&received), ids(&published));
        consumer.close().await.expect("the consumer closes");
    }
}

/// One publisher's messages come in its order, over several calls.
pub async fn messages_of_one_publisher_keep_their_order<B: BusUnderTest>(bus: &mut B) {
    if !bus.features().ordered {
        return;
    }
    let (publisher, mut consumer) = set_up(bus).await;
    let published = Source::new().messages(300);
    for part in published.chunks(70) {
        publish(&publisher, part).await;
    }
    let received = acknowledge(&mut consumer, published.len()).await;
    assert!(received.iter().map(|m| m.id).eq(published.iter().map(|m| m.id)), "the order changed");
}

/// Not to this consumer and not to a later one.
pub async fn an_acknowledged_message_never_comes_again<B: BusUnderTest>(bus: &mut B) {
    let (publisher, mut consumer) = set_up(bus).await;
    publish(&publisher, &Source::new().messages(20)).await;
    acknowledge(&mut consumer, 20).await;
    nothing_but_a_new_message_comes(&publisher, &mut consumer).await;
    consumer.close().await.expect("the consumer closes");
    let mut later = opened(bus, Bounds::default()).await;
    nothing_but_a_new_message_comes(&publisher, &mut later).await;
}

/// The neighbours' attempts stay as they are.
pub async fn a_nacked_message_comes_again_with_its_attempt_raised<B: BusUnderTest>(bus: &mut B) {
    let counts = bus.features().counts_attempts;
    let (publisher, mut consumer) = set_up(bus).await;
    let published = Source::new().messages(3);
    publish(&publisher, &published).await;
    for (message, ack) in receive(&mut consumer, 3).await {
        assert_eq!(message.attempt, 1);
        if message.id == published[1].id { ack.nack() } else { ack.ack() }
    }
    for attempt in 2..=4 {
        let (message, ack) = receive(&mut consumer, 1).await.remove(0);
        assert_eq!(message.id, published[1].id);
        assert_eq!(message.attempt, if counts { attempt } else { 1 });
        if attempt < 4 { ack.nack() } else { ack.ack() }
    }
    nothing_but_a_new_message_comes(&publisher, &mut consumer).await;
}

/// Giving back costs a message nothing.
pub async fn a_returned_message_comes_again_with_the_same_attempt<B: BusUnderTest>(bus: &mut B) {
    if !bus.features().counts_attempts {
        return;
    }
    let (publisher, mut consumer) = set_up(bus).await;
    publish(&publisher, &Source::new().messages(1)).await;
    receive(&mut consumer, 1).await.remove(0).1.nack();
    for _ in 0..3 {
        let (message, ack) = receive(&mut consumer, 1).await.remove(0);
        assert_eq!(message.attempt, 2);
        ack.give_back();
    }
    assert_eq!(acknowledge(&mut consumer, 1).await[0].attempt, 2);
}

/// Whoever drops a chunk loses nothing.
pub async fn a_dropped_chunk_comes_again<B: BusUnderTest>(bus: &mut B) {
    let (publisher, mut consumer) = set_up(bus).await;
    let published = Source::new().messages(10);
    publish(&publisher, &published).await;
    drop(receive(&mut consumer, 10).await);
    let received = acknowledge(&mut consumer, 10).await;
    assert_eq!(ids(&received), ids(&published));
}

/// A second verdict changes nothing, whichever it is.
pub async fn only_the_first_verdict_of_a_delivery_counts<B: BusUnderTest>(bus: &mut B) {
    let (publisher, mut consumer) = set_up(bus).await;
    publish(&publisher, &Source::new().messages(1)).await;
    let next = tokio::time::timeout(PATIENCE, consumer.next()).await.expect("the message comes");
    let chunk = next.expect("receiving works").expect("the source goes on");
    let (settle, deliveries) = chunk.into_parts();
    for verdict in [Verdict::Ack, Verdict::Nack, Verdict::Return] {
        settle.settle(&[Settlement { token: deliveries[0].token, verdict }]);
    }
    nothing_but_a_new_message_comes(&publisher, &mut consumer).await;
}

/// A service polls `next` beside other things and drops the future whenever one of them is ready first.
pub async fn next_loses_nothing_when_it_is_cancelled<B: BusUnderTest>(bus: &mut B) {
    let (publisher, mut consumer) = set_up(bus).await;
    let published = Source::new().messages(200);
    let mut received = Vec::new();
    for message in &published {
        cancelled_next(&mut consumer, &mut received).await;
        publish(&publisher, std::slice::from_ref(message)).await;
        cancelled_next(&mut consumer, &mut received).await;
    }
    let rest = published.len() - received.len();
    received.extend(acknowledge(&mut consumer, rest).await);
    assert_eq!(ids(&received), ids(&published));
    nothing_but_a_new_message_comes(&publisher, &mut consumer).await;
}

async fn cancelled_next<C: Consumer>(consumer: &mut C, received: &mut Vec<Message>) {
    tokio::select! {
        biased;
        next = consumer.next() => {
            let chunk = next.expect("receiving works").expect("the source goes on");
            received.extend(chunk.into_acks().into_iter().map(|(message, ack)| (message, ack.ack()).0));
        }
        () = tokio::task::yield_now() => {}
    }
}

/// The bound is the distance from the oldest message without a verdict, not a count.
pub async fn what_is_handed_out_is_bounded_in_messages<B: BusUnderTest>(bus: &mut B) {
    bus.create(TOPIC, &[SUBSCRIPTION]).await;
    let publisher = bus.publisher(TOPIC).await;
    publish(&publisher, &Source::new().messages(60)).await;
    let mut consumer = opened(bus, Bounds { messages: 10, ..Bounds::default() }).await;
    let silence = bus.features().silence;
    let mut held = Vec::new();
    while let Some(more) = handed_out_within(&mut consumer, silence).await {
        held.extend(more);
        assert!(held.len() <= 10, "{} messages without a verdict were handed out", held.len());
    }
    assert_eq!(held.len(), 10);
    let (_, oldest) = held.remove(0);
    held.drain(..).for_each(|(_, ack)| ack.ack());
    assert!(handed_out_within(&mut consumer, silence).await.is_none(), "the oldest has no verdict yet");
    oldest.ack();
    for _ in 0..5 {
        acknowledge_some(&mut consumer).await;
    }
}

async fn acknowledge_some<C: Consumer>(consumer: &mut C) {
    let more = handed_out_within(consumer, PATIENCE).await.expect("verdicts make room");
    more.into_iter().for_each(|(_, ack)| ack.ack());
}

/// A few large messages count like many small ones.
pub async fn what_is_handed_out_is_bounded_in_bytes<B: BusUnderTest>(bus: &mut B) {
    bus.create(TOPIC, &[SUBSCRIPTION]).await;
    let publisher = bus.publisher(TOPIC).await;
    let source = Source::new();
    let messages: Vec<_> = (0..20).map(|_| source.message("x".repeat(10_000))).collect();
    publish(&publisher, &messages).await;
    let mut consumer = opened(bus, Bounds { bytes: 50_000, ..Bounds::default() }).await;
    let silence = bus.features().silence;
    let mut held = Vec::new();
    while let Some(more) = handed_out_within(&mut consumer, silence).await {
        held.extend(more);
        assert!(held.len() <= 6, "{} messages of 10,000 bytes passed a bound of 50,000", held.len());
    }
    assert!(held.len() >= 4, "only {} messages of 10,000 bytes under a bound of 50,000", held.len());
    let mut settled = held.len();
    held.into_iter().for_each(|(_, ack)| ack.ack());
    while settled < messages.len() {
        let more = handed_out_within(&mut consumer, PATIENCE).await.expect("verdicts make room");
        settled += more.len();
        more.into_iter().for_each(|(_, ack)| ack.ack());
    }
}

async fn handed_out_within<C: Consumer>(consumer: &mut C, time: Duration) -> Option<Vec<(Message, Ack)>> {
    let next = tokio::time::timeout(time, consumer.next()).await.ok()?;
    Some(next.expect("receiving works").expect("the source goes on").into_acks())
}

/// A verdict given before `close` counts; a message without one comes again, its attempt unchanged.
pub async fn close_delivers_verdicts_and_gives_back_the_rest<B: BusUnderTest>(bus: &mut B) {
    let (publisher, mut consumer) = set_up(bus).await;
    let published = Source::new().messages(10);
    publish(&publisher, &published).await;
    let mut held = receive(&mut consumer, 10).await;
    let late = held.split_off(4);
    let acked: Vec<_> = held.into_iter().map(|(message, ack)| (message, ack.ack()).0).collect();
    tokio::time::timeout(PATIENCE, consumer.close()).await.expect("close ends").expect("close works");
    drop(late);
    let mut again = opened(bus, Bounds::default()).await;
    let received = acknowledge(&mut again, 6).await;
    assert!(received.iter().all(|message| message.attempt == 1), "giving back raised an attempt");
    assert_eq!(ids(&[received, acked].concat()), ids(&published));
    nothing_but_a_new_message_comes(&publisher, &mut again).await;
}

/// A consumer whose task was dropped holds nothing back.
pub async fn a_consumer_dropped_without_close_gives_back_the_rest<B: BusUnderTest>(bus: &mut B) {
    let (publisher, mut consumer) = set_up(bus).await;
    let published = Source::new().messages(10);
    publish(&publisher, &published).await;
    let held = receive(&mut consumer, 10).await;
    drop(consumer);
    let mut again = opened(bus, Bounds::default()).await;
    let received = acknowledge(&mut again, 10).await;
    assert_eq!(ids(&received), ids(&published));
    drop(held);
}

/// Verdicts that `close` has delivered and messages without one survive a restart.
pub async fn a_reopened_bus_delivers_what_was_not_acknowledged<B: BusUnderTest>(bus: &mut B) {
    if !bus.features().reopens {
        return;
    }
    let (publisher, mut consumer) = set_up(bus).await;
    let published = Source::new().messages(10);
    publish(&publisher, &published).await;
    let mut held = receive(&mut consumer, 10).await;
    held.drain(..6).for_each(|(_, ack)| ack.ack());
    consumer.close().await.expect("the consumer closes");
    drop((held, consumer, publisher));
    bus.reopen().await;
    let publisher = bus.publisher(TOPIC).await;
    let mut again = opened(bus, Bounds::default()).await;
    let received = acknowledge(&mut again, 4).await;
    let all: Vec<_> = ids(&published);
    assert!(ids(&received).iter().all(|id| all.contains(id)));
    nothing_but_a_new_message_comes(&publisher, &mut again).await;
}

/// Within one call, over calls, and after the first copy was acknowledged.
pub async fn publishing_an_id_again_changes_nothing<B: BusUnderTest>(bus: &mut B) {
    if !bus.features().knows_ids {
        return;
    }
    let (publisher, mut consumer) = set_up(bus).await;
    let message = Source::new().message("once");
    publish(&publisher, &[message.clone(), message.clone()]).await;
    publish(&publisher, std::slice::from_ref(&message)).await;
    assert_eq!(acknowledge(&mut consumer, 1).await[0].id, message.id);
    publish(&publisher, std::slice::from_ref(&message)).await;
    nothing_but_a_new_message_comes(&publisher, &mut consumer).await;
}

/// It is a permanent error of that message; its neighbours in the call are stored.
pub async fn an_id_with_another_payload_is_refused_alone<B: BusUnderTest>(bus: &mut B) {
    if !bus.features().knows_ids {
        return;
    }
    let (publisher, mut consumer) = set_up(bus).await;
    let source = Source::new();
    let first = source.message("first");
    publish(&publisher, std::slice::from_ref(&first)).await;
    let mut other = first.clone();
    other.payload = "other".into();
    let (before, after) = (source.message("before"), source.message("after"));
    let outcome = publisher.publish(vec![before.clone(), other, after.clone()]).await;
    let BatchOutcome::Each(results) = outcome else { panic!("expected one result per message") };
    assert!(
        results.len() == 3 && results[0].is_ok() && results[2].is_ok(),
        "the neighbours were refused too"
    );
    let error = results.into_iter().nth(1).and_then(Result::err).expect("the conflict is refused");
    assert_eq!((error.class(), error.reason()), (ErrorClass::Permanent, ID_CONFLICT));
    let received = acknowledge(&mut consumer, 3).await;
    assert_eq!(ids(&received), ids(&[first, before, after]));
    assert!(received.iter().all(|message| &message.payload[..] != b"other"));
}

//! What the bus keeps when its process dies, and what it lets go.

#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use embedded::bus::{
    Bus, BusConsumer, BusOptions, BusReader, CONFLICTING_ID, ConsumerOptions, Decision, KILLS_PROCESS,
    LetterFilter, LetterPage, LetterQueue, Sighting, StoredLetter, Subscription, SubscriptionOptions, Topic,
};
use enrichment::{Parked, ParkingLot, Placed};
use messagepipeline::{
    BatchOutcome, Consumer, DeadLetter, DeadLetters, Digest, Enrichment, ErrorClass, ID_CONFLICT,
    IdGenerator, Message, MessageId, Publisher, Settlement, Skipped, SystemClock, Timestamp, Verdict,
    all_done,
};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

struct Rig {
    folder: TempDir,
    bus: Bus,
    topic: Topic,
    left: Subscription,
    right: Subscription,
}

fn options() -> SubscriptionOptions {
    SubscriptionOptions { nack_delay: Duration::from_millis(1), ..SubscriptionOptions::default() }
}

impl Rig {
    async fn new(options: BusOptions) -> Self {
        Self::at(tempfile::tempdir().unwrap(), options).await
    }

    async fn at(folder: TempDir, bus_options: BusOptions) -> Self {
        let bus = Bus::open(folder.path().join("bus.db"), bus_options, Arc::new(SystemClock)).await.unwrap();
        let topic = bus.topic("raw").await.unwrap();
        let left = bus.subscription(&topic, "left", options()).await.unwrap();
        let right = bus.subscription(&topic, "right", options()).await.unwrap();
        Self { folder, bus, topic, left, right }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("bus.db")
    }

    /// The files as a killed process leaves them, opened by the next one.
    async fn after_a_kill(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["bus.db", "bus.db-wal"] {
            std::fs::copy(self.folder.path().join(file), folder.path().join(file)).unwrap();
        }
        Self::at(folder, BusOptions::default()).await
    }

    async fn publish(&self, messages: &[Message]) {
        all_done(self.bus.publisher(&self.topic).publish(messages.to_vec()).await).unwrap();
    }

    fn consumer(&self, subscription: &Subscription) -> BusConsumer {
        self.bus.consumer(subscription, ConsumerOptions::default())
    }

    /// Takes `count` messages, settles them as `verdict` says and closes.
    async fn settle(&self, subscription: &Subscription, count: usize, verdict: Verdict) -> Vec<Message> {
        let mut consumer = self.consumer(subscription);
        let mut messages = Vec::new();
        while messages.len() < count {
            let chunk = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
            let (settle, deliveries) = chunk.into_parts();
            let verdict = |token| Settlement { token, verdict };
            settle.settle(&deliveries.iter().map(|d| verdict(d.token)).collect::<Vec<_>>());
            messages.extend(deliveries.into_iter().map(|delivery| delivery.message));
        }
        consumer.close().await.unwrap();
        messages
    }

    async fn unsettled(&self, subscription: &Subscription) -> u64 {
        let backlog = self.bus.backlog().await.unwrap();
        backlog.subscriptions.iter().find(|s| s.name == subscription.name()).unwrap().unsettled
    }
}

fn messages(count: usize) -> Vec<Message> {
    let ids = IdGenerator::default();
    let message = |n| {
        Message::new(ids.next_id(), format!("payload {n}"), Timestamp::from_micros(1_700_000_000_000_000))
    };
    (0..count).map(message).collect()
}

fn ids<'a>(messages: impl IntoIterator<Item = &'a Message>) -> BTreeSet<MessageId> {
    messages.into_iter().map(|message| message.id).collect()
}

fn letter(message: &Message, reason: &'static str) -> DeadLetter {
    DeadLetter {
        message: message.clone(),
        stage: "left".into(),
        reason: reason.into(),
        detail: "no".to_owned(),
        attempts: 5,
    }
}

/// Rows in the log table, waited for, because trimming rides in a later transaction.
async fn log_shrinks_to(path: &Path, rows: i64) {
    let count = || {
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.query_row("SELECT count(*) FROM log_raw", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    let reached = async {
        while count() != rows {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap_or_else(|_| panic!("{} rows, not {rows}", count()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_gets_from_memory_exactly_what_is_on_the_disk() {
    let rig = Rig::new(BusOptions::default()).await;
    let mut published = messages(10_000);
    for (n, message) in published.iter_mut().enumerate() {
        let n = n.to_string();
        message.attributes = [("device_id", &*n), ("empty", "")].into_iter().collect();
        if n.len() % 2 == 0 {
            message.enrichment = Enrichment::from_text(r#"{"location_id":"l"}"#).unwrap();
        }
    }
    // More than memory keeps, so the beginning is read from the disk; the rest arrives while that is read.
    let (before, during) = published.split_at(9_000);
    for part in before.chunks(500) {
        rig.publish(part).await;
    }
    let later = async {
        for part in during.chunks(50) {
            rig.publish(part).await;
        }
    };
    let (delivered, ()) = tokio::join!(rig.settle(&rig.left, published.len(), Verdict::Ack), later);
    assert_eq!(delivered, published);
    let after = rig.after_a_kill().await;
    assert_eq!(after.settle(&after.right, published.len(), Verdict::Ack).await, published);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_publish_has_answered_is_there_after_a_kill() {
    let rig = Rig::new(BusOptions::default()).await;
    let published = messages(1_000);
    for part in published.chunks(100) {
        rig.publish(part).await;
    }
    let next = rig.after_a_kill().await;
    assert_eq!(ids(&next.settle(&next.left, 1_000, Verdict::Ack).await), ids(&published));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_known_long_after_its_message_was_trimmed() {
    let rig = Rig::new(BusOptions::default()).await;
    let published = messages(2_000);
    rig.publish(&published).await;
    rig.settle(&rig.left, 2_000, Verdict::Ack).await;
    log_shrinks_to(&rig.path(), 2_000).await;
    rig.settle(&rig.right, 2_000, Verdict::Ack).await;
    log_shrinks_to(&rig.path(), 0).await;
    rig.publish(&published[..10]).await;
    let mut other = published[0].clone();
    other.payload = "other".into();
    let BatchOutcome::Each(results) = rig.bus.publisher(&rig.topic).publish(vec![other]).await else {
        panic!("the conflict is not answered by itself")
    };
    assert_eq!(results[0].as_ref().unwrap_err().reason(), ID_CONFLICT);
    assert_eq!(rig.unsettled(&rig.left).await, 0);
    let figures = rig.bus.backlog().await.unwrap().topics.remove(0);
    assert_eq!((figures.duplicates, figures.bytes), (10, 0));
    assert_eq!(figures.published, published.iter().map(|message| &message.id).collect::<Digest>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_bus_refuses_for_the_moment_and_loses_nothing() {
    let rig = Rig::new(BusOptions { max_topic_bytes: 20_000, ..BusOptions::default() }).await;
    let mut published = messages(3);
    for message in &mut published {
        message.payload = vec![b'x'; 9_000].into();
    }
    rig.publish(&published[..2]).await;
    let error = all_done(rig.bus.publisher(&rig.topic).publish(published[2..].to_vec()).await).unwrap_err();
    assert_eq!((error.class(), error.reason()), (ErrorClass::Transient, "bus-full"));
    for subscription in [&rig.left, &rig.right] {
        assert_eq!(rig.settle(subscription, 2, Verdict::Ack).await.len(), 2);
    }
    log_shrinks_to(&rig.path(), 0).await;
    rig.publish(&published[2..]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counted_failures_survive_a_restart_and_returns_are_not_counted() {
    let rig = Rig::new(BusOptions::default()).await;
    rig.publish(&messages(5)).await;
    rig.settle(&rig.left, 5, Verdict::Nack).await;
    rig.settle(&rig.left, 5, Verdict::Return).await;
    let next = rig.after_a_kill().await;
    let again = next.settle(&next.left, 5, Verdict::Ack).await;
    assert!(again.iter().all(|message| message.attempt == 2), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_settles_its_message_even_when_the_process_dies_before_the_ack() {
    let rig = Rig::new(BusOptions::default()).await;
    let published = messages(3);
    rig.publish(&published).await;
    let dead = rig.bus.dead_letters(Some(&rig.left));
    dead.put(vec![letter(&published[1], "poison")]).await.unwrap();
    let skip = Skipped { id: published[2].id, stage: "left".into(), rule: "payload-size".into() };
    dead.record_skips(vec![skip]).await.unwrap();
    let next = rig.after_a_kill().await;
    assert_eq!(next.unsettled(&next.left).await, 1);
    assert_eq!(next.settle(&next.left, 1, Verdict::Ack).await[0].id, published[0].id);
    assert_eq!(next.settle(&next.right, 3, Verdict::Ack).await.len(), 3, "the neighbour has lost a message");
    let books = BusReader::open(next.path()).unwrap();
    let kept = books.dead_letter(published[1].id).unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!((&kept[0].message.payload, kept[0].reason.as_str()), (&published[1].payload, "poison"));
    assert_eq!(books.skipped_ids("left").map(Result::unwrap).collect::<Vec<_>>(), [published[2].id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_letter_comes_back_to_the_subscription_that_gave_up_and_to_no_other() {
    let rig = Rig::new(BusOptions::default()).await;
    let published = messages(2);
    rig.publish(&published).await;
    rig.bus.dead_letters(Some(&rig.left)).put(vec![letter(&published[0], "poison")]).await.unwrap();
    rig.settle(&rig.left, 1, Verdict::Ack).await;
    rig.settle(&rig.right, 2, Verdict::Ack).await;
    assert_eq!(retry(&rig.bus.letter_queue()).await.done, 1);
    assert_eq!(rig.unsettled(&rig.right).await, 0);
    let again = rig.settle(&rig.left, 1, Verdict::Ack).await;
    assert_eq!((again[0].id, &again[0].payload), (published[0].id, &published[0].payload));
    assert_eq!(&again[0].attributes, &published[0].attributes);
    assert_eq!(again[0].attempt, 1, "attempts begin anew");
    assert_eq!(retry(&rig.bus.letter_queue()).await.done, 0, "retried twice");
    assert_eq!(rig.bus.backlog().await.unwrap().topics[0].published.count, 2);
}

async fn retry(queue: &LetterQueue) -> LetterPage {
    queue.retry(LetterFilter::default(), None, Decision::default()).await.unwrap()
}

fn stored_letter(rig: &Rig, id: MessageId) -> StoredLetter {
    BusReader::open(rig.path()).unwrap().dead_letter(id).unwrap().remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_message_that_fails_again_is_a_letter_again_with_its_bytes_and_the_count_of_retries() {
    let rig = Rig::new(BusOptions::default()).await;
    let published = messages(1);
    rig.publish(&published).await;
    let dead = rig.bus.dead_letters(Some(&rig.left));
    dead.put(vec![letter(&published[0], "poison")]).await.unwrap();
    retry(&rig.bus.letter_queue()).await;
    assert_eq!(stored_letter(&rig, published[0].id).state, "retried");
    dead.put(vec![letter(&published[0], "still poison")]).await.unwrap();
    assert_eq!(rig.unsettled(&rig.left).await, 0);
    let again = stored_letter(&rig, published[0].id);
    assert_eq!((again.state.as_str(), again.reason.as_str(), again.retries), ("dead", "still poison", 1));
    assert_eq!(again.message.payload, published[0].payload);
    assert_eq!(again.message.attributes, published[0].attributes);
    assert!(again.first_dead_at < again.dead_at && again.ended.is_none(), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_still_owes_the_message_is_not_settled_by_a_retry() {
    let rig = Rig::new(BusOptions::default()).await;
    let published = messages(1);
    rig.publish(&published).await;
    rig.bus.dead_letters(Some(&rig.left)).put(vec![letter(&published[0], "poison")]).await.unwrap();
    retry(&rig.bus.letter_queue()).await;
    let owed = |rig: &Rig, subscription: &str| {
        let books = BusReader::open(rig.path()).unwrap();
        books.unsettled_ids("raw", subscription).unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    for subscription in ["left", "right"] {
        assert_eq!(owed(&rig, subscription), [published[0].id], "{subscription}");
    }
    rig.settle(&rig.right, 2, Verdict::Ack).await;
    rig.settle(&rig.left, 1, Verdict::Ack).await;
    log_shrinks_to(&rig.path(), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_retried_once_whoever_asks_and_without_a_running_bus() {
    let rig = Rig::new(BusOptions::default()).await;
    let published = messages(600);
    rig.publish(&published).await;
    let letters = published.iter().map(|message| letter(message, "poison")).collect();
    rig.bus.dead_letters(Some(&rig.left)).put(letters).await.unwrap();
    rig.settle(&rig.right, 600, Verdict::Ack).await;
    rig.bus.close().await.unwrap();
    let queues = [(); 2].map(|()| LetterQueue::open(&rig.path(), Arc::new(SystemClock)).unwrap());
    let ask = async |queue: &LetterQueue| {
        let (mut done, mut after) = (0, None);
        loop {
            let page = queue.retry(LetterFilter::default(), after, Decision::default()).await.unwrap();
            done += page.done;
            after = page.next;
            if after.is_none() {
                return done;
            }
        }
    };
    let (one, other) = tokio::join!(ask(&queues[0]), ask(&queues[1]));
    assert_eq!(one + other, 600);
    for queue in queues {
        queue.close().await.unwrap();
    }
    let next = Rig::at(rig.folder, BusOptions::default()).await;
    assert_eq!(next.unsettled(&next.right).await, 0);
    assert_eq!(ids(&next.settle(&next.left, 600, Verdict::Ack).await), ids(&published));
    assert_eq!(next.unsettled(&next.left).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn at_their_bound_the_dead_letters_take_no_more_until_some_are_dropped() {
    let bound = BusOptions { max_dead_letters: 2, ..BusOptions::default() };
    let rig = Rig::new(bound).await;
    let published = messages(3);
    rig.publish(&published).await;
    let dead = rig.bus.dead_letters(Some(&rig.left));
    dead.put(published[..2].iter().map(|message| letter(message, "poison")).collect()).await.unwrap();
    let refused = dead.put(vec![letter(&published[2], "poison")]).await.unwrap_err();
    assert_eq!((refused.class(), refused.reason()), (ErrorClass::Transient, "dead-letters-full"));
    dead.put(vec![letter(&published[0], "poison")]).await.expect("it is kept already");
    assert_eq!(rig.unsettled(&rig.left).await, 1, "what has no letter is still owed");
    let one = LetterFilter { ids: vec![published[0].id], ..LetterFilter::default() };
    let decision = Decision { by: "ann".to_owned(), why: Some("broken sensor".to_owned()) };
    let page = rig.bus.letter_queue().drop_letters(one, None, decision).await.unwrap();
    assert_eq!(page.done, 1);
    dead.put(vec![letter(&published[2], "poison")]).await.unwrap();
    let dropped = stored_letter(&rig, published[0].id);
    let ending = dropped.ended.unwrap();
    assert_eq!((dropped.state.as_str(), ending.by.as_str()), ("dropped", "ann"));
    assert_eq!((ending.why.as_deref(), dropped.message.payload.len()), (Some("broken sensor"), 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_letter_is_refused_and_keeps_no_other_from_being_retried() {
    let rig = Rig::new(BusOptions::default()).await;
    let published = messages(4);
    rig.publish(&published).await;
    let dead = rig.bus.dead_letters(Some(&rig.left));
    dead.put(published.iter().map(|message| letter(message, "poison")).collect()).await.unwrap();
    let bus = rusqlite::Connection::open(rig.folder.path().join("bus.db")).unwrap();
    let damage = "UPDATE dead_letters SET attributes = '{' WHERE id = ?1";
    assert_eq!(bus.execute(damage, [published[1].id.to_string()]).unwrap(), 1);
    let queue = rig.bus.letter_queue();
    let page = queue.retry(LetterFilter::default(), None, Decision::default()).await.unwrap();
    let refused: Vec<_> = page.refused.iter().map(|((_, id), _)| *id).collect();
    assert_eq!((page.done, refused), (3, vec![published[1].id]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_letter_of_an_id_conflict_is_kept_once_and_beside_the_stored_message() {
    let rig = Rig::new(BusOptions::default()).await;
    let stored = messages(1).remove(0);
    rig.publish(std::slice::from_ref(&stored)).await;
    let mut other = stored.clone();
    other.payload = b"\0other".to_vec().into();
    let dead = rig.bus.dead_letters(None);
    for _ in 0..2 {
        dead.put(vec![letter(&other, ID_CONFLICT)]).await.unwrap();
    }
    let letters =
        BusReader::open(rig.path()).unwrap().dead_letters(&LetterFilter::default(), None, 10).unwrap();
    assert_eq!(letters.len(), 1);
    assert_ne!(letters[0].message.id, stored.id);
    assert_eq!(letters[0].message.payload, other.payload);
    assert_eq!(letters[0].message.attributes.get(CONFLICTING_ID), Some(stored.id.to_string().as_str()));
    assert_eq!(rig.settle(&rig.left, 1, Verdict::Ack).await[0].payload, stored.payload);
}

#[tokio::test(flavor = "multi_thread")]
async fn parked_messages_survive_a_kill_as_they_were_within_their_bound() {
    let rig = Rig::new(BusOptions { max_parked: 3, ..BusOptions::default() }).await;
    let lot = rig.bus.parking_lot();
    let parked: Vec<_> =
        (0..).zip(messages(4)).map(|(n, message)| wait_for("device-1", message, n)).collect();
    assert_eq!(
        lot.park(parked.clone()).await.unwrap(),
        [Placed::Held, Placed::Held, Placed::Held, Placed::Full]
    );
    assert_eq!(lot.park(parked[..1].to_vec()).await.unwrap(), [Placed::Held]);
    let next = rig.after_a_kill().await;
    let lot = next.bus.parking_lot();
    assert_eq!(lot.keys(None, 10).await.unwrap(), ["device-1".into()]);
    assert_eq!(lot.keys(Some("device-1"), 10).await.unwrap().len(), 0);
    assert_eq!(lot.of_keys(vec!["device-1".into(), "none".into()], 10).await.unwrap(), parked[..3]);
    assert_eq!(lot.parked_before(Timestamp::from_micros(1), 10).await.unwrap(), parked[..1]);
    lot.remove(vec![parked[0].message.id, parked[3].message.id]).await.unwrap();
    assert_eq!(lot.count().await.unwrap(), 2);
}

fn wait_for(key: &str, message: Message, since: i64) -> Parked {
    Parked { key: key.into(), message, since: Timestamp::from_micros(since) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_name_every_id_and_where_it_is() {
    let rig = Rig::new(BusOptions::default()).await;
    let published = messages(5_000);
    rig.publish(&published).await;
    let mut consumer = rig.consumer(&rig.left);
    let chunk = consumer.next().await.unwrap().unwrap();
    let mut acked = BTreeSet::new();
    for (index, (message, ack)) in chunk.into_acks().into_iter().enumerate() {
        if index % 2 == 1 {
            acked.insert(message.id);
            ack.ack();
        }
    }
    consumer.close().await.unwrap();
    let books = BusReader::open(rig.path()).unwrap();
    let read = |ids: &mut dyn Iterator<Item = Result<MessageId, embedded::Error>>| -> Vec<MessageId> {
        ids.map(Result::unwrap).collect()
    };
    let all = read(&mut books.ids_of("raw").unwrap());
    assert!(all.iter().eq(ids(&published).iter()), "not all ids, or not in order");
    let settled = read(&mut books.settled_ids("raw", "left").unwrap());
    assert!(settled.iter().eq(acked.iter()));
    let unsettled = read(&mut books.unsettled_ids("raw", "left").unwrap());
    assert_eq!(unsettled.len() + settled.len(), all.len());
    assert_eq!(books.subscriptions().unwrap()[0].unsettled, unsettled.len() as u64);
    let sightings = books.sightings(settled[0]).unwrap();
    let at = |name: &str| ("raw".to_owned(), name.to_owned());
    let ((topic, left), (_, right)) = (at("left"), at("right"));
    assert_eq!(
        sightings,
        [
            Sighting::Published { topic: topic.clone() },
            Sighting::Settled { topic: topic.clone(), subscription: left },
            Sighting::Unsettled { topic, subscription: right },
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_of_one_subscription_share_its_messages() {
    let rig = Rig::new(BusOptions::default()).await;
    let published = messages(4_000);
    let (mut one, mut two) = (rig.consumer(&rig.left), rig.consumer(&rig.left));
    let mut seen = Vec::new();
    rig.publish(&published).await;
    while seen.len() < published.len() {
        let chunk = tokio::select! { chunk = one.next() => chunk, chunk = two.next() => chunk };
        seen.extend(
            chunk.unwrap().unwrap().into_acks().into_iter().map(|(message, ack)| (message, ack.ack()).0),
        );
    }
    assert_eq!((seen.len(), ids(&seen)), (published.len(), ids(&published)));
}

/// Takes messages and acknowledges them until `killer` comes; true if it came.
async fn work_until_killed(rig: &Rig, killer: MessageId) -> bool {
    let mut consumer = rig.consumer(&rig.left);
    while rig.unsettled(&rig.left).await > 0 {
        let chunk = tokio::time::timeout(PATIENCE, consumer.next()).await.unwrap().unwrap().unwrap();
        if chunk.deliveries().iter().any(|delivery| delivery.message.id == killer) {
            return true;
        }
        chunk.into_acks().into_iter().for_each(|(_, ack)| ack.ack());
    }
    consumer.close().await.unwrap();
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_kills_the_process_reaches_the_dead_letters_alone() {
    let mut rig = Rig::new(BusOptions::default()).await;
    let published = messages(2_000);
    rig.publish(&published).await;
    let killer = published[1_234].id;
    let mut deaths = 0;
    while work_until_killed(&rig, killer).await {
        deaths += 1;
        assert!(deaths < 20, "no end");
        rig = rig.after_a_kill().await;
    }
    let books = BusReader::open(rig.path()).unwrap();
    let letters = books.dead_letters(&LetterFilter::default(), None, 10).unwrap();
    let given_up: Vec<_> = letters.iter().map(|letter| (letter.message.id, letter.reason.as_str())).collect();
    assert_eq!(given_up, [(killer, KILLS_PROCESS)]);
    assert_eq!(letters[0].message.payload, published[1_234].payload);
}

/// What may happen between two kills.
#[derive(Clone, Debug)]
enum Step {
    Publish(usize),
    PublishAgain,
    Take { right: bool, acked: usize },
    Kill,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..300).prop_map(Step::Publish),
        1 => Just(Step::PublishAgain),
        6 => (any::<bool>(), 1_usize..5).prop_map(|(right, acked)| Step::Take { right, acked }),
        1 => Just(Step::Kill),
        1 => Just(Step::Restart),
    ]
}

async fn take_some(rig: &Rig, subscription: &Subscription, every: usize, acked: &mut BTreeSet<MessageId>) {
    let mut consumer = rig.consumer(subscription);
    for _ in 0..2 {
        if rig.unsettled(subscription).await == 0 {
            break;
        }
        let Ok(chunk) = tokio::time::timeout(Duration::from_millis(200), consumer.next()).await else {
            break;
        };
        for (index, (message, ack)) in chunk.unwrap().unwrap().into_acks().into_iter().enumerate() {
            assert!(!acked.contains(&message.id), "an acknowledged message came again");
            match index % every {
                0 => {
                    acked.insert(message.id);
                    ack.ack();
                }
                1 => ack.nack(),
                2 => ack.give_back(),
                _ => drop(ack),
            }
        }
    }
    consumer.close().await.unwrap();
}

async fn run_story(steps: Vec<Step>) {
    let mut rig = Rig::new(BusOptions::default()).await;
    let source = messages(20_000);
    let mut published = 0;
    let mut acked = [BTreeSet::new(), BTreeSet::new()];
    for step in steps {
        match step {
            Step::Publish(count) => {
                rig.publish(&source[published..published + count]).await;
                published += count;
            }
            Step::PublishAgain => rig.publish(&source[published.saturating_sub(50)..published]).await,
            Step::Take { right, acked: every } => {
                let subscription = if right { rig.right.clone() } else { rig.left.clone() };
                take_some(&rig, &subscription, every, &mut acked[usize::from(right)]).await;
            }
            Step::Kill => rig = rig.after_a_kill().await,
            Step::Restart => {
                rig.bus.close().await.unwrap();
                rig = Rig::at(rig.folder, BusOptions::default()).await;
            }
        }
    }
    for (subscription, acked) in [&rig.left, &rig.right].into_iter().zip(acked) {
        let left = published - acked.len();
        let rest = ids(&rig.settle(subscription, left, Verdict::Ack).await);
        assert_eq!(rest.len(), left, "a message came twice");
        assert_eq!(rest.union(&acked).copied().collect::<BTreeSet<_>>(), ids(&source[..published]));
        assert_eq!(rig.unsettled(subscription).await, 0);
    }
    log_shrinks_to(&rig.path(), 0).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_lost_or_doubled_over_kills_and_restarts(steps in proptest::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run_story(steps));
    }
}

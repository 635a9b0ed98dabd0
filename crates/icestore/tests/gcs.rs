//! The archive in a Cloud Storage bucket, against the fake: the suite that every archive passes, and what only a store
//! behind a network can meet.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use google_cloud_auth::credentials::anonymous;
use icestore::gcs::{GcsOptions, GcsReader, GcsStore};
use icestore::replay::{Replay, ReplayOptions, Replayed, Selection};
use icestore::{
    ArchiveObject, ArchiveProcessor, ArchiveSettings, ArchiveTransformer, BatchKey, KeyConfig,
    LocationSources, NameRange, ObjectReader, ObjectStore, Prefix, PutOutcome, payload_fingerprint,
};
use messagepipeline::{
    BatchLimits, BatchOutcome, BatchProcessor, BatchingService, Clock, Digest, Enrichment, ErrorClass, Item,
    ManualClock, Message, ServiceOptions, Shutdown, StageError, Summary, SystemClock, Timestamp,
};
use std::sync::Arc;
use std::time::Duration;
use testkit::gcs_fake::{GcsFake, GcsFault, GcsRequest};
use testkit::memory::MemoryBus;
use testkit::scripted_consumer::{ScriptedConsumer, Step};
use testkit::sink_suite::{self as suite, ArchiveUnderTest};

const BUCKET: &str = "archive";

/// A bucket of its own, and processes that use it one after another.
struct Bucket(GcsFake);

impl Bucket {
    async fn new() -> Self {
        // Programs do this at their start; what speaks no TLS needs it to be there all the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fake = GcsFake::start().await;
        fake.create_bucket(BUCKET);
        Self(fake)
    }

    fn options(&self) -> GcsOptions {
        let credentials = anonymous::Builder::new().build();
        GcsOptions { endpoint: Some(self.0.endpoint()), ..GcsOptions::new(BUCKET, credentials) }
    }

    /// A store as a new process has it.
    async fn store(&self) -> GcsStore {
        self.store_with(self.options()).await
    }

    async fn store_with(&self, options: GcsOptions) -> GcsStore {
        let store = GcsStore::new(options, Arc::new(SystemClock)).await.unwrap();
        store.open().await.unwrap();
        store
    }

    /// How many lists, reads, look-ups and uploads there were.
    fn requests(&self) -> [u64; 4] {
        [GcsRequest::List, GcsRequest::Read, GcsRequest::Metadata, GcsRequest::Upload]
            .map(|kind| self.0.requests(kind))
    }
}

impl ArchiveUnderTest for Bucket {
    async fn open(&mut self) -> Arc<dyn ObjectStore> {
        Arc::new(self.store().await)
    }

    async fn objects(&mut self) -> Vec<(String, Vec<u8>)> {
        self.0.objects(BUCKET).into_iter().map(|(name, bytes)| (name, bytes.to_vec())).collect()
    }
}

fn processor(store: GcsStore) -> ArchiveProcessor {
    ArchiveProcessor::new(Arc::new(store), ArchiveSettings::default(), Arc::new(SystemClock))
}

fn items(messages: &[Message]) -> Vec<Item<BatchKey>> {
    let key = BatchKey::new(Timestamp::from_micros(1_672_867_882_661_042), Some("loc"));
    messages.iter().map(|message| Item::detached(message.clone(), key.clone())).collect()
}

/// The messages as a subscription delivers them the second time.
fn again(messages: &[Message]) -> Vec<Message> {
    messages.iter().map(|message| Message { attempt: 2, ..message.clone() }).collect()
}

/// The messages as received one each second from `first` on.
fn received(mut messages: Vec<Message>, first: Timestamp) -> Vec<Message> {
    for (second, message) in (0..).zip(&mut messages) {
        message.publish_time = Timestamp::from_micros(first.as_micros() + second * 1_000_000);
    }
    messages
}

/// A time after the start of every process of a test.
fn later() -> Timestamp {
    Timestamp::from_micros(SystemClock.now().as_micros() + 3_600_000_000)
}

async fn assert_lines(bucket: &mut Bucket, messages: &[Message]) {
    let mut expected: Vec<_> = messages.iter().map(|message| message.id).collect();
    expected.sort();
    let found: Vec<_> = suite::lines(bucket).await.into_iter().map(|line| line.id).collect();
    assert_eq!(found, expected);
}

fn is_done(outcome: &BatchOutcome) -> bool {
    matches!(outcome, BatchOutcome::Done)
}

fn failure(outcome: BatchOutcome) -> StageError {
    match outcome {
        BatchOutcome::Failed(error) => error,
        other => panic!("it was to fail: {other:?}"),
    }
}

#[tokio::test]
async fn a_bucket_passes_the_suite_of_archives() {
    suite::an_object_is_seen_as_it_was_put(&mut Bucket::new().await).await;
    suite::an_object_with_a_known_id_is_not_stored(&mut Bucket::new().await).await;
    suite::a_message_is_one_line_over_redeliveries(&mut Bucket::new().await).await;
    suite::a_conflicting_line_is_refused_alone(&mut Bucket::new().await).await;
    suite::archived_payloads_come_back_byte_for_byte(&mut Bucket::new().await).await;
}

#[tokio::test]
async fn an_object_costs_one_request_and_a_list_where_its_messages_were_received_before_the_start() {
    for (first, lists_expected) in [(later(), 0), (Timestamp::from_micros(0), 10)] {
        let bucket = Bucket::new().await;
        let processor = processor(bucket.store().await);
        let [lists, ..] = bucket.requests();
        for part in received(suite::messages(100), first).chunks(10) {
            assert!(is_done(&processor.process(&items(part)).await));
        }
        let [lists_after, reads, look_ups, uploads] = bucket.requests();
        assert_eq!((lists_after - lists, reads, look_ups, uploads), (lists_expected, 0, 0, 10));
    }
}

#[tokio::test]
async fn an_object_carries_what_is_in_it_and_no_content_encoding() {
    let bucket = Bucket::new().await;
    let store = bucket.store_with(GcsOptions { writer: "icestore-7".to_owned(), ..bucket.options() }).await;
    let messages = suite::messages(9);
    let object = suite::object(&messages);
    assert_eq!(store.put(object.clone()).await.unwrap(), PutOutcome::Stored);
    let metadata = bucket.0.metadata(BUCKET, object.name.as_str());
    let said = |name: &str| metadata.get(name).map(String::as_str);
    assert_eq!(said("content-type"), Some("application/gzip"));
    // With one, the service would decompress on the way out and the checksum would no longer be that of what is read.
    assert_eq!(said("content-encoding"), None);
    assert_eq!((said("millstream-lines"), said("millstream-writer")), (Some("9"), Some("icestore-7")));
    let reader = GcsReader::connect(&bucket.options()).await.unwrap();
    let page = reader.list(&NameRange::default(), None).await.unwrap();
    let contents = page.objects[0].contents.unwrap();
    assert_eq!(contents.digest, messages.iter().map(|m| &m.id).collect::<Digest>());
    assert_eq!(
        (contents.first_received, contents.last_received),
        (object.first_received, object.last_received)
    );
    assert_eq!(page.objects[0].bytes, object.bytes.len() as u64);
    assert_eq!(reader.read(object.name.as_str()).await.unwrap(), object.bytes);
}

#[tokio::test]
async fn a_service_that_fails_twice_is_asked_a_third_time() {
    let mut bucket = Bucket::new().await;
    let processor = processor(bucket.store().await);
    bucket.0.fault(GcsRequest::Upload, [Some(GcsFault::Status(503)), Some(GcsFault::Status(503))]);
    let messages = suite::messages(5);
    assert!(is_done(&processor.process(&items(&messages)).await));
    assert_eq!(bucket.0.requests(GcsRequest::Upload), 3);
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn an_upload_whose_answer_got_lost_is_recognised_as_our_own() {
    let mut bucket = Bucket::new().await;
    let processor = processor(bucket.store().await);
    bucket.0.fault(GcsRequest::Upload, [Some(GcsFault::LostReply)]);
    let messages = suite::messages(5);
    assert!(is_done(&processor.process(&items(&messages)).await));
    // The second try met its own object: one object, and one look at it.
    assert_eq!((bucket.0.requests(GcsRequest::Upload), bucket.0.requests(GcsRequest::Metadata)), (2, 1));
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn a_kill_between_upload_and_settling_makes_no_second_line() {
    let mut bucket = Bucket::new().await;
    let messages = suite::messages(30);
    assert!(is_done(&processor(bucket.store().await).process(&items(&messages[..20])).await));
    // The process is gone; the next one gets the messages again, in other groups and beside new ones.
    let processor = processor(bucket.store().await);
    assert!(is_done(&processor.process(&items(&again(&messages[5..20]))).await));
    let mixed: Vec<_> = again(&messages[..5]).into_iter().chain(messages[20..].to_vec()).collect();
    assert!(is_done(&processor.process(&items(&mixed)).await));
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn what_was_received_before_the_start_makes_no_second_line_though_nobody_counts_its_deliveries() {
    let mut bucket = Bucket::new().await;
    let messages = received(suite::messages(40), Timestamp::from_micros(0));
    let before = processor(bucket.store().await);
    for part in messages[..30].chunks(10) {
        assert!(is_done(&before.process(&items(part)).await));
    }
    let processor = processor(bucket.store().await);
    for part in [&messages[3..7], &messages[12..18], &messages[25..]] {
        assert!(is_done(&processor.process(&items(part)).await));
    }
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn a_lost_answer_makes_no_second_line_whatever_of_the_same_folder_is_stored_before_its_messages_come_again()
 {
    let mut bucket = Bucket::new().await;
    let options = GcsOptions { timeout: Duration::from_millis(300), ..bucket.options() };
    let processor = processor(bucket.store_with(options).await);
    let messages = received(suite::messages(20), later());
    bucket.0.fault_always(GcsRequest::Upload, Some(GcsFault::LostReply));
    bucket.0.fault_always(GcsRequest::Metadata, Some(GcsFault::Status(503)));
    let error = failure(processor.process(&items(&messages[..10])).await);
    assert_eq!(error.class(), ErrorClass::Transient);
    bucket.0.fault_always(GcsRequest::Upload, None);
    bucket.0.fault_always(GcsRequest::Metadata, None);
    for part in [&messages[10..], &messages[5..10], &messages[..5]] {
        assert!(is_done(&processor.process(&items(part)).await));
    }
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn what_another_replica_archived_and_did_not_settle_makes_no_second_line() {
    let mut bucket = Bucket::new().await;
    let messages = suite::messages(30);
    let (left, right) = (processor(bucket.store().await), processor(bucket.store().await));
    assert!(is_done(&right.process(&items(&messages[20..])).await));
    assert!(is_done(&left.process(&items(&messages[..20])).await));
    // The left one dies before it settles; the right one, long at work in this folder, gets its messages. In another
    // grouping: the object would have another name.
    assert!(is_done(&right.process(&items(&again(&messages[5..20]))).await));
    assert!(is_done(&right.process(&items(&again(&messages[..5]))).await));
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn two_replicas_that_upload_the_same_group_at_once_make_one_object() {
    let mut bucket = Bucket::new().await;
    let messages = suite::messages(10);
    let (left, right) = (processor(bucket.store().await), processor(bucket.store().await));
    let (left_items, right_items) = (items(&messages), items(&again(&messages)));
    let (left, right) = tokio::join!(left.process(&left_items), right.process(&right_items));
    assert!(is_done(&left) && is_done(&right), "{left:?} {right:?}");
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn a_message_that_comes_again_is_found_when_its_id_is_no_longer_remembered() {
    let mut bucket = Bucket::new().await;
    let store = bucket.store_with(GcsOptions { remembered: 20, ..bucket.options() }).await;
    let processor = processor(store);
    let messages = suite::messages(100);
    for part in messages.chunks(10) {
        assert!(is_done(&processor.process(&items(part)).await));
    }
    assert!(is_done(&processor.process(&items(&again(&messages[..10]))).await));
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn what_a_look_finds_first_is_known_at_its_end_however_much_it_reads_after_that() {
    let mut bucket = Bucket::new().await;
    let store = bucket.store_with(GcsOptions { remembered: 20, ..bucket.options() }).await;
    let processor = processor(store);
    let messages = suite::messages(120);
    for part in messages[..110].chunks(10) {
        assert!(is_done(&processor.process(&items(part)).await));
    }
    // Old messages of several objects in one group with new ones: its times meet those of all objects.
    let mut group = again(&[&messages[..3], &messages[40..43], &messages[105..107]].concat());
    group.extend_from_slice(&messages[110..]);
    assert!(is_done(&processor.process(&items(&group)).await));
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn a_backlog_out_of_order_is_archived_without_reading_what_was_stored_meanwhile() {
    let mut bucket = Bucket::new().await;
    // It started two hours ago, and for an hour before that nothing was archived.
    let hours_ago = |hours: i64| SystemClock.now().as_micros() - hours * 3_600_000_000;
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(hours_ago(2))));
    let options = GcsOptions { remembered: 20, ..bucket.options() };
    let processor = processor(GcsStore::new(options, clock).await.unwrap());
    let messages = received(suite::messages(100), Timestamp::from_micros(hours_ago(3)));
    for first in 0..10 {
        let group: Vec<_> = messages.iter().skip(first).step_by(10).cloned().collect();
        assert!(is_done(&processor.process(&items(&group)).await));
    }
    let [_, reads, _, uploads] = bucket.requests();
    assert_eq!((reads, uploads), (0, 10));
    // What the subscription calls redelivered is looked for all the same.
    assert!(is_done(&processor.process(&items(&again(&messages[7..23]))).await));
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn a_failed_upload_fails_its_messages_leaves_nothing_and_is_repeated_in_any_grouping() {
    let mut bucket = Bucket::new().await;
    let options = GcsOptions { timeout: Duration::from_millis(300), ..bucket.options() };
    let processor = processor(bucket.store_with(options).await);
    let messages = suite::messages(10);
    bucket.0.fault_always(GcsRequest::Upload, Some(GcsFault::Never));
    let error = failure(processor.process(&items(&messages)).await);
    assert_eq!((error.class(), error.reason()), (ErrorClass::Transient, "gcs-timeout"));
    assert!(bucket.0.objects(BUCKET).is_empty());
    // Now the object is stored, and nobody hears of it in time.
    bucket.0.fault_always(GcsRequest::Upload, Some(GcsFault::LostReply));
    bucket.0.fault_always(GcsRequest::Metadata, Some(GcsFault::Status(503)));
    let error = failure(processor.process(&items(&messages[..6])).await);
    assert_eq!(error.class(), ErrorClass::Transient);
    bucket.0.fault_always(GcsRequest::Upload, None);
    bucket.0.fault_always(GcsRequest::Metadata, None);
    assert!(is_done(&processor.process(&items(&messages[3..])).await));
    assert!(is_done(&processor.process(&items(&messages[..3])).await));
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn a_name_that_somebody_else_has_taken_costs_no_message() {
    let bucket = Bucket::new().await;
    let messages = suite::messages(3);
    let object = suite::object(&messages);
    bucket.0.put(BUCKET, object.name.as_str(), "not an object of ours");
    let store = bucket.store().await;
    assert_eq!(store.put(object.clone()).await.unwrap(), PutOutcome::Stored);
    let name = object.name.as_str().replace(".jsonl", "-1.jsonl");
    assert_eq!(bucket.0.objects(BUCKET)[&name], object.bytes);
    // What lies there is left alone.
    assert_eq!(bucket.0.objects(BUCKET)[object.name.as_str()], "not an object of ours");
    assert_eq!(store.put(object).await.unwrap(), PutOutcome::Overlaps);
}

#[tokio::test]
async fn a_bucket_is_created_only_when_that_is_asked_for_and_otherwise_named_as_missing() {
    let bucket = Bucket::new().await;
    let missing = GcsOptions { bucket: "missing".to_owned(), ..bucket.options() };
    let store = GcsStore::new(missing.clone(), Arc::new(SystemClock)).await.unwrap();
    let error = store.open().await.unwrap_err();
    assert_eq!((error.class(), error.reason()), (ErrorClass::Configuration, "gcs-not-found"));
    assert!(error.detail().contains("gs://missing"), "{error}");
    let create = GcsOptions { create_bucket: true, ..missing };
    let store = GcsStore::new(create.clone(), Arc::new(SystemClock)).await.unwrap();
    assert!(store.open().await.unwrap_err().detail().contains("project"));
    let create = GcsOptions { project: Some("p".to_owned()), ..create };
    let store = bucket.store_with(create).await;
    assert_eq!(store.put(suite::object(&suite::messages(1))).await.unwrap(), PutOutcome::Stored);
    assert_eq!(bucket.0.objects("missing").len(), 1);
}

#[tokio::test]
async fn a_missing_right_pauses_and_says_what_to_grant() {
    let bucket = Bucket::new().await;
    bucket.0.fault(GcsRequest::List, [Some(GcsFault::Status(403))]);
    let store = GcsStore::new(bucket.options(), Arc::new(SystemClock)).await.unwrap();
    let error = store.open().await.unwrap_err();
    assert_eq!((error.class(), error.reason()), (ErrorClass::Configuration, "gcs-forbidden"));
    assert!(error.detail().contains("roles/storage.objectCreator"), "{error}");
    store.open().await.unwrap();
    bucket.0.fault(GcsRequest::Upload, [Some(GcsFault::Status(403))]);
    let error = store.put(suite::object(&suite::messages(1))).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Configuration);
    assert!(bucket.0.objects(BUCKET).is_empty());
}

#[tokio::test]
async fn a_large_object_arrives_whole_over_a_connection_that_is_cut() {
    let bucket = Bucket::new().await;
    // Noise does not shrink: the object is over the 16 MiB from which the client would upload in parts.
    let mut state = 1_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let payload: Vec<u8> = (0..(3 << 20)).flat_map(|_| noise()).collect();
    let messages = [suite::message(suite::messages(1)[0].id, payload)];
    let lines: Vec<_> = messages.iter().map(|m| (m.clone(), payload_fingerprint(&m.payload))).collect();
    let key = BatchKey::new(Timestamp::default(), None);
    let object =
        ArchiveObject::build(&ArchiveSettings::default(), &key, &lines, Timestamp::default()).unwrap();
    assert!(object.bytes.len() > 16 << 20);
    let store = bucket.store().await;
    bucket.0.fault(GcsRequest::Upload, [Some(GcsFault::Cut)]);
    assert_eq!(store.put(object.clone()).await.unwrap(), PutOutcome::Stored);
    assert_eq!(bucket.0.objects(BUCKET)[object.name.as_str()], object.bytes);
}

/// Runs the whole service over `messages`, with groups of `count` at most.
async fn archived(bucket: &Bucket, messages: &[Message], count: usize) -> Summary {
    let consumer = ScriptedConsumer::new([Step::Chunk(messages.to_vec()), Step::End]);
    let transformer = ArchiveTransformer::new(LocationSources::new(&KeyConfig::default()).unwrap());
    let limits = BatchLimits { count, age: Duration::from_secs(60), ..BatchLimits::default() };
    let options = ServiceOptions { workers: 2, ..ServiceOptions::new("archive") };
    BatchingService::new(options, limits, consumer, transformer, processor(bucket.store().await))
        .keyed(|item| item.value.clone())
        .run(Shutdown::new())
        .await
        .unwrap()
}

fn at(mut messages: Vec<Message>, locations: &[Option<&str>]) -> Vec<Message> {
    for (message, location) in messages.iter_mut().zip(locations) {
        if let Some(location) = location {
            message.enrichment =
                Enrichment::from_text(&format!(r#"{{"location_id":"{location}"}}"#)).unwrap();
        }
    }
    messages
}

#[tokio::test]
async fn seven_messages_of_one_place_in_groups_of_five_make_two_objects() {
    let mut bucket = Bucket::new().await;
    let messages = suite::messages(7);
    assert_eq!(archived(&bucket, &messages, 5).await.done, 7);
    assert_eq!(bucket.0.objects(BUCKET).len(), 2);
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn four_messages_of_two_places_and_of_none_make_three_objects() {
    let mut bucket = Bucket::new().await;
    let messages = at(suite::messages(4), &[Some("loc-a"), Some("loc-b"), Some("loc-a"), None]);
    assert_eq!(archived(&bucket, &messages, 10).await.done, 4);
    let objects = bucket.0.objects(BUCKET);
    let folders: Vec<_> = objects.keys().map(|name| name.rsplit_once('/').unwrap().0).collect();
    assert_eq!(folders.len(), 3);
    for folder in ["2023/01/04", "2023/01/04/loc-a", "2023/01/04/loc-b"] {
        assert!(folders.contains(&folder), "{folders:?}");
    }
    assert_lines(&mut bucket, &messages).await;
}

#[tokio::test]
async fn a_bucket_is_replayed_into_a_topic_with_equal_payloads() {
    let bucket = Bucket::new().await;
    let locations: Vec<_> = (0..500).map(|n| [Some("loc-a"), None, Some("loc-b")][n % 3]).collect();
    let mut messages = at(suite::messages(500), &locations);
    for (n, message) in messages.iter_mut().enumerate() {
        message.publish_time = Timestamp::from_micros(1_672_867_882_661_042 + n as i64 * 60_000_000);
    }
    assert_eq!(archived(&bucket, &messages, 20).await.done, 500);
    let reader = GcsReader::connect(&bucket.options()).await.unwrap();
    let (bus, selection, shutdown) = (MemoryBus::new(), Selection::default(), Shutdown::new());
    let publisher = bus.publisher("again");
    let options = ReplayOptions::default();
    let replay = Replay::new(&reader, &publisher, &selection, options, |_| Duration::ZERO, &shutdown);
    assert_eq!(replay.run().await.unwrap(), Replayed::Complete);
    let again = bus.messages("again");
    assert_eq!(again.len(), messages.len());
    for (again, message) in again.iter().zip(&messages) {
        assert_eq!((again.id, &again.payload), (message.id, &message.payload));
        assert_eq!((again.publish_time, &again.enrichment), (message.publish_time, &message.enrichment));
    }
    // Every object was read once: their metadata tell when its turn comes.
    assert_eq!(bucket.0.requests(GcsRequest::Read), bucket.0.objects(BUCKET).len() as u64);
}

#[tokio::test]
async fn a_folder_of_the_bucket_is_its_own_archive() {
    let bucket = Bucket::new().await;
    let messages = suite::messages(3);
    let settings = ArchiveSettings { prefix: Prefix::parse("site-a").unwrap(), ..ArchiveSettings::default() };
    let store = Arc::new(bucket.store().await);
    let processor = ArchiveProcessor::new(store, settings, Arc::new(SystemClock));
    assert!(is_done(&processor.process(&items(&messages)).await));
    let names: Vec<_> = bucket.0.objects(BUCKET).into_keys().collect();
    assert!(names[0].starts_with("site-a/2023/01/04/loc/"), "{names:?}");
    let reader = GcsReader::connect(&bucket.options()).await.unwrap();
    let (bus, shutdown) = (MemoryBus::new(), Shutdown::new());
    let publisher = bus.publisher("again");
    for (prefix, expected) in [("site-b", 0), ("site-a", 3)] {
        let selection = Selection { prefix: Prefix::parse(prefix).unwrap(), ..Selection::default() };
        let options = ReplayOptions::default();
        let replay = Replay::new(&reader, &publisher, &selection, options, |_| Duration::ZERO, &shutdown);
        assert_eq!(replay.run().await.unwrap(), Replayed::Complete);
        assert_eq!(bus.messages("again").len(), expected);
    }
}

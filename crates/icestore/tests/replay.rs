//! Archived objects become messages again.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use icestore::replay::{Replay, ReplayCounts, ReplayOptions, ReplayProgress, Replayed, Selection};
use icestore::{
    ArchiveObject, ArchiveSettings, BatchKey, Compression, FolderReader, LineForm, NameRange, ObjectReader,
    payload_fingerprint,
};
use messagepipeline::{Enrichment, ErrorClass, IdGenerator, Message, Shutdown, StageError, Timestamp, names};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::time::Duration;
use testkit::faults::{Fault, Faults, Faulty};
use testkit::memory::MemoryBus;
use tokio::time::Instant;

/// 2024-02-28, an hour before midnight.
const BEGIN: i64 = 1_709_161_200_000_000;
const MINUTE: i64 = 60_000_000;

/// A message a minute, of four devices in turn, over two days.
fn messages(count: i64) -> Vec<Message> {
    let ids = IdGenerator::default();
    let message = |n: i64| {
        let payload = if n % 7 == 0 { vec![0xff, 0] } else { format!("{{\"n\": {n}}}").into_bytes() };
        let mut message = Message::new(ids.next_id(), payload, Timestamp::from_micros(BEGIN + n * MINUTE));
        let device = format!("d{}", n % 4);
        message.attributes = [
            // By name, as lines give them back.
            (names::DEVICE_ID, device.as_str()),
            (names::ENRICHMENT_STATUS, names::ENRICHED),
            (names::TOPIC, &format!("devices/{device}/up")),
        ]
        .into_iter()
        .collect();
        message.enrichment =
            Enrichment::from_text(&format!(r#"{{"location_id":"hall {}"}}"#, n % 2)).unwrap();
        message
    };
    (0..count).map(message).collect()
}

fn key(message: &Message) -> BatchKey {
    let location = message.enrichment.get("location_id").and_then(|value| value.as_str());
    BatchKey::new(message.publish_time, location)
}

/// Writes `messages` as an archiver might: in groups by key, the order within them upset.
fn archive(folder: &Path, messages: &[Message], settings: &ArchiveSettings) {
    let mut groups: BTreeMap<BatchKey, Vec<Message>> = BTreeMap::new();
    for message in messages {
        groups.entry(key(message)).or_default().push(message.clone());
    }
    for (key, mut group) in groups {
        let half = group.len() / 2;
        group.rotate_left(half);
        // Interleaved parts: every object overlaps with the next.
        for part in 0..3 {
            let lines: Vec<_> = group
                .iter()
                .skip(part)
                .step_by(3)
                .map(|message| (message.clone(), payload_fingerprint(&message.payload)))
                .collect();
            if lines.is_empty() {
                continue;
            }
            let object = ArchiveObject::build(settings, &key, &lines, Timestamp::default()).unwrap();
            let path = folder.join(object.name.as_str());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &object.bytes).unwrap();
        }
    }
}

fn assert_same(found: &[Message], expected: &[Message]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected);
    }
}

struct Played {
    messages: Vec<Message>,
    ended: Result<Replayed, StageError>,
    progress: ReplayProgress,
}

impl Played {
    fn counts(&self) -> ReplayCounts {
        self.progress.counts()
    }
}

/// Replays into a topic and reads that.
async fn replay(folder: &Path, selection: Selection, options: ReplayOptions) -> Played {
    let bus = MemoryBus::default();
    let (reader, shutdown) = (FolderReader::new(folder), Shutdown::new());
    let faults = Faults::script([Some(Fault::FailBefore(ErrorClass::Transient))]);
    let publisher = Faulty::new(bus.publisher("again"), faults);
    let replay = Replay::new(&reader, &publisher, &selection, options, |_| Duration::ZERO, &shutdown);
    let progress = replay.progress();
    let ended = replay.run().await;
    Played { messages: bus.messages("again"), ended, progress }
}

#[tokio::test(start_paused = true)]
async fn what_was_archived_comes_back_in_the_order_of_first_receipt_with_all_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let sent = messages(200);
    archive(folder.path(), &sent, &ArchiveSettings::default());
    let played = replay(folder.path(), Selection::default(), ReplayOptions::default()).await;
    assert_eq!(played.ended.as_ref().unwrap(), &Replayed::Complete);
    assert_same(&played.messages, &sent);
    // Two days of two locations, three objects each.
    let counts = ReplayCounts { objects: 12, published: 200, ..ReplayCounts::default() };
    assert_eq!(played.counts(), counts);
}

#[tokio::test(start_paused = true)]
async fn both_forms_of_lines_and_both_compressions_give_back_the_payloads() {
    for (form, compression) in [(LineForm::Base64, Compression::Gzip), (LineForm::Json, Compression::Zstd)] {
        let folder = tempfile::tempdir().unwrap();
        let sent = messages(50);
        let settings = ArchiveSettings { form, compression, ..ArchiveSettings::default() };
        archive(folder.path(), &sent, &settings);
        let played = replay(folder.path(), Selection::default(), ReplayOptions::default()).await;
        let pairs = |messages: &[Message]| -> Vec<_> {
            messages.iter().map(|message| (message.id, message.payload.clone())).collect()
        };
        // The ids were made in this order, which is all that the base64 form holds of it.
        let mut again = pairs(&played.messages);
        again.sort();
        assert_eq!(again, pairs(&sent));
    }
}

#[tokio::test(start_paused = true)]
async fn a_selection_by_day_location_and_device_plays_just_that() {
    let folder = tempfile::tempdir().unwrap();
    let sent = messages(200);
    archive(folder.path(), &sent, &ArchiveSettings::default());
    let day = |text: &str| Some(text.parse().unwrap());
    let select = |from, until, location: &str, device: &str| Selection {
        from,
        until,
        locations: [location].into_iter().filter(|text| !text.is_empty()).map(str::to_owned).collect(),
        devices: [device].into_iter().filter(|text| !text.is_empty()).map(str::to_owned).collect(),
        ..Selection::default()
    };
    let first_day = |message: &&Message| message.publish_time.as_micros() < BEGIN + 60 * MINUTE;
    for (selection, expected) in [
        (select(None, day("2024-02-28"), "", ""), sent.iter().filter(first_day).cloned().collect::<Vec<_>>()),
        (
            select(day("2024-02-29"), day("2024-02-29"), "hall 1", ""),
            sent.iter()
                .filter(|message| !first_day(message) && key(message).as_str().ends_with("hall%201"))
                .cloned()
                .collect(),
        ),
        (
            select(None, None, "", "d2"),
            sent.iter().filter(|message| message.device_id() == Some("d2")).cloned().collect(),
        ),
        (select(day("2024-03-01"), None, "", ""), Vec::new()),
    ] {
        let played = replay(folder.path(), selection, ReplayOptions::default()).await;
        assert_same(&played.messages, &expected);
    }
}

#[tokio::test(start_paused = true)]
async fn new_ids_make_new_messages_and_enrichment_is_left_out_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let sent = messages(20);
    archive(folder.path(), &sent, &ArchiveSettings::default());
    let options = ReplayOptions { new_ids: true, enrichment: false, ..ReplayOptions::default() };
    let played = replay(folder.path(), Selection::default(), options).await;
    let before: HashSet<_> = sent.iter().map(|message| message.id).collect();
    assert_eq!(played.messages.len(), 20);
    for (again, message) in played.messages.iter().zip(&sent) {
        assert!(!before.contains(&again.id));
        assert_eq!((&again.payload, again.publish_time), (&message.payload, message.publish_time));
        assert_eq!(again.device_id(), message.device_id());
        assert_eq!(again.enrichment, Enrichment::none());
        assert_eq!(again.attributes.get(names::ENRICHMENT_STATUS), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_object_is_named_and_the_rest_is_played() {
    let folder = tempfile::tempdir().unwrap();
    let sent = messages(40);
    archive(folder.path(), &sent, &ArchiveSettings::default());
    let reader = FolderReader::new(folder.path());
    let listed = reader.list(&NameRange::default(), None).await.unwrap().objects;
    let broken = folder.path().join(&listed[0].name);
    std::fs::write(&broken, b"no gzip").unwrap();
    std::fs::write(folder.path().join("stray.jsonl.gz"), b"").unwrap();
    let played = replay(folder.path(), Selection::default(), ReplayOptions::default()).await;
    assert_eq!(played.ended.as_ref().unwrap(), &Replayed::Complete);
    let counts = played.counts();
    assert_eq!((counts.damaged, counts.foreign, counts.published), (1, 1, 40 - 7));
    let problems = played.progress.problems();
    assert!(problems[0].contains(&broken.display().to_string()), "{problems:?}");
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_there_twice_is_played_once() {
    let folder = tempfile::tempdir().unwrap();
    let sent = messages(40);
    archive(folder.path(), &sent, &ArchiveSettings::default());
    archive(folder.path(), &sent[5..9], &ArchiveSettings::default());
    let played = replay(folder.path(), Selection::default(), ReplayOptions::default()).await;
    assert_same(&played.messages, &sent);
    assert!(played.counts().repeated > 0);
}

#[tokio::test(start_paused = true)]
async fn more_overlapping_messages_than_memory_may_hold_end_the_replay_and_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    archive(folder.path(), &messages(200), &ArchiveSettings::default());
    let options = ReplayOptions { memory: 1_000, ..ReplayOptions::default() };
    let error = replay(folder.path(), Selection::default(), options).await.ended.unwrap_err();
    assert_eq!((error.class(), error.reason()), (ErrorClass::Configuration, "replay-memory"));
    assert!(error.detail().contains("2024/02/28"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn messages_come_when_they_are_due_and_a_shutdown_ends_the_wait() {
    let folder = tempfile::tempdir().unwrap();
    archive(folder.path(), &messages(50), &ArchiveSettings::default());
    let (bus, reader, shutdown) = (MemoryBus::default(), FolderReader::new(folder.path()), Shutdown::new());
    let publisher = bus.publisher("again");
    let selection = Selection::default();
    // A minute between two of them, played as one second.
    let pace = |time: Timestamp| time.since(Timestamp::from_micros(BEGIN)) / 60;
    let replay = Replay::new(&reader, &publisher, &selection, ReplayOptions::default(), pace, &shutdown);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(30_500)).await;
        shutdown.begin();
    };
    let begun = Instant::now();
    let (ended, ()) = tokio::join!(replay.run(), stop);
    assert_eq!(ended.unwrap(), Replayed::Stopped);
    assert_eq!(begun.elapsed().as_millis(), 30_500);
    assert_eq!(bus.messages("again").len(), 31);
}

#[tokio::test]
async fn a_folder_of_many_objects_is_listed_in_pages_in_the_order_of_names() {
    let folder = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for number in 0..2_500 {
        let name = format!("2024/02/{:02}/l{}/{number}.jsonl.gz", number % 28 + 1, number % 3);
        let path = folder.path().join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"").unwrap();
        names.push(name);
    }
    // In names, `a-b` comes before `a/b`.
    for name in ["2024/02/01-x/a.jsonl.gz", "2024/02/01/l1.jsonl.gz", "2024/02/01/.hidden.jsonl.gz"] {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, b"").unwrap();
    }
    names.extend(["2024/02/01-x/a.jsonl.gz".to_owned(), "2024/02/01/l1.jsonl.gz".to_owned()]);
    names.sort();
    let reader = FolderReader::new(folder.path());
    for range in [
        NameRange::default(),
        NameRange {
            prefix: "2024/02".to_owned(),
            from: "2024/02/05/l1".to_owned(),
            until: "2024/02/20".to_owned(),
        },
    ] {
        let (mut found, mut page) = (Vec::new(), None);
        loop {
            let listed = reader.list(&range, page).await.unwrap();
            found.extend(listed.objects.into_iter().map(|object| object.name));
            page = listed.next;
            if page.is_none() {
                break;
            }
        }
        let expected: Vec<_> = names.iter().filter(|name| range.holds(name)).cloned().collect();
        assert_eq!(found, expected);
    }
}

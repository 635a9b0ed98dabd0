//! The archive processor over the archive double, and the double under the suite that every archive passes.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use icestore::{
    ArchiveProcessor, ArchiveSettings, ArchiveTransformer, BatchKey, KeyConfig, LocationSources, decode_line,
    decompress,
};
use messagepipeline::{
    BatchOutcome, BatchProcessor, Delivery, Enrichment, ErrorClass, Item, ManualClock, Message, Outcome,
    Timestamp, Token, Transformer,
};
use std::io::Read;
use std::sync::Arc;
use testkit::sink_suite::{self as suite, MemoryArchive, MemoryArchiveUnderTest};

fn processor(archive: &Arc<MemoryArchive>) -> ArchiveProcessor {
    let clock = Arc::new(ManualClock::new(Timestamp::default()));
    ArchiveProcessor::new(Arc::clone(archive) as _, ArchiveSettings::default(), clock)
}

async fn with_keys(messages: &[Message]) -> Vec<Item<BatchKey>> {
    let transformer = ArchiveTransformer::new(LocationSources::new(&KeyConfig::default()).unwrap());
    let deliveries: Vec<_> =
        messages.iter().map(|m| Delivery { message: m.clone(), token: Token(0) }).collect();
    let mut outcomes = Vec::new();
    transformer.transform(&deliveries, &mut outcomes).await;
    let keys = outcomes.into_iter().map(|outcome| match outcome {
        Outcome::Emit(key) => key,
        other => panic!("{other:?}"),
    });
    messages.iter().zip(keys).map(|(m, key)| Item::detached(m.clone(), key)).collect()
}

#[tokio::test(start_paused = true)]
async fn messages_of_three_locations_become_three_objects_with_their_lines() {
    let archive = Arc::new(MemoryArchive::default());
    let mut messages = suite::messages(4);
    for (message, location) in messages.iter_mut().zip(["loc-a", "loc-b", "loc-a"]) {
        message.enrichment = Enrichment::from_text(&format!(r#"{{"location_id":"{location}"}}"#)).unwrap();
    }
    // What a device says about test times has no meaning here.
    messages[3].attributes = [("test_publish_time", "1999-01-01T00:00:00Z")].into_iter().collect();
    assert!(matches!(processor(&archive).process(&with_keys(&messages).await).await, BatchOutcome::Done));
    let mut found = Vec::new();
    for (name, bytes) in archive.objects() {
        let mut text = String::new();
        decompress(&name, &bytes[..]).unwrap().read_to_string(&mut text).unwrap();
        let ids: Vec<_> = text.lines().map(|line| decode_line(line.as_bytes()).unwrap().id).collect();
        let first = format!("/{}.jsonl.gz", ids[0]);
        found.push((name.strip_suffix(&first).unwrap().to_owned(), ids));
    }
    let ids = |places: &[usize]| places.iter().map(|&at| messages[at].id).collect::<Vec<_>>();
    found.sort();
    let expected =
        [("2023/01/04", ids(&[3])), ("2023/01/04/loc-a", ids(&[0, 2])), ("2023/01/04/loc-b", ids(&[1]))];
    assert_eq!(found, expected.map(|(key, ids)| (key.to_owned(), ids)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_put_fails_its_items_and_leaves_no_object() {
    let archive = Arc::new(MemoryArchive::default());
    let processor = processor(&archive);
    let batch = with_keys(&suite::messages(3)).await;
    archive.fail(Some(ErrorClass::Transient));
    let BatchOutcome::Failed(error) = processor.process(&batch).await else { panic!("nothing is archived") };
    assert_eq!(error.class(), ErrorClass::Transient);
    assert!(archive.objects().is_empty());
    archive.fail(None);
    assert!(matches!(processor.process(&batch).await, BatchOutcome::Done));
    assert_eq!(archive.objects().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_archive_double_passes_the_suite() {
    suite::an_object_is_seen_as_it_was_put(&mut MemoryArchiveUnderTest::default()).await;
    suite::an_object_with_a_known_id_is_not_stored(&mut MemoryArchiveUnderTest::default()).await;
    suite::a_message_is_one_line_over_redeliveries(&mut MemoryArchiveUnderTest::default()).await;
    suite::a_conflicting_line_is_refused_alone(&mut MemoryArchiveUnderTest::default()).await;
    suite::archived_payloads_come_back_byte_for_byte(&mut MemoryArchiveUnderTest::default()).await;
}

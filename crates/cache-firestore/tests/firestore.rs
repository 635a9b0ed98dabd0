//! The source of truth, its listener and presence against Google's emulator.
#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use cache::{Ages, Change, Fetcher, Layered, Lru, PresenceCache, fetch_one};
use cache_firestore::{FirestoreOptions, FirestorePresence, FirestoreSource, emulator_credentials};
use cache_redis::{RedisOptions, RedisStore};
use futures_util::future::join_all;
use futures_util::stream::{BoxStream, StreamExt};
use messagepipeline::{Enrichment, ErrorClass, SystemClock};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use testkit::cache_suite::{device, presence_suite, source_suite};
use testkit::servers::{FirestoreEmulator, Redis};
use tokio::time::timeout;

const HOUR: Duration = Duration::from_secs(3600);
/// Long enough for an emulator on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

fn options(emulator: &FirestoreEmulator, project: &str) -> FirestoreOptions {
    FirestoreOptions {
        endpoint: Some(emulator.endpoint()),
        timeout: PATIENCE,
        ..FirestoreOptions::new(project, emulator_credentials())
    }
}

fn source(emulator: &FirestoreEmulator, project: &str) -> FirestoreSource {
    FirestoreSource::new(&options(emulator, project)).unwrap()
}

/// The document that reads as [`device`]'s value for `id`.
fn document(id: &str) -> Value {
    serde_json::from_str(device(id).text().unwrap()).unwrap()
}

async fn next(changes: &mut BoxStream<'static, Change>) -> Change {
    timeout(PATIENCE, changes.next()).await.unwrap().unwrap()
}

/// Writes a document of its own again and again until `changes` tell of it: from then on the listener listens. The
/// emulator mixes up its words when a change comes while it tells another, hence the pauses.
async fn listening(changes: &mut BoxStream<'static, Change>, emulator: &FirestoreEmulator, project: &str) {
    for round in 0.. {
        assert!(round < 100, "the listener does not listen");
        emulator.put_document(project, "devices", "probe", &json!({"round": round}));
        if let Ok(change) = timeout(Duration::from_secs(1), changes.next()).await {
            assert!(concerns(&change.unwrap(), "probe"));
            break;
        }
    }
    // What the same write still has to say.
    while timeout(Duration::from_secs(1), changes.next()).await.is_ok() {}
}

/// The emulator begins anew at every change, which is told as a change of everything.
fn concerns(change: &Change, id: &str) -> bool {
    match change {
        Change::Key(key) => key == id,
        Change::All => true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_conforms() {
    let Some(emulator) = FirestoreEmulator::shared("the_source_conforms") else { return };
    let ids: Vec<String> = (0..700).map(|n| format!("dev-{n}")).collect();
    emulator.put_documents("conforms", "devices", ids.iter().map(|id| (id.clone(), document(id))));
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    source_suite(&source(emulator, "conforms"), &ids, "nobody").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_any_bytes_are_documents_or_absent_and_fail_no_other() {
    let Some(emulator) = FirestoreEmulator::shared("ids_of_any_bytes") else { return };
    emulator.put_document("hostile", "devices", "known", &document("known"));
    emulator.put_document("hostile", "devices", "%C3%A4%20%3A", &document("odd"));
    let long = "x".repeat(2_000);
    let ids = [
        "",
        ".",
        "..",
        "a/b",
        "../devices/known",
        "__x__",
        &long,
        &long[..1_500],
        "\0",
        "\r\n",
        "known",
        " ",
        "{}",
        "`",
        "é\u{202e}",
        "\u{10ffff}",
        "*",
        "known ",
        "Known",
    ];
    let source = source(emulator, "hostile");
    let answers = source.fetch(&ids).await;
    for (id, answer) in ids.iter().zip(answers) {
        let expected = (*id == "known").then(|| device("known"));
        assert_eq!(answer.unwrap_or_else(|error| panic!("{id:?}: {error}")).value, expected, "{id:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_without_fields_is_known_and_one_that_is_not_there_is_not_found() {
    let Some(emulator) = FirestoreEmulator::shared("a_document_without_fields") else { return };
    emulator.put_document("plain", "devices", "empty", &json!({}));
    let source = source(emulator, "plain");
    assert_eq!(fetch_one(&source, "empty").await.unwrap().value, Some(Enrichment::none()));
    assert_eq!(fetch_one(&source, "nobody").await.unwrap().value, None);
    let error = source.get("nobody").await.unwrap_err();
    assert_eq!(error.to_string(), "document not found: devices/nobody");
    assert_eq!(error.class(), ErrorClass::Permanent);
    assert_eq!(source.get("empty").await.unwrap(), Enrichment::none());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_firestore_is_away_exactly_what_needs_it_fails_for_the_moment() {
    let Some(mut emulator) = FirestoreEmulator::start("while_firestore_is_away") else { return };
    emulator.put_documents("away", "devices", ["a", "b"].map(|id| (id.to_owned(), document(id))));
    let options = FirestoreOptions { timeout: Duration::from_millis(500), ..options(&emulator, "away") };
    let source = Arc::new(FirestoreSource::new(&options).unwrap());
    let ages = Ages { max: HOUR, negative: HOUR };
    let cache = Lru::new(10, ages, Some(Arc::clone(&source) as _)).unwrap();
    until_answered(&cache, "a").await;
    emulator.stop();
    let mut answers = cache.fetch(&["a", "b", "__x__"]).await.into_iter();
    assert_eq!(answers.next().unwrap().unwrap().value, Some(device("a")), "what is cached needs no source");
    let error = answers.next().unwrap().unwrap_err();
    assert_eq!(error.class(), ErrorClass::Transient, "{error}");
    assert!(error.to_string().contains("Firestore"), "{error}");
    assert_eq!(answers.next().unwrap().unwrap().value, None, "what cannot be there needs no source");
    emulator.restart();
    emulator.put_document("away", "devices", "b", &document("b"));
    until_answered(&cache, "b").await;
}

/// Asks until there is an answer, which is the document's data.
async fn until_answered(cache: &dyn Fetcher<Enrichment>, id: &str) {
    let asking = async {
        loop {
            match fetch_one(cache, id).await {
                Ok(found) => return assert_eq!(found.value, Some(device(id))),
                Err(error) => assert_eq!(error.class(), ErrorClass::Transient, "{error}"),
            }
        }
    };
    timeout(PATIENCE, asking).await.unwrap();
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_with_what_would_be_right() {
    let options = FirestoreOptions::new("project", emulator_credentials());
    for (changed, word) in [
        (FirestoreOptions { project: String::new(), ..options.clone() }, "project"),
        (FirestoreOptions { database: "a/b".to_owned(), ..options.clone() }, "database"),
        (FirestoreOptions { collection: "a/b".to_owned(), ..options.clone() }, "collection"),
        (FirestoreOptions { endpoint: Some("127.0.0.1:80".to_owned()), ..options.clone() }, "endpoint"),
    ] {
        let error = FirestoreSource::new(&changed).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Configuration);
        assert!(error.to_string().contains(word) && error.to_string().contains("write"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_devices_in_any_order_are_read_once_each() {
    let Some(emulator) = FirestoreEmulator::shared("a_hundred_devices") else { return };
    let ids: Vec<String> = (0..100).map(|n| format!("dev-{n}")).collect();
    emulator.put_documents("hundred", "devices", ids.iter().map(|id| (id.clone(), document(id))));
    let counting = Arc::new(Counting::new(source(emulator, "hundred")));
    let ages = Ages { max: HOUR, negative: HOUR };
    let cache = Lru::new(1_000, ages, Some(Arc::clone(&counting) as _)).unwrap();
    // Five workers at once, each with chunks that name devices several times and in another order.
    let worker = |offset: usize| {
        let (cache, ids) = (&cache, &ids);
        async move {
            for round in 0..20 {
                let place = |n: usize| (n * 37 + offset * 13 + round * 7) % ids.len();
                let chunk: Vec<&str> = (0..150).map(|n| ids[place(n)].as_str()).collect();
                for (id, answer) in chunk.iter().zip(cache.fetch(&chunk).await) {
                    assert_eq!(answer.unwrap().value, Some(device(id)));
                }
            }
        }
    };
    join_all((0..5).map(worker)).await;
    assert_eq!(counting.reads(), 100);
}

/// Counts the distinct documents that each call to the source asks for, which is what Google charges.
struct Counting {
    source: FirestoreSource,
    reads: std::sync::atomic::AtomicUsize,
}

impl Counting {
    fn new(source: FirestoreSource) -> Self {
        Self { source, reads: 0.into() }
    }

    fn reads(&self) -> usize {
        self.reads.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Fetcher<Enrichment> for Counting {
    fn fetch<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> futures_util::future::BoxFuture<'a, Vec<cache::FetchResult<Enrichment>>> {
        let distinct: std::collections::HashSet<&&str> = keys.iter().collect();
        self.reads.fetch_add(distinct.len(), std::sync::atomic::Ordering::SeqCst);
        self.source.fetch(keys)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_tells_what_is_added_changed_and_removed() {
    let Some(emulator) = FirestoreEmulator::start("the_listener_tells") else { return };
    emulator.put_documents("listener", "devices", ["a", "b"].map(|id| (id.to_owned(), document(id))));
    let mut changes = source(&emulator, "listener").changes();
    listening(&mut changes, &emulator, "listener").await;
    emulator.put_document("listener", "others", "elsewhere", &json!({"n": 1}));
    for (id, data) in [("new", Some(1)), ("a", Some(2)), ("new", None), ("b", None)] {
        match data {
            Some(n) => emulator.put_document("listener", "devices", id, &json!({"n": n})),
            None => emulator.delete_document("listener", "devices", id),
        }
        assert!(concerns(&next(&mut changes).await, id), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_goes_on_after_firestore_was_away() {
    let Some(mut emulator) = FirestoreEmulator::start("the_listener_goes_on") else { return };
    let mut changes = source(&emulator, "resumed").changes();
    listening(&mut changes, &emulator, "resumed").await;
    emulator.stop();
    assert!(timeout(Duration::from_secs(1), changes.next()).await.is_err(), "nothing is heard meanwhile");
    // It comes back without its documents.
    emulator.restart();
    listening(&mut changes, &emulator, "resumed").await;
    emulator.put_document("resumed", "devices", "a", &document("a"));
    assert!(concerns(&next(&mut changes).await, "a"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_look_up_fills_the_whole_chain_and_a_change_empties_it_of_that_device() {
    let Some(emulator) = FirestoreEmulator::start("the_first_look_up_fills") else { return };
    let Some(redis) = Redis::start("the_first_look_up_fills") else { return };
    emulator.put_document("chain", "devices", "a", &document("a"));
    let firestore = Arc::new(source(&emulator, "chain"));
    let options = RedisOptions { url: redis.url(), timeout: PATIENCE, ..RedisOptions::default() };
    let store = Arc::new(RedisStore::open(&options).await.unwrap());
    let ages = Ages { max: HOUR, negative: HOUR };
    let chain = || {
        let layer = Layered::new(Arc::clone(&store), Some(Arc::clone(&firestore) as _));
        Lru::new(10, ages, Some(Arc::new(layer))).unwrap()
    };
    let (one, other) = (chain(), chain());
    assert_eq!(fetch_one(&one, "a").await.unwrap().value, Some(device("a")));
    store.flush().await.unwrap();
    let mut changes = firestore.changes();
    listening(&mut changes, &emulator, "chain").await;

    emulator.delete_document("chain", "devices", "a");
    assert_eq!(fetch_one(&one, "a").await.unwrap().value, Some(device("a")), "from memory");
    assert_eq!(fetch_one(&other, "a").await.unwrap().value, Some(device("a")), "from Redis");
    match next(&mut changes).await {
        Change::Key(key) => one.invalidate(&key).await.unwrap(),
        Change::All => one.invalidate_all().await.unwrap(),
    }
    assert_eq!(fetch_one(&one, "a").await.unwrap().value, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_conforms_and_ends_with_its_age() {
    let Some(emulator) = FirestoreEmulator::shared("presence_conforms") else { return };
    let options = FirestoreOptions { collection: "here".to_owned(), ..options(emulator, "presence") };
    let presence = FirestorePresence::new(&options, HOUR, Arc::new(SystemClock)).unwrap();
    presence_suite(&presence).await;
    presence.set("a", "1".into()).await.unwrap();
    let stored = emulator.document("presence", "here", "a").unwrap();
    assert_eq!(stored["value"]["stringValue"], "1");
    assert!(stored["expires_at"]["timestampValue"].is_string(), "{stored}");

    let brief = FirestorePresence::new(&options, Duration::ZERO, Arc::new(SystemClock)).unwrap();
    assert_eq!(brief.fetch("a").await.unwrap(), None, "older than it may be");
    assert_eq!(presence.fetch("a").await.unwrap().as_deref(), Some("1"));
    let error = presence.set("a/b", "1".into()).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Permanent, "{error}");
}

//! The layer and the presence cache against a real Redis.
#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use cache::{Ages, FetchError, Fetched, Fetcher, Layered, Lru, PresenceCache, Store, fetch_one};
use cache_redis::{RedisOptions, RedisPresence, RedisStore};
use futures_util::future::{BoxFuture, FutureExt};
use messagepipeline::{Enrichment, ErrorClass};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use testkit::cache_suite::{CountingSource, LayerFeatures, device, layer_suite, presence_suite};
use testkit::servers::Redis;
use tokio::time::{sleep, timeout};

const HOUR: Duration = Duration::from_secs(3600);

/// Patient, because the machine that runs the tests may be busy.
fn options(redis: &Redis, namespace: &str) -> RedisOptions {
    RedisOptions {
        url: redis.url(),
        namespace: namespace.to_owned(),
        timeout: Duration::from_secs(20),
        ..RedisOptions::default()
    }
}

/// Gives up soon, for tests in which Redis does not answer.
fn impatient(redis: &Redis, namespace: &str) -> RedisOptions {
    RedisOptions { timeout: Duration::from_millis(200), ..options(redis, namespace) }
}

async fn store(options: &RedisOptions) -> RedisStore<Enrichment> {
    RedisStore::open(options).await.unwrap()
}

async fn get(store: &RedisStore<Enrichment>, key: &str) -> Option<Fetched<Enrichment>> {
    store.get(&[key]).await.unwrap().pop().unwrap()
}

async fn put(store: &RedisStore<Enrichment>, key: &str, fetched: Fetched<Enrichment>) {
    store.put(vec![(key.into(), fetched)]);
    store.flush().await.unwrap();
}

fn found(key: &str) -> Fetched<Enrichment> {
    Fetched::new(Some(device(key)))
}

/// The whole key of `key`'s entry, and what Redis holds there.
fn entry(redis: &Redis, namespace: &str, key: &str) -> (String, Option<String>) {
    let generation = redis.command(&["GET", &format!("{namespace}:v1:generation")]).unwrap();
    let key = format!("{namespace}:v1:{generation}:{key}");
    let value = redis.command(&["GET", &key]);
    (key, value)
}

/// Repeats `attempt` until it brings something.
async fn until<T>(what: &str, attempt: impl AsyncFn() -> Option<T>) -> T {
    let trying = async {
        loop {
            if let Some(found) = attempt().await {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), trying).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

/// Reads what it has put, so that the suite can count calls; otherwise writing is left to its own time.
struct Settled(Arc<RedisStore<Enrichment>>);

impl Store<Enrichment> for Settled {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn get<'a>(
        &'a self,
        keys: &'a [&'a str],
    ) -> BoxFuture<'a, Result<Vec<Option<Fetched<Enrichment>>>, FetchError>> {
        async move {
            self.0.flush().await?;
            self.0.get(keys).await
        }
        .boxed()
    }

    fn put(&self, entries: Vec<(Box<str>, Fetched<Enrichment>)>) {
        self.0.put(entries);
    }

    fn remove<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        self.0.remove(key)
    }

    fn clear(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        self.0.clear()
    }
}

#[tokio::test]
async fn the_layer_over_redis_conforms_alone_and_below_the_cache_in_memory() {
    let Some(redis) = Redis::start("the_layer_over_redis_conforms") else { return };
    let count = AtomicUsize::new(0);
    let layer = |source| {
        let namespace = format!("suite-{}", count.fetch_add(1, Ordering::Relaxed));
        // A request for each two keys, so that answers are put together again.
        let options = RedisOptions { chunk: 2, ..options(&redis, &namespace) };
        Layered::new(Settled(Arc::new(RedisStore::new(&options).unwrap())), Some(source))
    };
    layer_suite(layer, LayerFeatures::default()).await;
    let ages = Ages { max: HOUR, negative: HOUR };
    let chain = |source| Lru::new(1_000, ages, Some(Arc::new(layer(source)))).unwrap();
    layer_suite(chain, LayerFeatures { single_flight: true }).await;
}

#[tokio::test]
async fn values_lie_as_json_under_namespaced_keys_until_their_age_and_then_the_source_is_asked() {
    let Some(redis) = Redis::start("values_lie_as_json") else { return };
    let source = CountingSource::with_keys(["dev-1"]);
    let options = RedisOptions { negative_age: HOUR / 2, ..options(&redis, "ages") };
    let layer = Layered::new(Settled(Arc::new(store(&options).await)), Some(Arc::clone(&source) as _));
    layer.fetch(&["dev-1", "dev-2"]).await.into_iter().for_each(|answer| drop(answer.unwrap()));
    layer.fetch(&["dev-1", "dev-2"]).await.into_iter().for_each(|answer| drop(answer.unwrap()));
    assert_eq!(source.keys_read(), 2);

    let (key, value) = entry(&redis, "ages", "dev-1");
    assert_eq!(value.as_deref(), device("dev-1").text());
    let left: u128 = redis.command(&["PTTL", &key]).unwrap().parse().unwrap();
    assert!(left > HOUR.as_millis() && left <= 2 * HOUR.as_millis(), "two hours: {left} ms");
    let (absent, value) = entry(&redis, "ages", "dev-2");
    assert_eq!(value.as_deref(), Some("null"));
    let left: u128 = redis.command(&["PTTL", &absent]).unwrap().parse().unwrap();
    assert!(left > HOUR.as_millis() / 4 && left <= HOUR.as_millis() / 2, "half an hour: {left} ms");

    redis.command(&["PEXPIRE", &key, "0"]);
    assert_eq!(fetch_one(&layer, "dev-1").await.unwrap().value, Some(device("dev-1")));
    assert_eq!(source.keys_read(), 3);
}

#[tokio::test]
async fn an_answer_may_be_used_for_the_time_that_remains_and_never_longer_than_the_layer_below_allows() {
    let Some(redis) = Redis::start("an_answer_may_be_used") else { return };
    let store = store(&options(&redis, "left")).await;
    put(&store, "a", found("a")).await;
    let (key, _) = entry(&redis, "left", "a");
    redis.command(&["PEXPIRE", &key, "60000"]);
    let fresh_for = get(&store, "a").await.unwrap().fresh_for;
    assert!(fresh_for > HOUR / 120 && fresh_for <= HOUR / 60, "{fresh_for:?}");
    redis.command(&["PERSIST", &key]);
    assert_eq!(get(&store, "a").await.unwrap().fresh_for, 2 * HOUR, "what has no age gets the layer's");

    put(&store, "b", Fetched { fresh_for: HOUR / 60, ..found("b") }).await;
    let fresh_for = get(&store, "b").await.unwrap().fresh_for;
    assert!(fresh_for > HOUR / 120 && fresh_for <= HOUR / 60, "{fresh_for:?}");
}

#[tokio::test]
async fn what_cannot_be_read_is_a_miss_and_is_written_over() {
    let Some(redis) = Redis::start("what_cannot_be_read") else { return };
    let source = CountingSource::with_keys(["a"]);
    let store = Arc::new(store(&options(&redis, "garbage")).await);
    let layer = Layered::new(Settled(Arc::clone(&store)), Some(Arc::clone(&source) as _));
    fetch_one(&layer, "a").await.unwrap();
    store.flush().await.unwrap();
    let (key, whole) = entry(&redis, "garbage", "a");
    for (round, garbage) in ["", "{\"client_id\":", "[1]", "\u{1}\u{2}", "nul"].into_iter().enumerate() {
        redis.command(&["SET", &key, garbage]);
        assert_eq!(fetch_one(&layer, "a").await.unwrap().value, Some(device("a")));
        assert_eq!(source.calls(), round + 2);
        fetch_one(&layer, "a").await.unwrap();
        assert_eq!(source.calls(), round + 2, "{garbage:?} was not written over");
        assert_eq!(entry(&redis, "garbage", "a").1, whole);
    }
    redis.command(&["DEL", &key]);
    redis.command(&["LPUSH", &key, "a list"]);
    assert_eq!(fetch_one(&layer, "a").await.unwrap().value, Some(device("a")));
}

/// Counts warnings.
struct Warnings(Arc<AtomicUsize>);

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[tokio::test]
async fn garbage_in_the_place_of_the_generation_is_replaced_for_all_replicas_and_said_once() {
    let Some(redis) = Redis::start("garbage_in_the_place_of_the_generation") else { return };
    let warnings = Arc::new(AtomicUsize::new(0));
    let _listening = tracing::subscriber::set_default(Warnings(Arc::clone(&warnings)));
    let key = "spoilt:v1:generation";
    let (one, other) = (store(&options(&redis, "spoilt")).await, store(&options(&redis, "spoilt")).await);
    let spoil: [&[&str]; 4] =
        [&["SET", key, "garbage"], &["SET", key, ""], &["SET", key, "-1"], &["LPUSH", key, "a list"]];
    for (round, command) in spoil.into_iter().enumerate() {
        put(&one, "a", found("a")).await;
        redis.command(&["DEL", key]);
        redis.command(command);
        assert!(get(&one, "a").await.is_none(), "{command:?}: nothing of an unknown generation is trusted");
        redis.command(&["GET", key]).unwrap().parse::<u64>().unwrap();
        put(&one, "b", found("b")).await;
        assert!(get(&one, "b").await.is_some(), "{command:?}");
        assert!(get(&other, "b").await.is_none() && get(&other, "b").await.is_some(), "one look to follow");
        assert_eq!(warnings.load(Ordering::Relaxed), round + 1, "{command:?}");
    }
    redis.command(&["SET", key, "garbage"]);
    let late = store(&options(&redis, "spoilt")).await;
    put(&late, "c", found("c")).await;
    assert!(get(&late, "c").await.is_some(), "a replica that starts meets it too");
}

#[tokio::test]
async fn tls_is_spoken_with_an_authority_of_ones_own_and_a_wrong_one_is_told_clearly() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (certificate, key) = authority.server(folder.path());
    let Some(redis) = Redis::start_with_tls("tls_is_spoken", &certificate, &key) else { return };
    let tls = |root: Option<String>| RedisOptions {
        url: redis.tls_url(),
        root_certificate: root.map(String::into_bytes),
        ..options(&redis, "tls")
    };
    let right = store(&tls(Some(authority.pem.clone()))).await;
    put(&right, "a", found("a")).await;
    assert!(get(&right, "a").await.is_some());

    for wrong in [tls(Some(Authority::new().pem)), tls(None)] {
        let store = RedisStore::<Enrichment>::new(&wrong).unwrap();
        let error = store.get(&["a"]).await.unwrap_err();
        let words = error.to_string();
        assert!(words.contains("certificate") && words.contains("localhost:"), "{words}");
        assert!(words.contains("authority"), "{words}");
        assert_eq!(error.class(), ErrorClass::Configuration, "{words}");
    }
    let plain = RedisOptions { url: redis.tls_url().replace("rediss://", "redis://"), ..tls(None) };
    let error = RedisStore::<Enrichment>::new(&plain).unwrap().get(&["a"]).await.unwrap_err();
    let words = error.to_string();
    assert!(
        words.contains("localhost:") && words.contains("is it a TLS port? then write rediss://"),
        "{words}"
    );
}

/// Signs certificates of servers.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// Files with a certificate for this machine, and its key.
    fn server(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (certificate_file, key_file) = (folder.join("server.pem"), folder.join("server.key"));
        std::fs::write(&certificate_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        (certificate_file, key_file)
    }
}

#[tokio::test]
async fn ids_of_any_bytes_are_entries_of_their_own() {
    let Some(redis) = Redis::start("ids_of_any_bytes") else { return };
    let store = store(&options(&redis, "hostile")).await;
    let ids = ["", ":", "generation", "a\r\nFLUSHALL\r\n", "{slot}", "*", "\0", "é\u{202e}", "v1:", " "];
    store.put(ids.iter().map(|id| (Box::from(*id), found(id))).collect());
    store.flush().await.unwrap();
    let read = store.get(&ids).await.unwrap();
    let expected: Vec<_> = ids.iter().map(|id| Some(device(id))).collect();
    assert_eq!(read.into_iter().map(|entry| entry.unwrap().value).collect::<Vec<_>>(), expected);
    store.remove("*").await.unwrap();
    assert!(get(&store, "*").await.is_none() && get(&store, ":").await.is_some());
}

#[tokio::test]
async fn clearing_reaches_every_replica_and_no_other_namespace() {
    let Some(redis) = Redis::start("clearing_reaches") else { return };
    let one = store(&options(&redis, "shared")).await;
    let other = store(&options(&redis, "shared")).await;
    let foreign = store(&options(&redis, "foreign")).await;
    put(&one, "a", found("a")).await;
    put(&foreign, "a", found("a")).await;
    assert!(get(&other, "a").await.is_some());
    one.clear().await.unwrap();
    assert!(get(&one, "a").await.is_none() && get(&other, "a").await.is_none());
    put(&other, "b", found("b")).await;
    assert!(get(&one, "b").await.is_some(), "the other replica writes what all can read");
    assert!(get(&foreign, "a").await.is_some());

    redis.command(&["DEL", "shared:v1:generation"]);
    assert!(get(&one, "b").await.is_none(), "without its generation nothing is trusted");
    put(&one, "c", found("c")).await;
    assert!(get(&other, "c").await.is_none() && get(&other, "c").await.is_some(), "one look to follow");
}

#[tokio::test]
async fn an_entry_put_before_its_removal_never_comes_back() {
    let Some(redis) = Redis::start("an_entry_put_before") else { return };
    let store = store(&options(&redis, "order")).await;
    assert!(get(&store, "a").await.is_none());
    for _ in 0..200 {
        store.put(vec![("a".into(), found("a"))]);
        store.remove("a").await.unwrap();
        assert!(get(&store, "a").await.is_none());
    }
}

#[tokio::test]
async fn look_ups_go_on_while_redis_is_killed_and_use_it_again_when_it_is_back() {
    let Some(mut redis) = Redis::start("look_ups_go_on") else { return };
    let keys: Vec<String> = (0..100).map(|n| format!("dev-{n}")).collect();
    let source = CountingSource::with_keys(keys.iter().map(String::as_str));
    let layer = Layered::new(store(&impatient(&redis, "killed")).await, Some(Arc::clone(&source) as _));
    for (n, key) in keys.iter().enumerate() {
        if n == 50 {
            redis.kill();
        }
        assert_eq!(fetch_one(&layer, key).await.unwrap().value, Some(device(key)));
    }
    redis.restart();
    until("a hit after the restart", async || {
        let before = source.calls();
        fetch_one(&layer, "dev-1").await.unwrap();
        (source.calls() == before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_hangs_costs_a_few_deadlines_and_then_nothing_until_it_answers() {
    let Some(redis) = Redis::start("a_redis_that_hangs") else { return };
    let store = store(&impatient(&redis, "hangs")).await;
    put(&store, "a", found("a")).await;
    redis.freeze();
    let mut timeouts = 0;
    loop {
        let error = store.get(&["a"]).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Transient);
        if error.to_string().contains("is not asked for") {
            break;
        }
        timeouts += 1;
        assert!(timeouts <= 3, "{error}");
    }
    redis.thaw();
    until("a hit after the thaw", async || store.get(&["a"]).await.ok()?.pop()?).await;
}

#[tokio::test]
async fn what_could_not_be_removed_is_not_read_again() {
    let Some(redis) = Redis::start("what_could_not_be_removed") else { return };
    for (needed, all) in [("unlink", false), ("time", true)] {
        let namespace = format!("unremoved-{needed}");
        let store = store(&options(&redis, &namespace)).await;
        put(&store, "a", found("a")).await;
        redis.command(&["ACL", "SETUSER", "default", &format!("-{needed}")]);
        let removed = if all { store.clear().await } else { store.remove("a").await };
        assert_eq!(removed.unwrap_err().class(), ErrorClass::Configuration);
        assert!(entry(&redis, &namespace, "a").1.is_some(), "it is still there");
        redis.command(&["ACL", "SETUSER", "default", &format!("+{needed}")]);
        let read = until("an answer", async || store.get(&["a"]).await.ok()).await;
        assert_eq!(read, [None]);
        put(&store, "a", found("a")).await;
        assert!(get(&store, "a").await.is_some());
    }
}

#[tokio::test]
async fn a_redis_that_is_not_there_or_refuses_stops_no_start_and_is_named_without_its_password() {
    let Some(redis) = Redis::start_with("a_redis_that_refuses", &["--requirepass", "right"]) else { return };
    let url = |user: &str| redis.url().replace("redis://", &format!("redis://{user}"));
    for (address, class) in [
        (url(":wrong-secret@"), ErrorClass::Configuration),
        (url(""), ErrorClass::Configuration),
        ("redis://:wrong-secret@127.0.0.1:1".to_owned(), ErrorClass::Transient),
    ] {
        let options = RedisOptions { url: address, ..options(&redis, "refused") };
        let store = RedisStore::<Enrichment>::new(&options).unwrap();
        let error = store.get(&["a"]).await.unwrap_err();
        assert_eq!(error.class(), class, "{error}");
        let shown = format!("{error} {error:?} {options:?} {store:?}");
        assert!(error.to_string().contains("127.0.0.1:") && !shown.contains("wrong-secret"), "{shown}");
        let source = CountingSource::with_keys(["a"]);
        let layer = Layered::new(RedisStore::open(&options).await.unwrap(), Some(source as _));
        assert_eq!(fetch_one(&layer, "a").await.unwrap().value, Some(device("a")));
    }
    let password = Some("right".to_owned());
    for right in [
        RedisOptions { url: url(":right@"), ..options(&redis, "right") },
        RedisOptions { password, ..options(&redis, "right") },
    ] {
        let right = store(&right).await;
        put(&right, "a", found("a")).await;
        assert!(get(&right, "a").await.is_some());
    }
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_with_what_would_be_right() {
    for (url, namespace) in [("127.0.0.1:6379", "n"), ("http://:wrong-secret@h", "n"), ("", "n")] {
        let options =
            RedisOptions { url: url.to_owned(), namespace: namespace.to_owned(), ..RedisOptions::default() };
        let error = RedisStore::<Enrichment>::new(&options).unwrap_err();
        assert!(error.to_string().contains("write redis://HOST:PORT"), "{error}");
        assert!(!error.to_string().contains("wrong-secret"), "{error}");
        assert_eq!(error.class(), ErrorClass::Configuration);
    }
    for namespace in ["", "a:b", "ä", &"n".repeat(65)] {
        let options = RedisOptions { namespace: namespace.to_owned(), ..RedisOptions::default() };
        let error = RedisStore::<Enrichment>::new(&options).unwrap_err();
        assert!(error.to_string().contains("write 1 to 64 letters"), "{error}");
    }
}

#[tokio::test]
async fn presence_conforms_and_ends_with_its_age_unless_it_is_set_again() {
    let Some(redis) = Redis::start("presence_conforms") else { return };
    let options = options(&redis, "here");
    let presence = RedisPresence::<Arc<str>>::new(&options).unwrap();
    presence_suite(&presence).await;

    presence.set("a", "1".into()).await.unwrap();
    let left = || redis.command(&["PTTL", "here:presence:a"]).unwrap().parse::<u128>().unwrap();
    assert!(left() > HOUR.as_millis() && left() <= 2 * HOUR.as_millis());
    redis.command(&["PEXPIRE", "here:presence:a", "60000"]);
    presence.set("a", "1".into()).await.unwrap();
    assert!(left() > HOUR.as_millis(), "setting again starts the age anew");
    redis.command(&["PEXPIRE", "here:presence:a", "0"]);
    assert_eq!(presence.fetch("a").await.unwrap(), None);

    presence.set("a", "1".into()).await.unwrap();
    store(&options).await.clear().await.unwrap();
    assert!(presence.fetch("a").await.unwrap().is_some(), "clearing the look-up cache leaves presence alone");
    redis.command(&["SET", "here:presence:a", "garbage"]);
    assert_eq!(presence.fetch("a").await.unwrap(), None);
}

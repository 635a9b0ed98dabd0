//! The device registry: imports, look-ups and the notice of changes.

#![allow(clippy::unwrap_used, reason = "a failing unwrap is a failing test")]

use cache::{Fetcher, fetch_one};
use embedded::registry::{Device, ImportReport, Importer, Refusal, Registry, RegistrySettings};
use messagepipeline::{Enrichment, ManualClock, Shutdown, Timestamp};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use testkit::cache_suite::source_suite;

fn new_registry() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("registry.db");
    (folder, path)
}

fn importer(path: &Path) -> Importer {
    Importer::open(path, Arc::new(ManualClock::new(Timestamp::from_micros(0)))).unwrap()
}

fn import(path: &Path, text: impl AsRef<[u8]>) -> ImportReport {
    importer(path).import(text.as_ref(), &mut |_| {}).unwrap()
}

fn open(path: &Path) -> Registry {
    Registry::open(path, RegistrySettings::default()).unwrap()
}

async fn enrichment(path: &Path, device: &str) -> Option<String> {
    let data = fetch_one(&open(path), device).await.unwrap().value?;
    // Through a map, because the order of columns is not promised.
    let fields: BTreeMap<_, _> = data.fields().cloned().unwrap_or_default().into_iter().collect();
    Some(serde_json::to_string(&fields).unwrap())
}

fn counts(report: &ImportReport) -> (u64, u64, u64, u64) {
    (report.added, report.changed, report.unchanged, report.refused)
}

fn refusals(report: &ImportReport) -> Vec<String> {
    report.refusals.iter().map(Refusal::to_string).collect()
}

#[tokio::test]
async fn it_conforms_as_a_source() {
    let (_folder, path) = new_registry();
    import(
        &path,
        "device_id,client_id,location_id,category\na,a,hall-3,sensor\nb,b,hall-3,sensor\nc,c,hall-3,sensor\n",
    );
    source_suite(&open(&path), &["a", "b", "c"], "x").await;
}

#[tokio::test]
async fn csv_and_ndjson_give_the_same_devices() {
    let csv =
        "\u{feff}category, device_id ,client_id,floor\r\nsensor,d1,\"Meier, \"\"M\"\"\",3\r\n\r\n,d2,,\r\n";
    let json = r#"
        {"device_id":"d1","client_id":"Meier, \"M\"","category":"sensor","floor":"3"}

        {"device_id":"d2","client_id":null,"category":""}"#;
    for text in [csv, json] {
        let (_folder, path) = new_registry();
        let report = import(&path, text);
        assert_eq!((counts(&report), refusals(&report)), ((2, 0, 0, 0), vec![]));
        let expected = r#"{"category":"sensor","client_id":"Meier, \"M\"","floor":"3"}"#;
        assert_eq!(enrichment(&path, "d1").await.unwrap(), expected);
        assert_eq!(enrichment(&path, "d2").await.unwrap(), "{}");
    }
}

#[tokio::test]
async fn a_second_import_says_what_it_changed_and_a_line_replaces_the_whole_device() {
    let (_folder, path) = new_registry();
    import(&path, "device_id,client_id,floor\na,1,2\nb,1,2\nc,1,2\n");
    let report = import(&path, "device_id,client_id,floor\na,1,2\nb,1,3\nd,1,2\nd,9,2\n");
    assert_eq!(counts(&report), (1, 2, 1, 0), "the last line of a device stays");
    assert_eq!(enrichment(&path, "d").await.unwrap(), r#"{"client_id":"9","floor":"2"}"#);
    import(&path, "device_id,client_id\na,7\n");
    assert_eq!(enrichment(&path, "a").await.unwrap(), r#"{"client_id":"7"}"#);
    assert_eq!(enrichment(&path, "c").await.unwrap(), r#"{"client_id":"1","floor":"2"}"#);
}

#[tokio::test]
async fn each_bad_csv_line_is_refused_with_its_number_and_the_good_ones_are_kept() {
    let (_folder, path) = new_registry();
    let long = "x".repeat(70_000);
    let id = "i".repeat(513);
    let mut text = Vec::new();
    text.extend(b"device_id,client_id,note\n".iter());
    text.extend(b"good-1,c,n\n,c,n\n\nd,c\n".iter());
    text.extend(b"open,\"c,n\nd,c\xff,n\nd,c\x07,n\n d,c,n\n".iter());
    text.extend(format!("{id},c,n\nd,c,{long}\ngood-2,c,n").bytes());
    let report = import(&path, text);
    assert_eq!(
        refusals(&report),
        [
            "line 3: `device_id` is missing",
            "line 5: 2 fields where the header names 3; a field with a comma stands in quotes",
            "line 6: a quote is left open; a quote inside quotes is written twice",
            "line 7: the line is not UTF-8",
            "line 8: `client_id` holds a control character",
            "line 9: `device_id` begins or ends with a blank",
            "line 10: `device_id` has 513 bytes, and at most 512 are allowed",
            "line 11: the line is longer than 65536 bytes",
        ]
    );
    assert_eq!((counts(&report), report.lines()), ((2, 0, 0, 8), 10));
    assert!(enrichment(&path, "good-1").await.is_some() && enrichment(&path, "good-2").await.is_some());
}

#[test]
fn each_bad_json_line_is_refused_with_its_number() {
    let (_folder, path) = new_registry();
    let extra = "x".repeat(17_000);
    let text = format!(
        "{}\n[1]\n{{\"device_id\":\n{{\"device_id\":17}}\n{{\"device_id\":\"d\",\"category\":[]}}\n{}\n",
        r#"{"device_id":"good"}"#,
        format_args!(r#"{{"device_id":"d","note":"{extra}"}}"#),
    );
    let report = import(&path, text);
    assert_eq!(
        refusals(&report),
        [
            "line 2: not a JSON object: invalid type: sequence, expected a map, at column 0",
            "line 3: not a JSON object: EOF while parsing a value, at column 13",
            "line 4: `device_id` must be a text",
            "line 5: `category` must be a text",
            "line 6: `further columns` has 17011 bytes, and at most 16384 are allowed",
        ]
    );
    assert_eq!(counts(&report), (1, 0, 0, 5));
}

#[test]
fn a_file_without_a_usable_header_is_refused_as_a_whole() {
    for (text, expected) in [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("id,name\n1,2\n", "it names `id`, `name`"),
        ("device_id;client_id\n1;2\n", "it names `device_id;client_id`"),
        ("device_id,a,a\n", "it names `a` twice"),
        ("device_id,,b\n", "its column 2 has no usable name"),
        ("\"device_id\n", "a quote is left open"),
    ] {
        let (_folder, path) = new_registry();
        let error = importer(&path).import(text.as_bytes(), &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("must name the columns"), "{text:?}: {error}");
    }
}

#[test]
fn refusals_are_kept_in_bounded_number_and_all_counted() {
    let (_folder, path) = new_registry();
    let report = import(&path, format!("device_id\n{}", "\"\"\n".repeat(3_000)));
    assert_eq!((report.refused, report.refusals.len()), (3_000, 1_000));
}

struct FailsAfter(usize);

impl Read for FailsAfter {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other("the stick was pulled out"));
        }
        self.0 -= 1;
        let line = format!("{{\"device_id\":\"d{}\",\"note\":\"{:10000}\"}}\n", self.0, self.0);
        buffer[..line.len()].copy_from_slice(line.as_bytes());
        Ok(line.len())
    }
}

#[tokio::test]
async fn a_source_that_breaks_off_leaves_whole_steps() {
    let (_folder, path) = new_registry();
    let source = BufReader::with_capacity(16 * 1024, FailsAfter(1_000));
    let mut steps = Vec::new();
    let error = importer(&path).import(source, &mut |report| steps.push(report.lines())).unwrap_err();
    assert!(error.to_string().contains("the stick was pulled out"), "{error}");
    assert!(steps.len() == 2 && steps[1] < 1_000, "4 MiB a step: {steps:?}");
    assert_eq!(open(&path).count().await.unwrap(), steps[1]);
}

#[tokio::test]
async fn the_registry_is_listed_in_pages() {
    let (_folder, path) = new_registry();
    let lines: Vec<String> = (0..25).map(|n| format!("{{\"device_id\":\"d{n:02}\",\"n\":{n}}}")).collect();
    import(&path, lines.join("\n"));
    let registry = open(&path);
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = registry.list(after.as_deref(), 10).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.device_id.clone());
        seen.extend(page.into_iter().map(|device| device.device_id));
    }
    assert_eq!(seen, (0..25).map(|n| format!("d{n:02}")).collect::<Vec<_>>());
    let device: Device = registry.get("d07").await.unwrap().unwrap();
    assert_eq!(device.extra.get("n").unwrap(), 7);
    assert_eq!(registry.get("x").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_by_somebody_else_is_noticed_and_seen_while_the_registry_is_in_use() {
    let (_folder, path) = new_registry();
    let settings = RegistrySettings { poll: Duration::from_millis(5), ..RegistrySettings::default() };
    let registry = Registry::open(&path, settings).unwrap();
    let (mut changes, shutdown) = (registry.changes(), Shutdown::new());
    let watching = tokio::spawn({
        let (registry, shutdown) = (registry.clone(), shutdown.clone());
        async move { registry.watch(shutdown).await }
    });
    changes.changed().await.unwrap();
    for round in 0..3 {
        let key = format!("d{round}");
        assert_eq!(fetch_one(&registry, &key).await.unwrap().value, None);
        let (file, line) = (path.clone(), format!("device_id,client_id\n{key},{round}\n"));
        tokio::task::spawn_blocking(move || import(&file, line)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(30), changes.changed()).await.unwrap().unwrap();
        let found = fetch_one(&registry, &key).await.unwrap().value.unwrap();
        assert_eq!(found.get("client_id").unwrap(), &round.to_string());
    }
    shutdown.begin();
    watching.await.unwrap();
}

#[tokio::test]
async fn a_registry_that_cannot_be_read_fails_every_key_and_recovers() {
    let (_folder, path) = new_registry();
    import(&path, "device_id\na\n");
    let registry = open(&path);
    let writer = rusqlite::Connection::open(&path).unwrap();
    writer.execute_batch("ALTER TABLE devices RENAME TO hidden").unwrap();
    let failed = registry.fetch(&["a", "x"]).await;
    assert!(failed.len() == 2 && failed.iter().all(Result::is_err), "{failed:?}");
    writer.execute_batch("ALTER TABLE hidden RENAME TO devices").unwrap();
    assert_eq!(fetch_one(&registry, "a").await.unwrap().value, Some(Enrichment::none()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the file holds: no panic, and every line is in exactly one count.
    #[test]
    fn any_bytes_are_imported_or_refused_line_by_line(
        lines in proptest::collection::vec("[a-c\",{}:\\\\\u{1}\u{e9} ]{0,12}", 0..12), json in any::<bool>(),
    ) {
        let (_folder, path) = new_registry();
        let head = if json { "{\"device_id\":\"d\"}\n" } else { "device_id,client_id\n" };
        let report = import(&path, format!("{head}{}", lines.join("\n")));
        let expected = lines.iter().filter(|line| !line.trim().is_empty()).count() + usize::from(json);
        prop_assert_eq!(report.lines(), expected as u64);
    }
}

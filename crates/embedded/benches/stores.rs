//! CPU per message of the warehouse and of the archive, mapping and encoding included.
//!
//! `cargo bench -p embedded --bench stores [-- MESSAGES]`. With `MILLSTREAM_RECORDINGS` naming a folder of gzipped
//! recordings the payloads are theirs, else they are made up. The folder is `TMPDIR`'s.

#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a bench"
)]

use bqstore::{Columns, RowInserter, RowMapper, RowProcessor};
use bytes::Bytes;
use embedded::archive::Archive;
use embedded::warehouse::Warehouse;
use icestore::{ArchiveProcessor, ArchiveSettings, BatchKey, Compression, ObjectStore};
use messagepipeline::{
    Attributes, BatchOutcome, BatchProcessor, Enrichment, IdGenerator, Item, Message, SystemClock, Timestamp,
};
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::time::Duration;

const BATCH: usize = 1_000;

fn main() {
    let count = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(100_000);
    let messages = messages(count);
    let bytes: usize = messages.iter().map(|message| message.payload.len()).sum();
    println!("{count} messages of {} B, {BATCH} at a time", bytes / count);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        warehouse(&messages).await;
        archive(&messages, Compression::Gzip).await;
        archive(&messages, Compression::Zstd).await;
    });
}

async fn warehouse(messages: &[Message]) {
    let folder = tempfile::tempdir().expect("a folder");
    let columns = Columns::default();
    let mapper = RowMapper::new(columns.clone());
    let started = cpu_time();
    for message in messages {
        std::hint::black_box(mapper.map(message).expect("a row"));
    }
    report("map to rows", messages, cpu_time() - started, "");
    let path = folder.path().join("warehouse.db");
    let table = Arc::new(Warehouse::open(&path, "messages", &columns).expect("a table"));
    let processor = RowProcessor::new(table.clone());
    for pass in ["store rows, mapped", "the same again"] {
        let started = cpu_time();
        for messages in messages.chunks(BATCH) {
            let row =
                |message: &Message| Item::detached(message.clone(), mapper.map(message).expect("a row"));
            let batch: Vec<_> = messages.iter().map(row).collect();
            done(processor.process(&batch).await);
        }
        report(pass, messages, cpu_time() - started, "");
    }
    table.close().await.expect("closed");
}

async fn archive(messages: &[Message], compression: Compression) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let archive = Archive::open(&path("archive.db"), &path("archive"), &path("archive-tmp"), None);
    let archive = Arc::new(archive.expect("an archive"));
    let settings = ArchiveSettings { compression, ..ArchiveSettings::default() };
    let processor = ArchiveProcessor::new(archive.clone(), settings, Arc::new(SystemClock));
    let key = BatchKey::new(Timestamp::default(), Some("location"));
    let started = cpu_time();
    for messages in messages.chunks(BATCH) {
        let item = |message: &Message| Item::detached(message.clone(), key.clone());
        let batch: Vec<_> = messages.iter().map(item).collect();
        done(processor.process(&batch).await);
    }
    let spent = cpu_time() - started;
    archive.close().await.expect("closed");
    let reader =
        embedded::archive::ArchiveReader::open(&path("archive.db"), &path("archive"), &path("archive-tmp"));
    let summary = reader.and_then(|reader| reader.summary()).expect("a summary");
    let bytes: usize = messages.iter().map(|message| message.payload.len()).sum();
    let ratio = format!(", payloads to objects {:.1} : 1", bytes as f64 / summary.bytes as f64);
    report(&format!("archive, {compression:?}"), messages, spent, &ratio);
}

fn done(outcome: BatchOutcome) {
    assert!(matches!(outcome, BatchOutcome::Done), "{outcome:?}");
}

fn report(what: &str, messages: &[Message], spent: Duration, more: &str) {
    println!("{what}: {:.2} us CPU per message{more}", spent.as_secs_f64() * 1e6 / messages.len() as f64);
}

fn messages(count: usize) -> Vec<Message> {
    let payloads =
        std::env::var("MILLSTREAM_RECORDINGS").map_or_else(|_| made_up(), |folder| recorded(&folder));
    let ids = IdGenerator::default();
    let attributes: Attributes =
        [("device_id", "sensor-0001"), ("mqtt_topic", "devices/sensor-0001/up"), ("route_name", "all")]
            .into_iter()
            .collect();
    let text = r#"{"client_id":"client-1","location_id":"location-1","category":"sensor"}"#;
    let enrichment = Enrichment::from_text(text).expect("an object");
    let message = |payload: &Bytes| {
        let mut message =
            Message::new(ids.next_id(), payload.clone(), Timestamp::from_micros(1_672_867_882_661_042));
        message.attributes = attributes.clone();
        message.enrichment = enrichment.clone();
        message
    };
    payloads.iter().cycle().take(count).map(message).collect()
}

fn recorded(folder: &str) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "gz") {
            let file = std::fs::File::open(path).expect("a recording");
            let lines = icestore::decompress(".jsonl.gz", file).expect("a decoder");
            payloads.extend(BufReader::new(lines).lines().map(|line| Bytes::from(line.expect("a line"))));
        }
    }
    payloads
}

fn made_up() -> Vec<Bytes> {
    let reading =
        |n: u32, at: u32| format!(r#"{{"gateway":"gw-{}","rssi":-{},"snr":{}.25}}"#, at * 7, n % 120, n % 9);
    let payload = |n: u32| {
        let readings: Vec<_> = (0..20).map(|at| reading(n.wrapping_mul(2_654_435_761) >> 7, at)).collect();
        let n64 = 1_672_867_882_000 + u64::from(n);
        Bytes::from(format!(r#"{{"timestamp":{n64},"value":{n}.5,"gateways":[{}]}}"#, readings.join(",")))
    };
    (0..10_000).map(payload).collect()
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

//! Archiving from memory, 10 keys and 1,000 messages an object: CPU and size beside the raw compressor on the same
//! bytes. `cargo bench -p icestore --bench archive [-- MESSAGES]`.
//!
//! The whole service runs: transformer, batches by key, processor; the store keeps nothing. `MILLSTREAM_RECORDINGS`
//! names a folder of gzipped recordings, without it messages are made up. Lines that begin with `figure` are for
//! programs: name, value, unit, between tabs.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a program that prints a table"
)]

use futures_util::future::BoxFuture;
use icestore::{
    ArchiveObject, ArchiveProcessor, ArchiveSettings, ArchiveTransformer, Compression, KeyConfig, LineForm,
    LocationSources, ObjectStore, PutOutcome, encode_line,
};
use messagepipeline::{
    BatchLimits, BatchingService, Bytes, Enrichment, IdGenerator, ManualClock, Message, MessageId,
    ServiceOptions, Shutdown, StageError, Timestamp,
};
use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use testkit::scripted_consumer::{ScriptedConsumer, Step};

const KEYS: usize = 10;
const BATCH: usize = 1_000;
const RUNS: usize = 5;
/// Recorded payloads are taken up to this size, which brings them to 1.1 KB on average, as measured elsewhere.
const LARGEST: usize = 2_048;

/// Counts what it is given and forgets it.
#[derive(Default)]
struct Nowhere {
    bytes: AtomicU64,
    lines: AtomicU64,
}

impl ObjectStore for Nowhere {
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn known(&self, ids: Vec<MessageId>) -> BoxFuture<'_, Result<Vec<Option<u64>>, StageError>> {
        Box::pin(std::future::ready(Ok(vec![None; ids.len()])))
    }

    fn put(&self, object: ArchiveObject) -> BoxFuture<'_, Result<PutOutcome, StageError>> {
        self.bytes.fetch_add(object.bytes.len() as u64, Ordering::Relaxed);
        self.lines.fetch_add(object.lines.len() as u64, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(PutOutcome::Stored)))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StageError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

fn recorded() -> Vec<Bytes> {
    let Some(folder) = std::env::var_os("MILLSTREAM_RECORDINGS") else {
        let hotspot = |n| format!(r#"{{"id":"hotspot-{n}","rssi":-{},"snr":7.25,"channel":{n}}}"#, n * 7);
        let hotspots = (0..18).map(hotspot).collect::<Vec<_>>().join(",");
        let line =
            |n| format!(r#"{{"dev_eui":"0018B2000002{n:04}","fcnt":{n},"port":1,"hotspots":[{hotspots}]}}"#);
        return (0..4_096).map(|n| Bytes::from(line(n))).collect();
    };
    let mut text = Vec::new();
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.extension().is_some_and(|extension| extension == "gz") {
            let file = std::fs::File::open(path).unwrap();
            flate2::read::MultiGzDecoder::new(file).read_to_end(&mut text).unwrap();
        }
    }
    let text = Bytes::from(text);
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty() && line.len() <= LARGEST)
        .map(|line| text.slice_ref(line))
        .collect()
}

fn messages(count: usize) -> Vec<Message> {
    let (ids, payloads) = (IdGenerator::default(), recorded());
    let location = |n| Enrichment::from_text(&format!(r#"{{"location_id":"hall-{n}"}}"#)).unwrap();
    let locations: Vec<_> = (0..KEYS).map(location).collect();
    let message = |n: usize| {
        let received = Timestamp::from_micros(1_672_867_882_661_042 + n as i64 * 1_000);
        let mut message = Message::new(ids.next_id(), payloads[n % payloads.len()].clone(), received);
        message.attributes =
            [("mqtt_topic", "devices/a/up"), ("device_id", "0018B20000020001")].into_iter().collect();
        message.enrichment = locations[n % KEYS].clone();
        message
    };
    (0..count).map(message).collect()
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

/// CPU-seconds and bytes for all messages, by the service.
fn archive(messages: &[Message], compression: Compression) -> (f64, u64) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let store = Arc::new(Nowhere::default());
    let settings = ArchiveSettings { compression, ..ArchiveSettings::default() };
    let clock = Arc::new(ManualClock::new(Timestamp::default()));
    let processor = ArchiveProcessor::new(Arc::clone(&store) as _, settings, clock);
    let transformer = ArchiveTransformer::new(LocationSources::new(&KeyConfig::default()).unwrap());
    let limits = BatchLimits { count: BATCH, age: Duration::from_secs(60), ..BatchLimits::default() };
    let options = ServiceOptions { workers: 2, ..ServiceOptions::new("archive") };
    let chunks = messages.chunks(256).map(|chunk| Step::Chunk(chunk.to_vec()));
    let consumer = ScriptedConsumer::new(chunks.chain([Step::End]));
    let service = BatchingService::new(options, limits, consumer, transformer, processor)
        .keyed(|item| item.value.clone());
    let begun = cpu_seconds();
    let summary =
        runtime.block_on(async { tokio::spawn(service.run(Shutdown::new())).await.unwrap() }).unwrap();
    let seconds = cpu_seconds() - begun;
    assert_eq!(summary.done, messages.len() as u64, "{summary}");
    assert_eq!(store.lines.load(Ordering::Relaxed), messages.len() as u64);
    (seconds, store.bytes.load(Ordering::Relaxed))
}

/// The lines of each object, made before anything is measured.
fn objects(messages: &[Message]) -> Vec<Vec<u8>> {
    let mut objects = Vec::new();
    for key in 0..KEYS {
        let of_key: Vec<_> = messages.iter().skip(key).step_by(KEYS).collect();
        for part in of_key.chunks(BATCH) {
            let mut text = Vec::new();
            for message in part {
                let location = format!("2023/01/04/hall-{key}");
                encode_line(LineForm::Json, message, &location, Timestamp::default(), &mut text);
                text.push(b'\n');
            }
            objects.push(text);
        }
    }
    objects
}

/// CPU-seconds and bytes of the compressor alone.
fn floor(objects: &[Vec<u8>], compression: Compression) -> (f64, u64) {
    let begun = cpu_seconds();
    let sizes = objects.iter().map(|lines| match compression {
        Compression::Gzip => {
            let buffer = Vec::with_capacity(lines.len() / 4);
            let mut encoder = flate2::write::GzEncoder::new(buffer, flate2::Compression::new(6));
            encoder.write_all(lines).unwrap();
            encoder.finish().unwrap().len() as u64
        }
        Compression::Zstd => zstd::bulk::compress(lines, 3).unwrap().len() as u64,
    });
    let bytes = sizes.sum();
    (cpu_seconds() - begun, bytes)
}

/// The median of several runs by their CPU time.
fn median(run: impl Fn() -> (f64, u64)) -> (f64, u64) {
    let mut runs: Vec<_> = (0..RUNS).map(|_| run()).collect();
    runs.sort_by(|one, other| one.0.total_cmp(&other.0));
    runs[RUNS / 2]
}

fn main() {
    let count = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(100_000);
    let messages = messages(count);
    let objects = objects(&messages);
    let hundred_thousands = count as f64 / 1e5;
    let mean = messages.iter().map(|message| message.payload.len()).sum::<usize>() as f64 / count as f64;
    println!("{count} messages of {mean:.0} bytes, {} objects; median of {RUNS} runs", objects.len());
    for (name, compression) in [("gzip 6", Compression::Gzip), ("zstd 3", Compression::Zstd)] {
        let (floor_seconds, floor_bytes) = median(|| floor(&objects, compression));
        let (seconds, bytes) = median(|| archive(&messages, compression));
        for (what, value, unit) in [
            ("CPU", seconds / hundred_thousands, "CPU-s per 100,000"),
            ("compressor alone", floor_seconds / hundred_thousands, "CPU-s per 100,000"),
            ("ratio", seconds / floor_seconds, "times the compressor alone"),
            ("size", bytes as f64 / 1e6 / hundred_thousands, "MB per 100,000"),
            ("size, compressor alone", floor_bytes as f64 / 1e6 / hundred_thousands, "MB per 100,000"),
        ] {
            println!("{name:<8} {what:<24} {value:8.3} {unit}");
            println!("figure\tarchive: {name}, {what}\t{value:.3}\t{unit}");
        }
    }
}

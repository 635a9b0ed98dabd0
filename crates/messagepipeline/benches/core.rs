//! Messages per CPU-second that the two services move, with nothing around them:
//! `cargo bench -p messagepipeline [-- MESSAGES] [PART-OF-A-NAME]`.
//!
//! The source builds each message, keeps an ordered window of acknowledgements and bounds what is outstanding, as a
//! real consumer does; its own cost is measured beside the services'. That each message is acknowledged once is
//! checked. CPU time is the process's, so that helper threads count too. The JSON rows play recordings
//! (`MILLSTREAM_RECORDINGS` names a folder of gzipped ones) or made up messages of their size.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program that prints a table")]

mod source;

use messagepipeline::{
    BatchLimits, BatchingService, Bytes, Message, Outcome, ServiceOptions, Shutdown, StageError,
    StreamProcessor, StreamingService, Summary, transform_fn,
};
use serde::Deserialize;
use source::{PassThrough, Source, drain};
use std::io::Read;
use std::time::Duration;

/// Runs of each measurement; the median is printed.
const RUNS: usize = 5;

/// The same, but every call waits once.
struct Yielding;

impl StreamProcessor<usize> for Yielding {
    async fn process(&self, message: &Message, value: usize) -> Result<(), StageError> {
        tokio::task::yield_now().await;
        std::hint::black_box((message, value));
        Ok(())
    }
}

fn length(message: &Message) -> Outcome<usize> {
    Outcome::Emit(message.payload.len())
}

/// A device message with the fields that a rule would look at; the rest is checked and passed over.
#[derive(Deserialize)]
struct Reading<'a> {
    #[serde(borrow, alias = "devEui", alias = "deviceName")]
    dev_eui: Option<std::borrow::Cow<'a, str>>,
    #[serde(alias = "fCnt")]
    fcnt: Option<u64>,
    #[serde(alias = "fPort")]
    port: Option<u64>,
}

/// Parses the payload and sets two fields: what is malformed fails, all else is copied through.
fn set_two<'a>(payload: &'a Bytes, parse: impl Fn(&'a [u8]) -> Option<Reading<'a>>) -> Outcome<Bytes> {
    let Some(reading) = parse(payload) else {
        return Outcome::Fail(StageError::permanent("invalid-json", "the payload is not a device message"));
    };
    std::hint::black_box((&reading.dev_eui, reading.fcnt, reading.port));
    let end = payload.iter().rposition(|byte| *byte == b'}').unwrap_or(0);
    let mut text = Vec::with_capacity(payload.len() + 64);
    text.extend_from_slice(&payload[..end]);
    text.extend_from_slice(br#","site":"north","checked":true}"#);
    Outcome::Emit(Bytes::from(text))
}

/// Recorded payloads are taken up to this size, which brings them to 1.1 KB on average, as measured elsewhere.
const LARGEST: usize = 2_048;

fn payloads() -> Vec<Bytes> {
    let Some(folder) = std::env::var_os("MILLSTREAM_RECORDINGS") else {
        let hotspot = |n| format!(r#"{{"id":"hotspot-{n}","rssi":-{},"snr":7.25,"channel":{n}}}"#, n * 7);
        let hotspots = (0..18).map(hotspot).collect::<Vec<_>>().join(",");
        let line =
            |n| format!(r#"{{"dev_eui":"0018B2000002{n:04}","fcnt":{n},"port":1,"hotspots":[{hotspots}]}}"#);
        return (0..4_096).map(|n| Bytes::from(line(n))).collect();
    };
    let mut text = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
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

fn measure_json(threads: usize) {
    let payloads = payloads();
    let count = payloads.len() * 20;
    for parser in ["serde_json", "sonic-rs"] {
        let name = format!("JSON to a typed value, two fields set, {parser}");
        let source = || Source::of_payloads(count, payloads.clone());
        measure(&name, threads, count, source, |source| {
            let transform = move |message: &Message| match parser {
                "serde_json" => set_two(&message.payload, |bytes| serde_json::from_slice(bytes).ok()),
                _ => set_two(&message.payload, |bytes| sonic_rs::from_slice(bytes).ok()),
            };
            let service = StreamingService::new(options(4), source, transform_fn(transform), PassThrough);
            async move { service.run(Shutdown::new()).await.unwrap() }
        });
    }
}

impl StreamProcessor<Bytes> for PassThrough {
    async fn process(&self, message: &Message, value: Bytes) -> Result<(), StageError> {
        std::hint::black_box((message, value));
        Ok(())
    }
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

/// Lets `work` take all messages of a source, five times, and prints the median of the rates.
fn measure<F>(
    name: &str,
    threads: usize,
    count: usize,
    source: impl Fn() -> Source,
    work: impl Fn(Source) -> F,
) where
    F: Future<Output = Summary> + Send + 'static,
{
    let wanted =
        std::env::args().skip(1).find(|word| !word.starts_with('-') && word.parse::<usize>().is_err());
    if wanted.is_some_and(|part| !format!("{name} {threads}").contains(&part)) {
        return;
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(threads).enable_time().build().unwrap();
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            let source = source();
            let books = source.books();
            let begun = cpu_seconds();
            let summary = runtime.block_on(async { tokio::spawn(work(source)).await.unwrap() });
            let seconds = cpu_seconds() - begun;
            assert_eq!(summary.done, count as u64, "{summary}");
            books.check(count);
            count as f64 / 1e6 / seconds
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let rate = rates[RUNS / 2];
    println!("{name:<44} {threads} thread(s)  {rate:6.2} M messages per CPU-second");
    println!("figure\tcore: {name}, {threads} thread(s)\t{rate:.3}\tM messages per CPU-second");
}

fn options(workers: usize) -> ServiceOptions {
    ServiceOptions { workers, ..ServiceOptions::new("bench") }
}

fn main() {
    let count = std::env::args().find_map(|text| text.parse().ok()).unwrap_or(20_000_000);
    for threads in [1, 2] {
        measure_json(threads);
        let (plain, with_attributes) = (|| Source::new(count, false), || Source::new(count, true));
        measure("the source alone", threads, count, plain, drain);
        measure("the source alone, 5 attributes", threads, count, with_attributes, drain);
        for workers in [1, 4, 16] {
            measure(&format!("streaming, {workers} workers"), threads, count, plain, |source| {
                stream(source, workers, PassThrough)
            });
        }
        measure("streaming, 4 workers, 5 attributes", threads, count, with_attributes, |source| {
            stream(source, 4, PassThrough)
        });
        let fewer = || Source::new(count / 4, false);
        measure("streaming, 16 workers, each call waits", threads, count / 4, fewer, |source| {
            stream(source, 16, Yielding)
        });
        for size in [100, 1_000] {
            measure(&format!("batching, {size} a batch"), threads, count, plain, |source| {
                batch(source, size)
            });
        }
    }
}

async fn stream(source: Source, workers: usize, processor: impl StreamProcessor<usize> + 'static) -> Summary {
    let service = StreamingService::new(options(workers), source, transform_fn(length), processor);
    service.run(Shutdown::new()).await.unwrap()
}

async fn batch(source: Source, size: usize) -> Summary {
    let limits = BatchLimits { count: size, age: Duration::from_secs(1), ..BatchLimits::default() };
    let service = BatchingService::new(options(4), limits, source, transform_fn(length), PassThrough);
    service.run(Shutdown::new()).await.unwrap()
}

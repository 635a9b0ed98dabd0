//! CPU of this side and bytes on the wire per row into BigQuery, against doubles of its services in this process.
//!
//! `cargo bench -p bqstore --features bigquery --bench bigquery [-- ROWS]`. With `MILLSTREAM_RECORDINGS` naming a
//! folder of gzipped recordings the payloads are theirs, else they are made up. All of the inserter's work is done on
//! one thread, the doubles have others; its CPU time is that thread's. Bytes are counted by a proxy between the two,
//! gRPC and HTTP/2 included, and compared with the rows' protobuf alone.

#![allow(
    missing_docs,
    dead_code,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a bench"
)]

#[path = "../tests/bigquery/google.rs"]
mod google;
#[path = "../tests/bigquery/recordings.rs"]
mod recordings;

use bqstore::bigquery::{BigQueryInserter, WriteMode};
use bqstore::{Columns, Row, RowInserter, RowMapper, RowOutcome, Value};
use google::Google;
use messagepipeline::{Attributes, Enrichment, IdGenerator, Message, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

const BATCH: usize = 1_000;

fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn credentials() -> google_cloud_auth::credentials::Credentials {
    google_cloud_auth::credentials::anonymous::Builder::new().build()
}

fn main() {
    let count = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(100_000);
    let messages = messages(count);
    let mean = messages.iter().map(|message| message.payload.len()).sum::<usize>() / count;
    println!("{count} rows with payloads of {mean} bytes, {BATCH} at a time");
    let doubles = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let doubles = doubles.expect("a runtime");
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for (name, mode) in
        [("append", WriteMode::Append), ("upsert", WriteMode::Upsert), ("insertAll", WriteMode::InsertAll)]
    {
        let google = doubles.block_on(Google::start());
        let sent = Arc::new(AtomicU64::new(0));
        let mut options = google.options();
        options.mode = mode;
        let endpoints = options.endpoints.as_mut().expect("the doubles'");
        let address = if mode == WriteMode::InsertAll { &mut endpoints.rest } else { &mut endpoints.grpc };
        *address = doubles.block_on(proxy(address, Arc::clone(&sent)));
        let columns = Columns::default();
        let inserter = BigQueryInserter::new(options, &columns).expect("settings that work");
        client.block_on(inserter.open()).expect("a table that is ready");
        let before = sent.load(Ordering::SeqCst);
        let (cpu, protobuf) = client.block_on(insert(&inserter, &columns, &messages));
        let bytes = sent.load(Ordering::SeqCst) - before;
        figure(name, "CPU", cpu.as_secs_f64() * 1e5 / count as f64, "CPU-s per 100,000");
        figure(name, "bytes per row", bytes as f64 / count as f64, "bytes");
        figure(name, "bytes / its protobuf", bytes as f64 / protobuf as f64, "");
    }
}

/// CPU time of mapping and inserting, and the bytes of the rows as protobuf.
async fn insert(inserter: &BigQueryInserter, columns: &Columns, messages: &[Message]) -> (Duration, usize) {
    let mapper = RowMapper::new(columns.clone());
    let (started, mut protobuf, mut measuring) = (cpu_time(), 0, Duration::ZERO);
    for chunk in messages.chunks(BATCH) {
        let rows: Vec<_> = chunk.iter().map(|message| mapper.map(message).expect("a row")).collect();
        let begun = cpu_time();
        protobuf += rows.iter().map(protobuf_bytes).sum::<usize>();
        measuring += cpu_time() - begun;
        let outcomes = inserter.insert(rows).await.expect("a table that takes rows");
        assert!(outcomes.iter().all(|outcome| matches!(outcome, RowOutcome::Stored)));
    }
    (cpu_time() - started - measuring, protobuf)
}

/// A row's fields, each with its key of one byte and its length.
fn protobuf_bytes(row: &Row) -> usize {
    let varint = |value: u64| (1..10).find(|bytes| value >> (7 * bytes) == 0).unwrap_or(10);
    let of_length = |length: usize| 1 + varint(length as u64) + length;
    let field = |value: &Value| match value {
        Value::Null => 0,
        Value::Integer(number) => 1 + varint(number.cast_unsigned()),
        Value::Float(_) => 9,
        Value::Boolean(_) => 2,
        Value::Timestamp(stamp) => 1 + varint(stamp.as_micros().cast_unsigned()),
        Value::String(text) | Value::Json(text) => of_length(text.as_bytes().len()),
        Value::Bytes(bytes) => of_length(bytes.len()),
    };
    row.values.iter().map(field).sum()
}

/// Stands before `target` and counts what goes there; answers with its own address.
async fn proxy(target: &str, sent: Arc<AtomicU64>) -> String {
    let target = target.trim_start_matches("http://").trim_end_matches('/').to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&target).await.expect("the double");
            tokio::spawn(carry(client, server, Arc::clone(&sent)));
        }
    });
    address
}

async fn carry(client: TcpStream, server: TcpStream, sent: Arc<AtomicU64>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read) = tokio::io::AsyncReadExt::read(&mut from_client, &mut buffer).await {
        let written = tokio::io::AsyncWriteExt::write_all(&mut to_server, &buffer[..read]).await;
        sent.fetch_add(read as u64, Ordering::SeqCst);
        if read == 0 || written.is_err() {
            break;
        }
    }
}

fn messages(count: usize) -> Vec<Message> {
    let payloads = recordings::payloads("bigquery", 10_000.min(count));
    let ids = IdGenerator::default();
    let attributes: Attributes =
        [("device_id", "sensor-0001"), ("mqtt_topic", "devices/sensor-0001/up"), ("route_name", "all")]
            .into_iter()
            .collect();
    let text = r#"{"client_id":"client-1","location_id":"location-1","category":"sensor"}"#;
    let enrichment = Enrichment::from_text(text).expect("an object");
    let message = |payload: &bytes::Bytes| {
        let mut message =
            Message::new(ids.next_id(), payload.clone(), Timestamp::from_micros(1_672_867_882_661_042));
        message.attributes = attributes.clone();
        message.enrichment = enrichment.clone();
        message
    };
    payloads.iter().cycle().take(count).map(message).collect()
}

fn figure(mode: &str, what: &str, value: f64, unit: &str) {
    println!("{mode:<10} {what:<24} {value:9.3} {unit}");
    println!("figure\tbigquery: {mode}, {what}\t{value:.3}\t{unit}");
}

/// User and system time of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

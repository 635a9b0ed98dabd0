//! What the parts of the path cost at the least: the same payloads through each step and nothing around it.

use crate::{kernel, messages, program};
use messagepipeline::{Consumer, IdGenerator, Settlement, SystemClock, Verdict};
use mqttconverter::endpoint::{Endpoint, EndpointOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;

/// Messages of one transaction and of one batch.
const BATCH: usize = 1_000;

/// Lines of one compressed object.
const OBJECT: usize = 10_000;

/// Each step with its CPU-seconds.
pub(crate) fn measure(payloads: &[Vec<u8>]) -> Vec<(&'static str, f64)> {
    vec![
        ("endpoint, one append and fdatasync per turn", endpoint(payloads)),
        ("three inserts into SQLite, WAL, synchronous=FULL", spent(|| (0..3).for_each(|_| insert(payloads)))),
        ("parse to a typed value", spent(|| parse(payloads))),
        ("gzip 6", spent(|| compress(payloads))),
    ]
}

fn spent(work: impl FnOnce()) -> f64 {
    let before = kernel::own_cpu();
    work();
    kernel::own_cpu() - before
}

/// Everything that is there is appended to a file, synced, and answered.
fn endpoint(payloads: &[Vec<u8>]) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let recording = messages::recording(folder.path(), payloads, payloads.len());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let count = payloads.len();
    runtime.block_on(async {
        let options = EndpointOptions { listen: ([127, 0, 0, 1], 0).into(), ..EndpointOptions::default() };
        let mut endpoint =
            Endpoint::bind(options, Arc::new(IdGenerator::default()), Arc::new(SystemClock)).await.unwrap();
        endpoint.consumer.open().await.unwrap();
        let broker = format!("mqtt://{}", endpoint.address);
        let before = kernel::own_cpu();
        let mut feed = program::command(folder.path())
            .args(["feed", "--broker", &broker, "--connections", "20", recording.to_str().unwrap()])
            .spawn()
            .unwrap();
        let mut file = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut left = count;
        while left > 0 {
            let mut turn = Vec::new();
            let mut chunk = endpoint.consumer.next().await.unwrap().unwrap();
            loop {
                let (settle, deliveries) = chunk.into_parts();
                for delivery in &deliveries {
                    file.write_all(&delivery.message.payload).unwrap();
                }
                left -= deliveries.len();
                turn.push((settle, deliveries));
                let mut more = std::pin::pin!(endpoint.consumer.next());
                match futures_util::FutureExt::now_or_never(&mut more) {
                    Some(next) => chunk = next.unwrap().unwrap(),
                    None => break,
                }
            }
            rustix::fs::fdatasync(file.as_fd()).unwrap();
            for (settle, deliveries) in turn {
                let settlements: Vec<_> = deliveries
                    .iter()
                    .map(|delivery| Settlement { token: delivery.token, verdict: Verdict::Ack })
                    .collect();
                settle.settle(&settlements);
            }
        }
        let status = tokio::task::spawn_blocking(move || feed.wait()).await.unwrap().unwrap();
        assert!(status.success(), "feed ended with {status}");
        kernel::own_cpu() - before
    })
}

fn insert(payloads: &[Vec<u8>]) {
    let folder = tempfile::tempdir().unwrap();
    let mut connection = rusqlite::Connection::open(folder.path().join("floor.db")).unwrap();
    connection
        .execute_batch(
            "PRAGMA page_size = 16384; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
             CREATE TABLE log (seq INTEGER PRIMARY KEY, id BLOB NOT NULL, payload BLOB NOT NULL)",
        )
        .unwrap();
    let ids = IdGenerator::default();
    for batch in payloads.chunks(BATCH) {
        let transaction = connection.transaction().unwrap();
        {
            let sql = "INSERT INTO log (id, payload) VALUES (?1, ?2)";
            let mut statement = transaction.prepare_cached(sql).unwrap();
            for payload in batch {
                statement.execute((&ids.next_id().as_bytes()[..], &payload[..])).unwrap();
            }
        }
        transaction.commit().unwrap();
    }
}

fn parse(payloads: &[Vec<u8>]) {
    #[derive(serde::Deserialize)]
    #[allow(dead_code, reason = "parsing is what is measured")]
    struct Reading<'a> {
        #[serde(borrow)]
        device_id: Option<std::borrow::Cow<'a, str>>,
        timestamp: Option<f64>,
        value: Option<f64>,
    }
    for payload in payloads {
        // A payload of another shape costs the same.
        std::hint::black_box(sonic_rs::from_slice::<Reading<'_>>(payload).is_ok());
    }
}

fn compress(payloads: &[Vec<u8>]) {
    for object in payloads.chunks(OBJECT) {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        for payload in object {
            encoder.write_all(payload).unwrap();
        }
        std::hint::black_box(encoder.finish().unwrap());
    }
}

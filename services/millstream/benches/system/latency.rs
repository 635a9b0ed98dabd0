//! From PUBLISH to PUBACK, and from PUBLISH to a row that another process can read.

use crate::program::Up;
use crate::publisher::{self, Device, Published};
use crate::{figure, messages, scaled};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often the warehouse is asked for new rows, which is how exact the times are.
const LOOK: Duration = Duration::from_micros(500);

const DEVICES: usize = 10;
const RATE: f64 = 1_000.0;

pub(crate) fn run() {
    let payloads = messages::payloads();
    let folder = tempfile::tempdir().unwrap();
    let up = Up::start(folder.path());
    let device = |n: usize| Device {
        name: format!("dev-{n}"),
        rate: RATE / DEVICES as f64,
        payloads: payloads.clone(),
    };
    let devices: Vec<_> = (0..DEVICES).map(device).collect();
    let times = measure(folder.path(), &up, &devices, Duration::from_secs(scaled(30) as u64));
    times.print("latency at 1,000 msg/s");
    figure("memory at 1,000 msg/s", up.peak(), "MiB");
    up.stop();
}

/// Latencies in milliseconds, sorted.
pub(crate) struct Times {
    pub(crate) acknowledged: Vec<f64>,
    pub(crate) stored: Vec<f64>,
}

impl Times {
    pub(crate) fn print(&self, what: &str) {
        for (kind, times) in [("PUBLISH to PUBACK", &self.acknowledged), ("PUBLISH to row", &self.stored)] {
            for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
                figure(&format!("{what}, {kind}, {name}"), percentile(times, part), "ms");
            }
        }
    }
}

pub(crate) fn percentile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

/// Lets all devices publish for `time`, and answers the times of those whose names begin with `dev`.
pub(crate) fn measure(folder: &Path, up: &Up, devices: &[Device], time: Duration) -> Times {
    let done = Arc::new(AtomicBool::new(false));
    let rows = {
        let (path, done) = (folder.join("data/warehouse.db"), Arc::clone(&done));
        std::thread::spawn(move || watch(&path, &done))
    };
    let port = up.mqtt;
    let published: Vec<Published> = std::thread::scope(|scope| {
        let publishers: Vec<_> = devices
            .iter()
            .enumerate()
            .map(|(n, device)| {
                let first = (n as u64 + 1) * 10_000_000;
                (device, scope.spawn(move || publisher::publish(port, device, first, time)))
            })
            .collect();
        let ended = publishers.into_iter().map(|(device, publisher)| (device, publisher.join().unwrap()));
        ended
            .filter(|(device, _)| device.name.starts_with("dev"))
            .flat_map(|(_, published)| published)
            .collect()
    });
    std::thread::sleep(Duration::from_secs(1));
    done.store(true, Ordering::Relaxed);
    let rows = rows.join().unwrap();
    let since = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e3;
    let mut acknowledged: Vec<_> =
        published.iter().map(|message| since(message.sent, message.acknowledged)).collect();
    let mut stored: Vec<_> =
        published.iter().map(|message| since(message.sent, rows[&message.number])).collect();
    acknowledged.sort_by(f64::total_cmp);
    stored.sort_by(f64::total_cmp);
    Times { acknowledged, stored }
}

/// When each numbered row was first seen.
fn watch(path: &Path, done: &AtomicBool) -> HashMap<u64, Instant> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = rusqlite::Connection::open_with_flags(path, flags).unwrap();
    let mut last: i64 =
        connection.query_row("SELECT coalesce(max(rowid), 0) FROM messages", [], |row| row.get(0)).unwrap();
    let sql = "SELECT rowid, topic FROM messages WHERE rowid > ?1 ORDER BY rowid";
    let mut statement = connection.prepare(sql).unwrap();
    let mut seen = HashMap::new();
    while !done.load(Ordering::Relaxed) {
        let rows = statement
            .query_map([last], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect::<Vec<_>>();
        let now = Instant::now();
        for (rowid, topic) in rows {
            last = rowid;
            if let Some(number) = topic.rsplit('/').next().and_then(|number| number.parse().ok()) {
                seen.insert(number, now);
            }
        }
        std::thread::sleep(LOOK);
    }
    seen
}

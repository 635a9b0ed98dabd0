//! What the archive costs between bus and bucket.

use crate::beside::Beside;
use crate::waiting::{Waiting, payloads};
use crate::{figure, scaled};
use testkit::rig::{BUCKET, ENRICHED};

const MESSAGES: usize = 100_000;
const RUNS: usize = 3;
/// The emulator gives about 2,000 messages a second on each.
const STREAMS: usize = 8;
/// Messages of one object.
const BATCH: usize = 1_000;

pub(crate) fn run() {
    let payloads = payloads();
    for _ in 0..RUNS {
        for compression in ["gzip", "zstd"] {
            measure(compression, &payloads, scaled(MESSAGES));
        }
    }
}

/// 10 keys, round robin.
fn measure(compression: &str, payloads: &[Vec<u8>], count: usize) {
    let Some(rig) = Waiting::new(&["icestore"]) else { return };
    rig.fill(ENRICHED, payloads, count, &|n| n % 10, true);
    let settings = format!("  compression: {compression}\n  batch: {{count: {BATCH}}}");
    let beside = Beside::start();
    let icestore = rig.start("icestore", STREAMS, &[("icestore:", &settings)]);
    // What the start costs belongs to no message.
    let before = icestore.cpu();
    icestore.wait_for("millstream_archive_lines_total", count);
    beside.say(compression);
    let peak = icestore.peak();
    let cpu = icestore.stop() - before;
    let objects = rig.rig.storage.objects(BUCKET);
    let bytes: usize = objects.values().map(bytes::Bytes::len).sum();
    let hundred_thousands = count as f64 / 1e5;
    let name = |what: &str| format!("Pub/Sub → archive, {compression}{what}");
    figure(&name(""), cpu / hundred_thousands, "CPU-s per 100,000");
    figure(&name(": objects"), objects.len() as f64, "objects");
    figure(&name(": size"), bytes as f64 / 1e6 / hundred_thousands, "MB per 100,000");
    figure(&name(": peak memory"), peak, "MiB");
}

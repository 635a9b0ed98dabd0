//! What the warehouse costs between bus and BigQuery.

use crate::beside::Beside;
use crate::counting::Counting;
use crate::waiting::{Waiting, payloads};
use crate::{figure, scaled};
use testkit::rig::ENRICHED;

const ROWS: usize = 50_000;
const RUNS: usize = 3;
const STREAMS: usize = 8;

pub(crate) fn run() {
    let payloads = payloads();
    for _ in 0..RUNS {
        for mode in ["append", "upsert", "insert-all"] {
            measure(mode, &payloads, scaled(ROWS));
        }
    }
}

/// Rows with the default columns, one of them the payload.
fn measure(mode: &str, payloads: &[Vec<u8>], count: usize) {
    let Some(mut rig) = Waiting::new(&["bigquery"]) else { return };
    rig.fill(ENRICHED, payloads, count, &|n| n % 100, true);
    let grpc = rig.runtime.block_on(Counting::before(&rig.address("BIGQUERY_STORAGE_EMULATOR_HOST")));
    let rest = rig.runtime.block_on(Counting::before(&rig.address("BIGQUERY_EMULATOR_HOST")));
    rig.put("BIGQUERY_STORAGE_EMULATOR_HOST", grpc.address());
    rig.put("BIGQUERY_EMULATOR_HOST", &format!("http://{}", rest.address()));
    let beside = Beside::start();
    let bigquery =
        rig.start("bigquery", STREAMS, &[("    dataset: millstream", &format!("    mode: {mode}"))]);
    // What the start costs belongs to no message.
    let before = bigquery.cpu();
    bigquery.wait_for("millstream_warehouse_rows_total", count);
    beside.say(mode);
    let peak = bigquery.peak();
    let cpu = bigquery.stop() - before;
    let calls = if mode == "insert-all" {
        rest.counts()
            .into_iter()
            .filter(|(path, _)| path.ends_with("/insertAll"))
            .map(|(_, c)| c.requests)
            .sum::<u64>()
    } else {
        grpc.counts().into_iter().filter(|(path, _)| path.ends_with("/AppendRows")).map(|(_, c)| c.sent).sum()
    };
    let name = format!("Pub/Sub → BigQuery, {mode}");
    figure(&name, cpu * 1e5 / count as f64, "CPU-s per 100,000 rows");
    figure(&format!("{name}: rows of a call"), count as f64 / calls as f64, "rows");
    figure(&format!("{name}: peak memory"), peak, "MiB");
}

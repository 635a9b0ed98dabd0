//! What one device that sends nothing but bad payloads, at 100 times the rate of any other, does to the others.

use crate::latency::{self, percentile};
use crate::program::Up;
use crate::publisher::Device;
use crate::{figure, messages, scaled};
use std::time::Duration;

const DEVICES: usize = 10;
const RATE: f64 = 10.0;
const TIMES: f64 = 100.0;
const ROUNDS: usize = 3;

/// A payload without a time cannot become a row here.
const CONFIGURATION: &str = "
bigquery:
  columns:
    - { name: message_id, type: string, source: id }
    - { name: topic, type: string, source: topic }
    - { name: at, source: [/timestamp, /_timestamp, /time, /ts], type: timestamp, required: true }
";

pub(crate) fn run() {
    let good = messages::payloads();
    let bad = vec![b"{\"value\": not json".to_vec()];
    let mut p99 = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let kinds = [("alone", None), ("beside a good one", Some(&good)), ("beside a bad one", Some(&bad))];
        for (times, (kind, payloads)) in p99.iter_mut().zip(kinds) {
            times.push(round(kind, &good, payloads));
        }
    }
    let medians = p99.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    figure("poison: p99 beside a bad device / alone", medians[2] / medians[0], "ratio");
    figure("poison: p99 beside a bad device / beside a good one as fast", medians[2] / medians[1], "ratio");
}

/// The others' 99th percentile from PUBLISH to row, in milliseconds.
fn round(kind: &str, good: &[Vec<u8>], loud: Option<&Vec<Vec<u8>>>) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("millstream.yaml"), CONFIGURATION).unwrap();
    let up = Up::start(folder.path());
    let device = |n: usize| Device { name: format!("dev-{n}"), rate: RATE, payloads: good.to_vec() };
    let mut devices: Vec<_> = (0..DEVICES).map(device).collect();
    if let Some(payloads) = loud {
        devices.push(Device { name: "loud".to_owned(), rate: RATE * TIMES, payloads: payloads.clone() });
    }
    let times = latency::measure(folder.path(), &up, &devices, Duration::from_secs(scaled(15) as u64));
    times.print(&format!("others {kind}"));
    let dead = up.metric("millstream_messages_dead_lettered_total");
    figure(&format!("dead letters {kind}"), dead, "messages");
    figure(&format!("memory {kind}"), up.peak(), "MiB");
    up.stop();
    percentile(&times.stored, 0.99)
}

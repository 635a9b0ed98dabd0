//! CPU of the whole path for all recordings, beside what its parts cost at the least.

use crate::program::{self, Up};
use crate::{figure, floors, messages, scaled};

const RUNS: usize = 3;

pub(crate) fn run() {
    let payloads = messages::payloads();
    let payloads: Vec<_> = payloads.iter().cycle().take(scaled(payloads.len())).cloned().collect();
    let mut ratios = Vec::new();
    for _ in 0..RUNS {
        let floor = floors::measure(&payloads);
        let path = whole_path(&payloads);
        let per = 100_000.0 / payloads.len() as f64;
        for (name, cpu) in &floor {
            figure(&format!("floor: {name}"), cpu * per, "CPU-s per 100,000");
        }
        let sum: f64 = floor.iter().map(|(_, cpu)| cpu).sum();
        figure("floors together", sum * per, "CPU-s per 100,000");
        figure("whole path", path * per, "CPU-s per 100,000");
        ratios.push(path / sum);
    }
    ratios.sort_by(f64::total_cmp);
    figure("whole path / floors, median", ratios[RUNS / 2], "ratio");
}

/// CPU-seconds of `up` from its start until everything is stored and it has stopped.
fn whole_path(payloads: &[Vec<u8>]) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let recording = messages::recording(folder.path(), payloads, payloads.len());
    register(folder.path(), payloads);
    let up = Up::start(folder.path());
    feed(folder.path(), &up, &recording);
    up.wait_for("millstream_messages_out_total{stage=\"bigquery\"}", payloads.len());
    up.wait_for("millstream_messages_in_total{stage=\"icestore\"}", payloads.len());
    figure("peak memory of the whole path", up.peak(), "MiB");
    let cpu = up.stop();
    program::run(folder.path(), &["books"]);
    cpu
}

pub(crate) fn feed(folder: &std::path::Path, up: &Up, recording: &std::path::Path) {
    let broker = format!("mqtt://127.0.0.1:{}", up.mqtt);
    program::run(folder, &["feed", "--broker", &broker, recording.to_str().unwrap()]);
}

/// Registers every device of the recording, so that all messages are enriched.
fn register(folder: &std::path::Path, payloads: &[Vec<u8>]) {
    let mut devices = std::collections::BTreeSet::new();
    for payload in payloads {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(payload) else { continue };
        let names = ["device_id", "deviceId", "dev_eui", "devEUI"];
        devices.extend(names.iter().filter_map(|name| value[name].as_str()).map(str::to_owned).next());
    }
    let mut table = String::from("device_id,client_id,location_id,category\n");
    for (n, device) in devices.iter().enumerate() {
        table.push_str(&format!("{device},client-{},location-{n},sensor\n", n % 3));
    }
    std::fs::write(folder.join("devices.csv"), table).unwrap();
    program::run(folder, &["devices", "import", "devices.csv"]);
}

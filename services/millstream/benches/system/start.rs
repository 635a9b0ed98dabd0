//! How long the program takes to be ready, and how large it is.

use crate::figure;
use crate::program::Up;
use std::time::Instant;

const STARTS: usize = 11;

pub(crate) fn run() {
    let binary = std::fs::metadata(env!("CARGO_BIN_EXE_millstream")).unwrap().len();
    figure("binary size", binary as f64 / f64::from(1 << 20), "MiB");
    let folder = tempfile::tempdir().unwrap();
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let start = Instant::now();
        let up = Up::start(folder.path());
        times.push(start.elapsed().as_secs_f64() * 1e3);
        figure("memory idle", up.peak(), "MiB");
        up.stop();
    }
    figure("ready after start, new folder", times[0], "ms");
    let mut later = times.split_off(1);
    later.sort_by(f64::total_cmp);
    figure("ready after start, median of 10 on that folder", later[later.len() / 2], "ms");
}

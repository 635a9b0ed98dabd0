//! What else ran on the machine while something was measured.

use std::time::Instant;

/// Ticks of `/proc/stat` in a second.
const TICKS: f64 = 100.0;

/// From its making on.
pub(crate) struct Beside {
    start: Instant,
    busy: f64,
}

impl Beside {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), busy: busy() }
    }

    /// Says what ran: the load average, and the CPU of everything (broker, emulator, publishers and reader of the
    /// bench among it) since the start.
    pub(crate) fn say(&self, what: &str) {
        let load = std::fs::read_to_string("/proc/loadavg").unwrap();
        let load = load.split_whitespace().next().unwrap();
        let (cpu, elapsed) = (busy() - self.busy, self.start.elapsed().as_secs_f64());
        println!(
            "{what}: {elapsed:.1} s, in which the machine was busy for {cpu:.1} CPU-s; load average {load}"
        );
    }
}

/// Seconds that all processors together were not idle.
fn busy() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap();
    let ticks = |at: usize| -> f64 {
        stat.lines().next().unwrap().split_whitespace().nth(at).unwrap().parse().unwrap()
    };
    // user, nice, system, irq, softirq; see proc_stat(5).
    [1, 2, 3, 6, 7].into_iter().map(ticks).sum::<f64>() / TICKS
}

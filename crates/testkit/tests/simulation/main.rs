//! The services as they are assembled in production, in one process on virtual time, over doubles that fail before
//! and after each side effect, answer late or never, in part, or panic; beside that the process is killed and stopped
//! at any moment. One seed decides everything, so that a failure is played again by its number:
//!
//! ```text
//! MILLSTREAM_SIMULATION_SEED=<seed> MILLSTREAM_SIMULATION_SEEDS=1 cargo test -p testkit --test simulation
//! ```
//!
//! What every seed must show: nothing acknowledged that is nowhere; each message in warehouse and archive exactly once
//! or ended with its reason; no good message given up on; one verdict each; no service stuck, and none that holds more
//! than it may.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a test"
)]

mod books;
mod bus;
mod conformance;
mod scenario;
mod stores;
mod system;
mod world;

use scenario::Report;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use world::Simulated;

/// Seeds of a run without other wishes: about 20 s of a debug build on two cores.
const SEEDS: u64 = 800;
/// Where a run without other wishes begins.
const BASE: u64 = 1;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, and is `{text}`")))
}

/// Panics that the simulation means are not printed.
fn keep_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info.payload().is::<Simulated>() {
                print(info);
            }
        }));
    });
}

fn describe(seed: u64, report: &Report) -> String {
    // MILLSTREAM_SIMULATION_TRACE=all shows the calls that worked, too.
    let all = std::env::var_os("MILLSTREAM_SIMULATION_TRACE").is_some();
    let shown = report.trace.iter().filter(|event| all || event.fault.is_some());
    let trace: Vec<_> = shown.map(ToString::to_string).collect();
    format!(
        "seed {seed}: {} messages, {} calls, {} faults\n    {}\n  against the promises:\n    {}\n  again: \
         MILLSTREAM_SIMULATION_SEED={seed} MILLSTREAM_SIMULATION_SEEDS=1 cargo test -p testkit --test simulation",
        report.messages,
        report.trace.len(),
        report.faults(),
        trace.join("\n    "),
        report.violations.join("\n    "),
    )
}

#[test]
fn every_seed_ends_with_balanced_books() {
    keep_quiet();
    let seeds = from_environment("MILLSTREAM_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let base = from_environment("MILLSTREAM_SIMULATION_SEED").unwrap_or(BASE);
    println!("simulation: {seeds} seeds from MILLSTREAM_SIMULATION_SEED={base}");
    let begun = std::time::Instant::now();
    let next = AtomicU64::new(0);
    let failed = Mutex::new(Vec::new());
    let totals = Mutex::new([0_usize; 4]);
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= seeds || failed.lock().unwrap().len() >= 3 {
                return;
            }
            let seed = base.wrapping_add(number);
            let report = scenario::run(seed);
            let mut totals = totals.lock().unwrap();
            totals
                .iter_mut()
                .zip([report.messages, report.trace.len(), report.faults(), report.lives as usize])
                .for_each(|(total, more)| *total += more);
            if !report.violations.is_empty() {
                failed.lock().unwrap().push((seed, report));
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let [messages, calls, faults, lives] = *totals.lock().unwrap();
    println!("{messages} messages, {calls} calls, {faults} faults, {lives} lives, {:?}", begun.elapsed());
    let mut failed = failed.into_inner().unwrap();
    failed.sort_by_key(|(seed, _)| *seed);
    let told: Vec<_> = failed.iter().map(|(seed, report)| describe(*seed, report)).collect();
    assert!(told.is_empty(), "{} seeds failed\n{}", told.len(), told.join("\n\n"));
}

#[test]
fn a_seed_played_again_takes_the_same_course() {
    keep_quiet();
    for seed in 1..=20 {
        let (first, again) = (scenario::run(seed), scenario::run(seed));
        let differs = first.trace.iter().zip(&again.trace).position(|(first, again)| first != again);
        if let Some(at) = differs {
            panic!("seed {seed} differs at call {at}: {}; {}", first.trace[at], again.trace[at]);
        }
        assert!(first == again, "seed {seed}: {} and {} calls", first.trace.len(), again.trace.len());
    }
}

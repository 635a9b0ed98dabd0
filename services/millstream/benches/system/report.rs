//! Which scenarios run, how large they are, and how their figures are printed.

/// Runs those of `scenarios` that the command line names, or all.
pub(crate) fn run(scenarios: &[(&str, fn())]) {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for (name, run) in scenarios {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            println!("\n== {name}");
            run();
        }
    }
}

/// Prints a figure for people and programs.
pub(crate) fn figure(name: &str, value: f64, unit: &str) {
    println!("figure\t{name}\t{value:.3}\t{unit}");
}

/// How much larger or smaller than usual everything is to be.
pub(crate) fn scale() -> f64 {
    std::env::var("MILLSTREAM_BENCH_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0)
}

/// `usual`, scaled.
pub(crate) fn scaled(usual: usize) -> usize {
    ((usual as f64 * scale()) as usize).max(1)
}

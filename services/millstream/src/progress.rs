//! Progress of long work: a bar on a terminal, a plain line every few seconds elsewhere, nothing with `--quiet`.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Drawing more often than this cannot be seen.
const DRAWS_PER_SECOND: u8 = 10;

/// Shows how far something is.
pub struct Progress {
    shown: Shown,
    unit: &'static str,
}

enum Shown {
    Nothing,
    Lines(Mutex<Instant>),
    Bar(ProgressBar),
}

impl Progress {
    /// Progress counted in `unit`.
    #[must_use]
    pub fn new(quiet: bool, unit: &'static str) -> Self {
        let shown = if quiet {
            Shown::Nothing
        } else if std::io::stderr().is_terminal() {
            let bar =
                ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
            bar.set_style(ProgressStyle::default_spinner());
            Shown::Bar(bar)
        } else {
            Shown::Lines(Mutex::new(Instant::now()))
        };
        Self { shown, unit }
    }

    /// How much is done, where the end is not known.
    pub fn at(&self, done: u64) {
        self.show(|| format!("{done} {}", self.unit), None);
    }

    /// A text, with the part that is done when that is known.
    pub fn show(&self, text: impl FnOnce() -> String, part: Option<(u64, u64)>) {
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => draw(bar, text(), part),
            Shown::Lines(last) => {
                let mut last = last.lock();
                if last.elapsed() >= LINE_EVERY {
                    *last = Instant::now();
                    drop(last);
                    crate::output::say(&text());
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

fn draw(bar: &ProgressBar, text: String, part: Option<(u64, u64)>) {
    if let Some((done, total)) = part.filter(|(_, total)| *total > 0) {
        if bar.length() != Some(total) {
            bar.set_length(total);
            if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}% {msg}") {
                bar.set_style(style);
            }
        }
        bar.set_position(done.min(total));
    }
    bar.set_message(text);
    bar.tick();
}

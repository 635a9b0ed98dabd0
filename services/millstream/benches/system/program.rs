//! The program as a process of its own, and what the kernel says about it.

use crate::kernel;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longest wait for anything; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// A running `millstream up`.
pub(crate) struct Up {
    child: Child,
    pub(crate) mqtt: u16,
    pub(crate) http: u16,
}

pub(crate) fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MILLSTREAM_")) {
        command.env_remove(name);
    }
    command.current_dir(folder).args(["--data", "data", "-q"]).stdin(Stdio::null());
    command
}

/// Runs the program to its end, which must be a good one.
pub(crate) fn run(folder: &Path, arguments: &[&str]) {
    let output = command(folder).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

impl Up {
    pub(crate) fn start(folder: &Path) -> Self {
        let mut child = command(folder)
            .args(["up", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut mqtt, mut http) = (0, 0);
        for line in lines.by_ref().map(Result::unwrap) {
            let port = || line.trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap();
            match line.split_whitespace().next() {
                Some("mqtt") => mqtt = port(),
                Some("http") => http = port(),
                Some("ready") => break,
                _ => {}
            }
        }
        assert!(mqtt != 0 && http != 0, "it ended before it was ready");
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, mqtt, http }
    }

    /// Peak resident size in MiB.
    pub(crate) fn peak(&self) -> f64 {
        kernel::peak_of(&self.child.id().to_string())
    }

    /// Waits until a counter of `/metrics` has reached `count`.
    pub(crate) fn wait_for(&self, metric: &str, count: usize) {
        kernel::wait_for(self.http, metric, count, PATIENCE);
    }

    /// The sum of all lines of `/metrics` that begin with `name`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        kernel::metric(self.http, name)
    }

    /// SIGKILL: what it holds is lost to it, and comes again.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the CPU it has used when it has ended.
    pub(crate) fn stop(mut self) -> f64 {
        let cpu = kernel::terminate(self.child.id(), PATIENCE);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "up ended with {status}");
        cpu
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Already ended when all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

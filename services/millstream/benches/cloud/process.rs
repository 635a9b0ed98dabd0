//! One service as a process, and what the kernel says about it.

use crate::kernel;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Longest wait for anything; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// A running service; killed when dropped.
pub(crate) struct Service {
    child: Child,
    name: &'static str,
    log: PathBuf,
    http: u16,
}

/// Where the binary of a service lies: beside the program that cargo built for this bench, or where one is told.
fn binary(name: &str) -> PathBuf {
    let path = match std::env::var_os("MILLSTREAM_BENCH_SERVICES") {
        Some(folder) => Path::new(&folder).join(name),
        None => Path::new(env!("CARGO_BIN_EXE_millstream")).with_file_name(name),
    };
    assert!(path.is_file(), "{} is not there; build it: {}", path.display(), crate::BUILD);
    path
}

impl Service {
    /// Starts `name` with a configuration file and variables for its environment, and waits until it is ready. What it
    /// logs is added to `NAME.log` beside the configuration.
    pub(crate) fn start(
        name: &'static str,
        configuration: &Path,
        environment: &[(&'static str, String)],
    ) -> Self {
        let log = configuration.with_file_name(format!("{name}.log"));
        let mut command = Command::new(binary(name));
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("MILLSTREAM_") || name == "PORT")
        {
            command.env_remove(name);
        }
        let mut child = command
            .current_dir(configuration.parent().unwrap())
            .arg("--config")
            .arg(configuration)
            .args(["--log-format", "text"])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().append(true).create(true).open(&log).unwrap())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut http = 0;
        let mut is_ready = false;
        for line in lines.by_ref().map(Result::unwrap) {
            if let Some(url) = line.strip_prefix("http  http://") {
                http = url.rsplit(':').next().unwrap().parse().unwrap();
            }
            if line == "ready" {
                is_ready = true;
                break;
            }
        }
        assert!(is_ready, "{name} ended before it was ready:\n{}", std::fs::read_to_string(&log).unwrap());
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, name, log, http }
    }

    /// User and system time so far, in seconds.
    pub(crate) fn cpu(&self) -> f64 {
        kernel::cpu_of(self.child.id())
    }

    /// Peak resident size so far, in MiB.
    pub(crate) fn peak(&self) -> f64 {
        kernel::peak_of(&self.child.id().to_string())
    }

    /// The sum of all lines of `/metrics` that begin with `name`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        kernel::metric(self.http, name)
    }

    /// Waits until a counter of `/metrics` has reached `count`.
    pub(crate) fn wait_for(&self, metric: &str, count: usize) {
        kernel::wait_for(self.http, metric, count, PATIENCE);
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, which must end it well; the CPU it has used in all.
    pub(crate) fn stop(mut self) -> f64 {
        let cpu = kernel::terminate(self.child.id(), PATIENCE);
        let status = self.child.wait().unwrap();
        let (name, log) = (self.name, std::fs::read_to_string(&self.log).unwrap());
        assert!(status.success(), "{name} ended with {status}:\n{log}");
        cpu
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Already ended when all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

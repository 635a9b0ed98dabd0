//! One service as a process.

use crate::common::{until, wait};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// The services in the order of the path.
pub(crate) const SERVICES: [&str; 4] = ["ingestion", "enrichment", "bigquery", "icestore"];

/// A running service; killed when dropped.
pub(crate) struct Service {
    child: Child,
    pub(crate) name: &'static str,
    folder: PathBuf,
}

/// Where the binary of a service lies: beside the program that cargo built for this test.
pub(crate) fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_millstream")).with_file_name(name);
    assert!(
        path.is_file(),
        "{} is not there; build it: cargo build --workspace --bins --features google",
        path.display()
    );
    path
}

impl Service {
    /// Starts `name` with its logs and printed lines in `folder`.
    pub(crate) fn start(
        name: &'static str,
        folder: &Path,
        configuration: &Path,
        environment: &[(&'static str, String)],
    ) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let open = |name: &str| File::options().append(true).create(true).open(folder.join(name)).unwrap();
        // What an earlier process of this replica printed must not be taken for this one's.
        let _ = std::fs::remove_file(folder.join("stdout"));
        let mut command = Command::new(binary(name));
        for (name, _) in
            std::env::vars().filter(|(name, _)| name.starts_with("MILLSTREAM_") || name == "PORT")
        {
            command.env_remove(name);
        }
        let child = command
            .current_dir(folder)
            .arg("--config")
            .arg(configuration)
            .args(["--log-format", "text"])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(open("stdout"))
            .stderr(open("stderr"))
            .spawn()
            .unwrap();
        Self { child, name, folder: folder.to_owned() }
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(self.folder.join("stdout")).unwrap_or_default()
    }

    /// Waits until it has said that it is ready.
    pub(crate) fn ready(&mut self) {
        until(&format!("{} is ready", self.name), || {
            assert!(self.child.try_wait().unwrap().is_none(), "{} ended:\n{}", self.name, self.log_tail());
            self.printed().lines().any(|line| line == "ready")
        });
    }

    /// Whether its admin server listens, which is so before anything else is opened.
    pub(crate) fn listens(&self) -> bool {
        self.printed().lines().any(|line| line.starts_with("http  "))
    }

    /// Port of its admin server.
    pub(crate) fn http(&self) -> u16 {
        let printed = self.printed();
        let line = printed.lines().find_map(|line| line.strip_prefix("http  http://")).unwrap();
        line.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// Sum of the counters called `name` with `label` in their labels.
    pub(crate) fn counter(&self, name: &str, label: &str) -> u64 {
        let (_, text) = crate::common::get(self.http(), "/metrics");
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    pub(crate) fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.folder.join("stderr")).unwrap_or_default();
        let from = log.len().saturating_sub(1_500);
        log.get(from..).unwrap_or(&log).to_owned()
    }

    /// Ends it without warning.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; how it ended.
    pub(crate) fn stop(mut self) -> (ExitStatus, String) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = wait(&mut self.child);
        (status, self.log_tail())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

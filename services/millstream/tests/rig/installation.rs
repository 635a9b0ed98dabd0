//! `millstream up` as a process that is there to be killed.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// A data folder, the program that works on it, and the port it listens on.
pub(crate) struct Installation {
    folder: tempfile::TempDir,
    program: PathBuf,
    pub(crate) port: u16,
}

impl Installation {
    /// A new folder with `settings` as its configuration.
    pub(crate) fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The same program from the first start to the last, also when somebody builds beside the test. Another process
        // copies it: a child that another test starts meanwhile would inherit our file, and nobody can run a program
        // that is open for writing.
        let program = folder.path().join("millstream");
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_millstream")).arg(&program).status();
        assert!(copied.unwrap().success(), "cp failed");
        std::fs::write(folder.path().join("millstream.yaml"), settings).unwrap();
        Self { folder, program, port: free_port() }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(self.folder()).env_remove("PORT");
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MILLSTREAM_")) {
            command.env_remove(name);
        }
        command.args(["--data", "data", "--log-format", "text"]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Starts `up` with further arguments and waits for nothing.
    pub(crate) fn up(&self, arguments: &[&str]) -> Process {
        let log = File::options().create(true).append(true).open(self.folder().join("up.log")).unwrap();
        let listen = format!("127.0.0.1:{}", self.port);
        let mut child = self
            .command(&["up", "--http-listen", "127.0.0.1:0"])
            .args(["--mqtt-listen", &listen])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let (said, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test may have stopped listening.
                let _ = said.send(line);
            }
        });
        Process { child, lines, started: Instant::now() }
    }

    /// Imports the registry of all devices.
    pub(crate) fn register(&self, registry: &str) {
        std::fs::write(self.folder().join("devices.csv"), registry).unwrap();
        let output = self.run(&["devices", "import", "devices.csv"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Works everything off, then asks the books, also with every object read again.
    pub(crate) fn drain_and_balance(&self, patience: Duration) -> Result<(), String> {
        self.up(&["--until-drained"]).end_well(patience)?;
        let books = self.run(&["books", "--deep", "--json"]);
        let text = String::from_utf8_lossy(&books.stdout);
        let report: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        if report["balanced"] == true && books.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&books.stderr);
        Err(format!("the books ended with {}:\n{report:#}\n{said}", books.status))
    }

    /// The end of what all processes said on standard error.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.folder().join("up.log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Leaves the folder where it is, for a person to look at.
    pub(crate) fn keep(self) -> PathBuf {
        self.folder.keep()
    }
}

/// A running `up`; killed when dropped.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    started: Instant,
}

impl Process {
    /// Waits until it says that it is ready; how long that took. An error when it ended instead.
    pub(crate) fn ready(&mut self, patience: Duration) -> Result<Duration, String> {
        loop {
            match self.lines.recv_timeout(patience.saturating_sub(self.started.elapsed())) {
                Ok(line) if line.trim() == "ready" => return Ok(self.started.elapsed()),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => return Err("up does not become ready".to_owned()),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("up ended before it was ready: {}", self.end(patience)?));
                }
            }
        }
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        // A process that has ended by itself stays until it is waited for.
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// Kills it and waits until it is gone. Whether it was still running.
    pub(crate) fn kill(mut self) -> bool {
        let running = self.child.try_wait().unwrap().is_none();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        running
    }

    /// Waits for its own end, which must be a good one.
    pub(crate) fn end_well(&mut self, patience: Duration) -> Result<(), String> {
        let status = self.end(patience)?;
        if status.success() { Ok(()) } else { Err(format!("up ended with {status}")) }
    }

    /// Waits for its own end.
    pub(crate) fn end(&mut self, patience: Duration) -> Result<ExitStatus, String> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Ok(status);
            }
            if start.elapsed() > patience {
                return Err("up does not end".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port below those that the system gives to outgoing connections: while nobody listens, a client that tries again
/// and again would else one day be given the same port and meet itself.
pub(crate) fn free_port() -> u16 {
    // Tests beside this one in the process do not get the same.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let next = || first + NEXT.fetch_add(1, Ordering::Relaxed) % 2_000;
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(next).take(2_000).find(is_free).unwrap()
}

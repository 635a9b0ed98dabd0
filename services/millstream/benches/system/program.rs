//! The program as a process of its own, and what the kernel says about it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Ticks of `/proc/*/stat` in a second: fixed for programs on Linux.
const TICKS: f64 = 100.0;

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

    /// User and system time so far, in seconds; also of a process that has ended and was not waited for.
    pub(crate) fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks = |place: usize| fields[place].parse::<f64>().unwrap();
        (ticks(11) + ticks(12)) / TICKS
    }

    /// Peak resident size in MiB.
    pub(crate) fn peak(&self) -> f64 {
        peak_of(&self.child.id().to_string())
    }

    /// Waits until a counter of `/metrics` has reached `count`.
    pub(crate) fn wait_for(&self, metric: &str, count: usize) {
        let start = Instant::now();
        while self.metric(metric) < count as f64 {
            assert!(start.elapsed() < PATIENCE, "{metric} does not reach {count}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The sum of all lines of `/metrics` that begin with `name`.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        answer.lines().filter(|line| line.starts_with(name)).filter_map(value).sum()
    }

    /// SIGKILL: what it holds is lost to it, and comes again.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the CPU it has used when it has ended.
    pub(crate) fn stop(mut self) -> f64 {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let stat = format!("/proc/{}/stat", self.child.id());
        let start = Instant::now();
        while !std::fs::read_to_string(&stat).unwrap().rsplit(')').next().unwrap().starts_with(" Z") {
            assert!(start.elapsed() < PATIENCE, "it does not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
        let cpu = self.cpu();
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

/// Peak resident size of a process in MiB; `self` is this one.
pub(crate) fn peak_of(process: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1_024.0
}

/// User and system time of this process, in seconds.
pub(crate) fn own_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

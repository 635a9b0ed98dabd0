//! What the kernel and a program's own `/metrics` say about a process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Ticks of `/proc/*/stat` in a second: fixed for programs on Linux.
const TICKS: f64 = 100.0;

/// User and system time of a process so far, in seconds; also of one that has ended and was not waited for.
pub(crate) fn cpu_of(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |place: usize| fields[place].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / TICKS
}

/// Peak resident size of a process in MiB; `self` is this one.
pub(crate) fn peak_of(process: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1_024.0
}

/// The peak of this process begins anew, at what it holds now (`clear_refs` in proc(5)).
pub(crate) fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// User and system time of this process, in seconds.
pub(crate) fn own_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// SIGTERM to a child, and the CPU it has used when it has ended; it is left to be waited for.
pub(crate) fn terminate(process: u32, patience: Duration) -> f64 {
    let pid = rustix::process::Pid::from_raw(process as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let stat = format!("/proc/{process}/stat");
    let start = Instant::now();
    while !std::fs::read_to_string(&stat).unwrap().rsplit(')').next().unwrap().starts_with(" Z") {
        assert!(start.elapsed() < patience, "it does not stop");
        std::thread::sleep(Duration::from_millis(5));
    }
    cpu_of(process)
}

/// The sum of all lines of `/metrics` that begin with `name`.
pub(crate) fn metric(http: u16, name: &str) -> f64 {
    let mut stream = TcpStream::connect(("127.0.0.1", http)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    answer.lines().filter(|line| line.starts_with(name)).filter_map(value).sum()
}

/// Waits until a counter of `/metrics` has reached `count`.
pub(crate) fn wait_for(http: u16, name: &str, count: usize, patience: Duration) {
    let start = Instant::now();
    while metric(http, name) < count as f64 {
        assert!(start.elapsed() < patience, "{name} does not reach {count}");
        // Every answer costs CPU of the process that is measured.
        std::thread::sleep(Duration::from_millis(250));
    }
}

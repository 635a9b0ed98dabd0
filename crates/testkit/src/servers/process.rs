//! A child process that ends with this one, however this one ends.

use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to end when asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running child. Dropped, it is killed; when this process dies without dropping it, its watchdog kills it.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    watchdog: Child,
}

impl Process {
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::null()).spawn()?;
        match watch(child.id()) {
            Ok(watchdog) => Ok(Self { child, watchdog }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends the signal called `name` (`TERM`, `STOP`, …).
    pub(super) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.is_ok_and(|status| status.success()), "signal {name} could not be sent to process {id}");
    }

    /// Asks it to end and waits until it has.
    pub(super) fn stop(mut self) {
        self.signal("TERM");
        let deadline = Instant::now() + PATIENCE;
        while self.ended().expect("its own child").is_none() {
            assert!(Instant::now() < deadline, "process {} does not end when asked to", self.id());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The watchdog goes first: once the child is gone, its number may be another process's.
        for process in [&mut self.watchdog, &mut self.child] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Starts a shell that kills process `id` as soon as this process is gone: nobody else holds the other end of its
/// standard input. An interrupt at the terminal reaches it too and must not end it first.
fn watch(id: u32) -> io::Result<Child> {
    let script = r#"trap '' INT TERM HUP; read -r _; kill -s KILL "$0" 2>/dev/null"#;
    let mut command = Command::new("sh");
    command.args(["-c", script, &id.to_string()]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

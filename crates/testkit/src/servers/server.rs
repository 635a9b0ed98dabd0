//! What all servers have in common: a folder, ports, a command, and the moment from which they answer.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use super::process::Process;

/// How long a server may take to answer. Java on a machine that compiles at the same time is slow to start.
const PATIENCE: Duration = Duration::from_secs(120);
/// Starts on other ports after somebody else took one that was free a moment ago.
const STARTS: usize = 5;

/// What a command is made for: the server's folder and its ports.
pub(super) type MakeCommand = Box<dyn Fn(&Path, &[u16]) -> io::Result<Command> + Send + Sync>;

/// Whether a server answers on its ports.
pub(super) type IsReady = Box<dyn Fn(&[u16]) -> bool + Send + Sync>;

/// How a server is started, and what it looks like when it is ready.
pub(super) struct Description {
    pub(super) name: &'static str,
    pub(super) ports: usize,
    pub(super) command: MakeCommand,
    pub(super) ready: IsReady,
}

/// A server on loopback ports with a folder of its own, which runs as long as this value.
pub struct Server {
    description: Description,
    folder: tempfile::TempDir,
    ports: Vec<u16>,
    process: Option<Process>,
}

impl fmt::Debug for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = formatter.debug_struct(self.description.name);
        out.field("folder", &self.folder.path())
            .field("ports", &self.ports)
            .field("process", &self.process)
            .finish()
    }
}

impl Server {
    /// Starts what `description` says in `folder`.
    ///
    /// # Panics
    /// When it does not start.
    pub(super) fn start(description: Description, folder: tempfile::TempDir) -> Self {
        let mut server = Self { description, folder, ports: Vec::new(), process: None };
        for _ in 0..STARTS {
            server.ports = free_ports(server.description.ports);
            match server.launch() {
                Ok(()) => return server,
                Err(Failed::Ended(_)) => {}
                Err(failed) => {
                    panic!("{}; the end of its log:\n{}", server.what(&failed), server.end_of_log())
                }
            }
        }
        panic!("{} ends at once; the end of its log:\n{}", server.description.name, server.end_of_log());
    }

    /// The port it listens on, the same after a restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// All ports it listens on; the first is [`Server::port`].
    #[must_use]
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// Its address as `127.0.0.1:PORT`, the form of the emulators' environment variables.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it wrote to its outputs.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Stops it as an operator would (SIGTERM) and waits until it has ended.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            process.stop();
        }
    }

    /// Ends it without giving it a chance to tidy up (SIGKILL).
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it on the same ports with what it had on disk; one that runs is stopped first.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.stop();
        if let Err(failed) = self.launch() {
            panic!("{}; the end of its log:\n{}", self.what(&failed), self.end_of_log());
        }
    }

    /// Stops its process in mid-air (SIGSTOP): connections stay open and nothing answers.
    ///
    /// # Panics
    /// When it does not run.
    pub fn freeze(&self) {
        self.running().signal("STOP");
    }

    /// Lets a frozen server go on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn thaw(&self) {
        self.running().signal("CONT");
    }

    fn running(&self) -> &Process {
        self.process.as_ref().expect("a server that runs")
    }

    fn launch(&mut self) -> Result<(), Failed> {
        let mut command = self.command().map_err(Failed::Command)?;
        let mut process = Process::spawn(&mut command).map_err(Failed::Command)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = process.ended().map_err(Failed::Command)? {
                return Err(Failed::Ended(status));
            }
            if (self.description.ready)(&self.ports) {
                self.process = Some(process);
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Failed::Silent);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn command(&self) -> io::Result<Command> {
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut command = (self.description.command)(self.folder.path(), &self.ports)?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    fn what(&self, failed: &Failed) -> String {
        let name = self.description.name;
        match failed {
            Failed::Command(error) => format!("{name} cannot be started: {error}"),
            Failed::Ended(status) => format!("{name} ended at its start: {status}"),
            Failed::Silent => format!("{name} does not answer within {} s", PATIENCE.as_secs()),
        }
    }

    fn end_of_log(&self) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(2_000)..]).into_owned()
    }
}

/// Why a server did not start.
enum Failed {
    Command(io::Error),
    /// It may have found that somebody took its port.
    Ended(ExitStatus),
    Silent,
}

/// Ports that nobody listens on at this moment.
fn free_ports(count: usize) -> Vec<u16> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    // All are bound before the first is let go, so that they differ.
    let listeners: Vec<TcpListener> = (0..count).map(bind).collect();
    listeners.iter().map(|listener| listener.local_addr().expect("a bound address").port()).collect()
}

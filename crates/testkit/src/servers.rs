//! Real servers for tests: started on a free loopback port, stopped by their process id.
//!
//! A server that is not installed leaves its tests out, loudly; with `MILLSTREAM_REQUIRE_SERVERS=1` they fail instead.

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to listen, or to end when asked.
const PATIENCE: Duration = Duration::from_secs(10);
/// Starts on another port after somebody else took the one that was free a moment ago.
const STARTS: usize = 5;

/// A mosquitto broker with a folder of its own, which lives as long as this value.
#[derive(Debug)]
pub struct Mosquitto {
    program: PathBuf,
    folder: tempfile::TempDir,
    settings: Vec<String>,
    port: u16,
    child: Option<Child>,
}

impl Mosquitto {
    /// Starts a broker with the lines `settings` in its configuration; anonymous clients are allowed unless a line says
    /// otherwise, and sessions are kept on disk. `None` means that mosquitto is not installed, which has been said
    /// with the name of `test`.
    ///
    /// # Panics
    /// When it is installed but does not start, or is required and not installed.
    #[must_use]
    pub fn start(test: &str, settings: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::start_in(test, folder, settings)
    }

    /// As [`Mosquitto::start`], in a folder that already holds files that the settings name.
    ///
    /// # Panics
    /// As [`Mosquitto::start`].
    #[must_use]
    pub fn start_in(test: &str, folder: tempfile::TempDir, settings: &[&str]) -> Option<Self> {
        let program = find_program("mosquitto").or_else(|| left_out(test, "mosquitto"))?;
        let settings = settings.iter().map(ToString::to_string).collect();
        let mut server = Self { program, folder, settings, port: 0, child: None };
        for _ in 0..STARTS {
            server.port = free_port();
            if server.launch().is_ok() {
                return Some(server);
            }
        }
        let log = std::fs::read_to_string(server.log()).unwrap_or_default();
        panic!("mosquitto does not start; its configuration:\n{}\nits log:\n{log}", server.configuration());
    }

    /// The port it listens on, the same after a restart.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Stops it as an operator would; it writes its sessions to disk first.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let asked = Command::new("kill").arg(child.id().to_string()).status();
        assert!(asked.is_ok_and(|status| status.success()), "mosquitto could not be asked to end");
        let deadline = Instant::now() + PATIENCE;
        while child.try_wait().expect("its own child").is_none() {
            assert!(Instant::now() < deadline, "mosquitto does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again on the same port with what it had on disk.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.stop();
        self.launch().expect("mosquitto starts again");
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("mosquitto.log")
    }

    fn configuration(&self) -> String {
        let port = self.port;
        let folder = self.folder.path().display();
        let mut text = format!("listener {port} 127.0.0.1\n");
        // Started as root it would change to a user that may not read the folder.
        text.push_str("user root\nlog_type error\n");
        text.push_str(&format!("persistence true\npersistence_location {folder}/\n"));
        if !self.settings.iter().any(|line| line.starts_with("allow_anonymous")) {
            text.push_str("allow_anonymous true\n");
        }
        for line in &self.settings {
            text.push_str(&line.replace("$FOLDER", &folder.to_string()));
            text.push('\n');
        }
        text
    }

    fn launch(&mut self) -> io::Result<()> {
        let file = self.folder.path().join("mosquitto.conf");
        std::fs::write(&file, self.configuration())?;
        let log = std::fs::File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new(&self.program);
        let child = command.arg("-c").arg(&file).stdin(Stdio::null()).stderr(log).spawn()?;
        let child = self.child.insert(child);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Err(io::Error::other(format!("mosquitto ended: {status}")));
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(io::Error::other("mosquitto does not listen"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that nobody listens on at this moment.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound address").port()
}

/// The program in `PATH`, or in the folders for servers that a user's `PATH` often lacks.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Says on standard error that `test` is left out because of `program`; answers `None`.
///
/// # Panics
/// When servers are required.
#[must_use]
pub fn left_out<T>(test: &str, program: &str) -> Option<T> {
    let required = std::env::var_os("MILLSTREAM_REQUIRE_SERVERS").is_some_and(|value| value == "1");
    assert!(!required, "{test} needs {program}, which is not installed");
    say_left_out(test, &format!("{program} not found; tests/run installs it"));
    None
}

/// Says that a test was left out and why, past the harness, which shows the output of failed tests only.
pub fn say_left_out(test: &str, reason: &str) {
    use io::Write;
    // A test that cannot say it still passes.
    let _ = writeln!(io::stderr(), "LEFT OUT: {test} ({reason})");
}

//! What the whole-path tests share: the program as a real process, and readers of what it stored.

#![allow(dead_code, reason = "each test file uses a part of this")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest time any one step of a test may take; only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The program with a data folder and no configuration or environment of the machine's.
pub(crate) fn millstream(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.current_dir(folder).env_remove("PORT");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MILLSTREAM_")) {
        command.env_remove(name);
    }
    command.args(["--data", "data", "--log-format", "text"]);
    command
}

/// Runs the program to its end.
pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut child = millstream(folder)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = read_aside(child.stdout.take().unwrap());
    let stderr = read_aside(child.stderr.take().unwrap());
    let status = wait(&mut child);
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

fn read_aside(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// Waits for the process, and kills it when it hangs.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the process did not end within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Looks until `is_so`; a hang fails with `what` was waited for.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Standard output and standard error as text.
pub(crate) fn texts(output: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A running `millstream up`; killed when dropped.
pub(crate) struct Up {
    child: Child,
    /// Port of the MQTT endpoint; 0 when it reads from a broker.
    pub(crate) mqtt: u16,
    /// Port of the admin server.
    pub(crate) http: u16,
    stderr: Option<std::thread::JoinHandle<Vec<u8>>>,
}

impl Up {
    /// Starts it on free ports and waits until it says that it is ready.
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Self {
        Self::launch(millstream(folder), arguments)
    }

    /// [`Up::start`] with a command of the test's own making, as from [`millstream`].
    pub(crate) fn launch(command: Command, arguments: &[&str]) -> Self {
        Self::launch_at(command, 0, arguments)
    }

    /// [`Up::launch`] with the MQTT endpoint on a port that clients know already.
    pub(crate) fn launch_at(mut command: Command, mqtt: u16, arguments: &[&str]) -> Self {
        let mut child = command
            .args(["up", "--mqtt-listen", &format!("127.0.0.1:{mqtt}"), "--http-listen", "127.0.0.1:0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = Some(read_aside(child.stderr.take().unwrap()));
        let mut up = Self { child, mqtt: 0, http: 0, stderr };
        let mut lines = BufReader::new(up.child.stdout.take().unwrap()).lines();
        for line in lines.by_ref() {
            let line = line.unwrap();
            if let Some(address) = line.trim().strip_prefix("mqtt  ") {
                up.mqtt = port_of(address);
            }
            if let Some(address) = line.trim().strip_prefix("http  ") {
                up.http = port_of(address);
            }
            if line.trim().starts_with("ready") {
                std::thread::spawn(move || lines.for_each(drop));
                return up;
            }
        }
        let status = wait(&mut up.child);
        let said = up.stderr.take().unwrap().join().unwrap();
        panic!("up ended with {status} before it was ready:\n{}", String::from_utf8_lossy(&said));
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its number.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The most memory it has had, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
    }

    /// Waits for its end; answers the status and what it said on standard error.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        let said = self.stderr.take().unwrap().join().unwrap();
        (status, String::from_utf8_lossy(&said).into_owned())
    }

    /// SIGTERM, then the end.
    pub(crate) fn stop(self) -> (ExitStatus, String) {
        self.signal(rustix::process::Signal::TERM);
        self.end()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Already ended in most tests.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn port_of(address: &str) -> u16 {
    let address = address.trim().trim_start_matches("http://").trim_start_matches("mqtt://");
    let address = address.split_whitespace().next().unwrap();
    address.trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap_or(0)
}

/// The folder with the recordings, or a loud line and `None`.
pub(crate) fn recordings(test: &str) -> Option<Vec<PathBuf>> {
    let Some(folder) = std::env::var_os("MILLSTREAM_RECORDINGS") else {
        testkit::servers::say_left_out(test, "MILLSTREAM_RECORDINGS names no folder with recordings");
        return None;
    };
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("MILLSTREAM_RECORDINGS={}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".ndjson.gz"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "MILLSTREAM_RECORDINGS={}: no *.ndjson.gz in it", folder.display());
    Some(files)
}

/// All lines of gzip or plain files, in order.
pub(crate) fn lines_of(files: &[PathBuf]) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        let mut text = Vec::new();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            flate2::read::MultiGzDecoder::new(&bytes[..]).read_to_end(&mut text).unwrap();
        } else {
            text = bytes;
        }
        lines.extend(text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec));
    }
    lines
}

/// A small recording made here: `count` messages of `devices` devices. Answers its path.
pub(crate) fn small_recording(folder: &Path, name: &str, count: usize, devices: usize) -> PathBuf {
    let path = folder.join(name);
    let mut text = String::new();
    for n in 0..count {
        let device = n % devices;
        let stamp = 1_700_000_000_000_u64 + n as u64 * 1_000;
        text.push_str(&format!(
            "{{\"device_id\":\"dev-{device:03}\",\"timestamp\":{stamp},\"value\":{n},\"note\":\"größe {n}\"}}\n"
        ));
    }
    std::fs::write(&path, text).unwrap();
    path
}

/// Payloads with how often each is there.
pub(crate) type Bag = BTreeMap<Vec<u8>, usize>;

/// Counts payloads.
pub(crate) fn bag(payloads: impl IntoIterator<Item = Vec<u8>>) -> Bag {
    let mut bag = Bag::new();
    for payload in payloads {
        *bag.entry(payload).or_default() += 1;
    }
    bag
}

/// A connection to the warehouse that only reads.
pub(crate) fn warehouse(folder: &Path) -> rusqlite::Connection {
    let path = folder.join("data/warehouse.db");
    rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// All payloads in the warehouse.
pub(crate) fn warehouse_payloads(folder: &Path) -> Vec<Vec<u8>> {
    let connection = warehouse(folder);
    let mut statement = connection.prepare("SELECT CAST(payload AS BLOB) FROM messages").unwrap();
    let rows = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// Objects in the archive, as users would glob them.
pub(crate) fn archive_objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.join("data/archive")];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// The exact payload bytes of all lines in the archive, from the `json` form.
pub(crate) fn archive_payloads(folder: &Path) -> Vec<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        #[serde(borrow)]
        payload: Option<&'a serde_json::value::RawValue>,
        payload_base64: Option<String>,
    }
    let mut payloads = Vec::new();
    for line in lines_of(&archive_objects(folder)) {
        let line: Line<'_> = serde_json::from_slice(&line).unwrap();
        payloads.push(match (line.payload, line.payload_base64) {
            (Some(raw), None) => raw.get().as_bytes().to_vec(),
            (None, Some(text)) => base64_simd::STANDARD.decode_to_vec(text).unwrap(),
            // JSON's null is a payload like others, and `Option` takes it for none.
            (None, None) => b"null".to_vec(),
            other => panic!("both payload forms: {other:?}"),
        });
    }
    payloads
}

/// `books --json` of the stopped system and its exit code.
pub(crate) fn books(folder: &Path) -> (serde_json::Value, Option<i32>) {
    let output = run(folder, &["books", "--json"]);
    let (stdout, stderr) = texts(&output);
    let report = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}\n{stderr}"));
    (report, output.status.code())
}

/// One HTTP GET on loopback; answers status and body.
pub(crate) fn get(port: u16, path: &str) -> (u16, String) {
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split_whitespace().nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// A command of the machine's, or a loud line; an error where the servers are required.
pub(crate) fn tool(test: &str, name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let found =
        std::env::split_paths(&path).chain(extra).map(|folder| folder.join(name)).find(|file| file.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("MILLSTREAM_REQUIRE_SERVERS").is_none(),
            "{test}: {name} is required and not installed"
        );
        testkit::servers::say_left_out(test, &format!("{name} is not installed; tests/run installs it"));
    }
    found
}

//! No answer before the disk: the system calls of `up`, traced. kill -9 alone never tests a sync, because what a
//! process wrote outlives it in the kernel's cache.
//!
//! Every PUBACK, PUBREC, PUBCOMP and CONNACK of a session that is kept must leave after a sync of the bus's log that
//! began after what it promises was written. The tracer stops a thread before each of these calls and after it, so the
//! order of the lines is the order of the events.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "helpers of tests are tests")]

mod common;
mod raw_mqtt;

use common::{Up, lines_of, millstream, recordings, small_recording, tool, until};
use raw_mqtt::{Raw, packet, string};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::Command;

/// Messages of each quality of service.
const MESSAGES: u16 = 100;
/// How many are sent before their answers are waited for.
const WINDOW: u16 = 20;
const CLIENT_ID: &str = "traced-client";

/// `up` under strace. With `-D` strace is a child of `up`, so that signals reach `up` itself.
fn traced(strace: &Path, folder: &Path, trace: &Path) -> Command {
    let up = millstream(folder);
    let mut command = Command::new(strace);
    command.args(["-f", "-D", "-yy", "-xx", "-s", "70000", "--seccomp-bpf", "-o"]).arg(trace);
    command.args(["-e", "trace=fdatasync,fsync,write,writev,pwrite64,pwritev,sendto,sendmsg", "--"]);
    command.arg(up.get_program()).args(up.get_args()).current_dir(folder);
    for (name, _) in up.get_envs().filter(|(_, value)| value.is_none()) {
        command.env_remove(name);
    }
    command
}

fn topic(packet_id: u16) -> String {
    format!("traced/{packet_id:05}/up")
}

/// Connects with a session that is kept, publishes every line at QoS 1 and at QoS 2, and completes them. Packet
/// identifiers are not used twice.
fn converse(port: u16, lines: &[Vec<u8>]) {
    let mut client = Raw::open(port).unwrap();
    let connect = [string(b"MQTT"), vec![4, 0, 0, 0], string(CLIENT_ID.as_bytes())].concat();
    client.send(&packet(0x10, &connect)).unwrap();
    assert_eq!(client.answer().unwrap().unwrap().first, 0x20);
    let mut packet_id = 0;
    for window in lines.chunks(WINDOW.into()) {
        for (first, answer) in [(0x32, 0x40), (0x34, 0x50)] {
            let begin = packet_id;
            for line in window {
                packet_id += 1;
                let body =
                    [string(topic(packet_id).as_bytes()), packet_id.to_be_bytes().to_vec(), line.clone()];
                client.send(&packet(first, &body.concat())).unwrap();
            }
            for expected in begin + 1..=packet_id {
                let got = client.answer().unwrap().unwrap();
                assert_eq!((got.first, got.body), (answer, expected.to_be_bytes().to_vec()));
            }
            if answer == 0x40 {
                continue;
            }
            // One by one, so that the sync before a PUBCOMP is its own.
            for released in begin + 1..=packet_id {
                client.send(&packet(0x62, &released.to_be_bytes())).unwrap();
                let got = client.answer().unwrap().unwrap();
                assert_eq!((got.first, got.body), (0x70, released.to_be_bytes().to_vec()));
            }
        }
    }
}

/// One line of the trace: the thread, the call, what its descriptor is, the bytes, and which half of it this is.
struct Line<'a> {
    thread: &'a str,
    call: &'a str,
    file: String,
    bytes: Vec<u8>,
    begins: bool,
    ends: bool,
}

fn unhex(text: &str) -> Vec<u8> {
    let pairs = text.split("\\x").skip(1);
    pairs.map_while(|pair| u8::from_str_radix(pair.get(..2)?, 16).ok()).collect()
}

fn parse(line: &str) -> Option<Line<'_>> {
    let (thread, rest) = line.split_once(' ')?;
    let rest = rest.trim_start();
    if let Some(resumed) = rest.strip_prefix("<... ") {
        let call = resumed.split(' ').next()?;
        return Some(Line {
            thread,
            call,
            file: String::new(),
            bytes: Vec::new(),
            begins: false,
            ends: true,
        });
    }
    let (call, arguments) = rest.split_once('(')?;
    let descriptor = arguments.split_once('<')?.1.split_once('>')?.0;
    // A socket is `TCP:[…->…]`, which has a `>` of its own.
    let file = if descriptor.starts_with("TCP") {
        arguments.split_once('<')?.1.split_once(']')?.0.to_owned()
    } else {
        String::from_utf8_lossy(&unhex(descriptor)).into_owned()
    };
    let mut bytes = Vec::new();
    // Every second part between quotes is a string; sendmsg and writev have several.
    for text in arguments.split('"').skip(1).step_by(2) {
        bytes.extend(unhex(text));
    }
    let ends = !line.ends_with("<unfinished ...>");
    Some(Line { thread, call, file, bytes, begins: true, ends })
}

/// What has been seen so far, in numbers of writes to the bus's log.
#[derive(Default)]
struct Seen {
    writes: usize,
    /// All writes up to this one are on the disk.
    durable: usize,
    /// Threads in a sync of the log, with the number of writes at its beginning.
    syncing: HashMap<String, usize>,
    /// The first write with a message, by packet identifier.
    written: HashMap<u16, usize>,
    /// The first write with the session.
    session: Option<usize>,
    /// The number of writes when a PUBREC left.
    received: HashMap<u16, usize>,
    /// What was written to a connection and is no whole packet yet.
    unread: HashMap<String, Vec<u8>>,
    pubacks: u16,
    pubrecs: u16,
    pubcomps: u16,
}

impl Seen {
    fn look_at(&mut self, line: &Line<'_>) {
        let is_log = line.file.ends_with("/bus.db-wal");
        match line.call {
            "fdatasync" | "fsync" if is_log || !line.begins => self.sync(line),
            "write" | "pwrite64" | "pwritev" if is_log => self.write(&line.bytes),
            _ if line.file.starts_with("TCP") && line.begins => self.hear(&line.file, &line.bytes),
            _ => {}
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.writes += 1;
        let write = self.writes;
        if bytes.windows(CLIENT_ID.len()).any(|part| part == CLIENT_ID.as_bytes()) {
            self.session.get_or_insert(write);
        }
        for at in (0..bytes.len()).filter(|at| bytes[*at..].starts_with(b"traced/")) {
            let number =
                bytes.get(at + 7..at + 12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
            if let Some(packet_id) = number {
                self.written.entry(packet_id).or_insert(write);
            }
        }
    }

    fn sync(&mut self, line: &Line<'_>) {
        if line.begins {
            self.syncing.insert(line.thread.to_owned(), self.writes);
        }
        if line.ends
            && let Some(writes) = self.syncing.remove(line.thread)
        {
            self.durable = self.durable.max(writes);
        }
    }

    /// Reads what goes to one connection; a packet may come in several writes.
    fn hear(&mut self, connection: &str, bytes: &[u8]) {
        let mut unread = self.unread.remove(connection).unwrap_or_default();
        unread.extend_from_slice(bytes);
        // `H` is the admin server's.
        while let [first, length, ..] = unread[..]
            && first != b'H'
            && unread.len() >= 2 + usize::from(length)
        {
            let packet: Vec<u8> = unread.drain(..2 + usize::from(length)).collect();
            self.answer(first, &packet[2..]);
        }
        self.unread.insert(connection.to_owned(), unread);
    }

    fn answer(&mut self, first: u8, body: &[u8]) {
        let packet_id = || u16::from_be_bytes([body[0], body[1]]);
        match first {
            0x20 => assert!(self.is_durable(self.session), "CONNACK before its session was on the disk"),
            0x40 => {
                self.pubacks += 1;
                let written = self.written.get(&packet_id()).copied();
                assert!(
                    self.is_durable(written),
                    "PUBACK {} before its message was on the disk",
                    packet_id()
                );
            }
            0x50 => {
                self.pubrecs += 1;
                self.received.insert(packet_id(), self.writes);
                let written = self.written.get(&packet_id()).copied();
                assert!(
                    self.is_durable(written),
                    "PUBREC {} before its message was on the disk",
                    packet_id()
                );
            }
            0x70 => {
                self.pubcomps += 1;
                let received = self.received[&packet_id()];
                assert!(
                    self.durable > received,
                    "PUBCOMP {} before its release was on the disk",
                    packet_id()
                );
                // So that the next release, which has not been sent yet, needs writes of its own.
                self.received.values_mut().for_each(|received| *received = self.writes);
            }
            _ => {}
        }
    }

    fn is_durable(&self, write: Option<usize>) -> bool {
        write.is_some_and(|write| write <= self.durable)
    }
}

#[test]
fn no_answer_leaves_before_the_sync_that_covers_it() {
    let Some(strace) = tool("syncs", "strace") else { return };
    let folder = tempfile::tempdir().unwrap();
    // Messages of the same shape where there are no real ones; what is proved does not depend on them.
    let files = match std::env::var_os("MILLSTREAM_RECORDINGS") {
        Some(_) => recordings("syncs").unwrap(),
        None => vec![small_recording(folder.path(), "small.ndjson", MESSAGES.into(), 7)],
    };
    let mut lines = lines_of(&files[..1]);
    lines.truncate(MESSAGES.into());
    let trace = folder.path().join("trace.txt");
    let up = Up::launch(traced(&strace, folder.path(), &trace), &[]);
    converse(up.mqtt, &lines);
    let (status, said) = up.stop();
    assert_eq!(status.code(), Some(0), "{said}");
    // The tracer writes its last lines after the process has ended.
    let expected = u16::try_from(lines.len()).unwrap();
    let mut seen = Seen::default();
    until("the trace is complete", || {
        seen = Seen::default();
        let text = String::from_utf8(std::fs::read(&trace).unwrap()).unwrap();
        text.lines().filter_map(parse).for_each(|line| seen.look_at(&line));
        seen.pubcomps == expected
    });
    assert_eq!((seen.pubacks, seen.pubrecs, seen.pubcomps), (expected, expected, expected));
    assert!(seen.writes > 0 && seen.session.is_some());
}

/// What the archive's index was written, and which temporary files were synced by then.
#[derive(Default)]
struct Objects {
    syncing: HashMap<String, String>,
    synced: HashSet<String>,
    listed: usize,
}

impl Objects {
    fn look_at(&mut self, line: &Line<'_>) {
        match line.call {
            "fdatasync" | "fsync" => self.sync(line),
            "write" | "pwrite64" | "pwritev" if line.file.ends_with("/archive.db-wal") => {
                self.write(&line.bytes);
            }
            _ => {}
        }
    }

    fn sync(&mut self, line: &Line<'_>) {
        if line.begins && line.file.contains("/archive-tmp/") {
            self.syncing.insert(line.thread.to_owned(), line.file.clone());
        }
        if line.ends
            && let Some(file) = self.syncing.remove(line.thread)
            && let Some((_, name)) = file.rsplit_once('/')
        {
            self.synced.insert(name.to_owned());
        }
    }

    /// A temporary file is called `<id>.jsonl.gz.<number>`; of a finished object the number is missing.
    fn write(&mut self, bytes: &[u8]) {
        const ID: usize = 36;
        const END: &[u8] = b".jsonl.gz.";
        for at in (ID..bytes.len()).filter(|at| bytes[*at..].starts_with(END)) {
            let digits = bytes[at + END.len()..].iter().take_while(|byte| byte.is_ascii_digit());
            // The next column begins right behind the number, with another text or number; the first digit is enough.
            if digits.count() == 0 {
                continue;
            }
            let name = String::from_utf8_lossy(&bytes[at - ID..at + END.len()]).into_owned();
            assert!(
                self.synced.iter().any(|file| file.starts_with(&name)),
                "{name} is listed before its file was synced"
            );
            self.listed += 1;
        }
    }
}

#[test]
fn no_object_is_listed_before_its_file_is_synced() {
    let Some(strace) = tool("syncs", "strace") else { return };
    let folder = tempfile::tempdir().unwrap();
    let recording = small_recording(folder.path(), "small.ndjson", 10, 7);
    let trace = folder.path().join("trace.txt");
    let up = Up::launch(traced(&strace, folder.path(), &trace), &[]);
    converse(up.mqtt, &lines_of(&[recording]));
    let (status, said) = up.stop();
    assert_eq!(status.code(), Some(0), "{said}");
    let mut seen = Objects::default();
    until("the trace is complete", || {
        seen = Objects::default();
        let text = String::from_utf8(std::fs::read(&trace).unwrap()).unwrap();
        text.lines().filter_map(parse).for_each(|line| seen.look_at(&line));
        seen.listed > 0
    });
}

//! What a loss of power may leave of files that were not synced: torn ends of databases' logs, and half an object.
//!
//! SQLite's write-ahead log is a header of 32 bytes and frames of 24 bytes plus a page, each with the log's salts and
//! a checksum over all before it (<https://www.sqlite.org/fileformat2.html#walformat>). What follows the last valid
//! commit frame was never answered for: it may be anything. So may the `-shm` file, which no sync covers.

use crate::rig::random::Random;
use std::fs;
use std::path::{Path, PathBuf};

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// A write-ahead log as far as it is valid.
struct Log {
    bytes: Vec<u8>,
    page: usize,
    big_endian: bool,
    /// Where the last valid commit frame ends.
    committed: usize,
    /// The running checksum there.
    sums: (u32, u32),
}

impl Log {
    /// `None` when the log is empty or its header is not valid: then it holds nothing.
    fn read(path: &Path) -> Option<Self> {
        let bytes = fs::read(path).unwrap();
        let magic = word(bytes.get(..HEADER)?, 0);
        assert_eq!(magic & !1, 0x377f_0682, "{}: not a write-ahead log", path.display());
        let big_endian = magic & 1 == 1;
        let page = word(&bytes, 8) as usize;
        let sums = checksum(big_endian, (0, 0), &bytes[..24]);
        if sums != (word(&bytes, 24), word(&bytes, 28)) {
            return None;
        }
        let mut log = Self { bytes, page, big_endian, committed: HEADER, sums };
        log.follow();
        Some(log)
    }

    fn follow(&mut self) {
        let (mut at, mut sums) = (HEADER, self.sums);
        while let Some(frame) = self.bytes.get(at..at + FRAME_HEADER + self.page) {
            sums = checksum(self.big_endian, sums, &frame[..8]);
            sums = checksum(self.big_endian, sums, &frame[FRAME_HEADER..]);
            let valid = frame[8..16] == self.bytes[16..24] && sums == (word(frame, 16), word(frame, 20));
            if !valid {
                return;
            }
            at += frame.len();
            if word(frame, 4) != 0 {
                (self.committed, self.sums) = (at, sums);
            }
        }
    }

    /// A frame that says of page 1 that it is garbage: valid but for what `spoil` does.
    fn frame(&self, random: &mut Random, commit: bool) -> Vec<u8> {
        let mut frame = vec![0; FRAME_HEADER + self.page];
        frame[..4].copy_from_slice(&1_u32.to_be_bytes());
        frame[4..8].copy_from_slice(&u32::from(commit).to_be_bytes());
        frame[8..16].copy_from_slice(&self.bytes[16..24]);
        random.fill(&mut frame[FRAME_HEADER..]);
        let sums = checksum(self.big_endian, self.sums, &frame[..8]);
        let sums = checksum(self.big_endian, sums, &frame[FRAME_HEADER..]);
        frame[16..20].copy_from_slice(&sums.0.to_be_bytes());
        frame[20..24].copy_from_slice(&sums.1.to_be_bytes());
        frame
    }

    /// The log with another end.
    fn tear(mut self, random: &mut Random) -> Vec<u8> {
        let tail = self.bytes.len() - self.committed;
        let uncommitted = self.frame(random, false);
        let mut unsummed = self.frame(random, true);
        unsummed[23] ^= 1;
        match random.below(6) {
            // Cut in the middle of what was being written.
            0 if tail > 0 => self.bytes.truncate(self.committed + random.below(tail)),
            0 => self.bytes.extend(&uncommitted[..random.below(uncommitted.len())]),
            1 => self.bytes.truncate(self.committed),
            // Blocks that were never written hold what lay there before.
            2 => random.fill(&mut self.bytes[self.committed..]),
            3 => {
                let mut garbage = vec![0; 1 + random.below(3 * self.page)];
                random.fill(&mut garbage);
                self.bytes.extend(garbage);
            }
            // A transaction whose commit frame is missing, or did not arrive whole.
            4 => {
                self.bytes.truncate(self.committed);
                self.bytes.extend(uncommitted);
            }
            _ => {
                self.bytes.truncate(self.committed);
                self.bytes.extend(unsummed);
            }
        }
        self.bytes
    }
}

/// Tears the end of every database's log below `data`. Answers how many were torn.
pub(crate) fn tear_logs(data: &Path, random: &mut Random) -> usize {
    let mut torn = 0;
    for path in files(data) {
        let name = path.to_string_lossy();
        if name.ends_with("-wal")
            && let Some(log) = Log::read(&path)
        {
            fs::write(&path, log.tear(random)).unwrap();
            torn += 1;
        }
        if name.ends_with("-shm") {
            let mut bytes = fs::read(&path).unwrap();
            random.fill(&mut bytes);
            fs::write(&path, bytes).unwrap();
        }
    }
    torn
}

/// Cuts every temporary object that the index does not list, and leaves one more behind. Answers how many there are.
pub(crate) fn tear_objects(data: &Path, random: &mut Random) -> usize {
    let index = data.join("archive.db");
    let listed: Vec<String> = match index.exists() {
        true => crate::rig::stored::pending_objects(&index),
        false => Vec::new(),
    };
    let folder = data.join("archive-tmp");
    if !folder.exists() {
        return 0;
    }
    fs::write(folder.join(format!("left-{}.jsonl.gz", random.below(1 << 30))), [0x1f, 0x8b, 8, 0, 0])
        .unwrap();
    let mut torn = 0;
    for path in files(&folder) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !listed.contains(&name) {
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..random.below(bytes.len() + 1)]).unwrap();
            torn += 1;
        }
    }
    torn
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// SQLite's running checksum; the words are read in the byte order that the log's first number names.
fn checksum(big_endian: bool, sums: (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let read = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
    let mut words = bytes.chunks_exact(4).map(|word| read(word.try_into().unwrap()));
    let (mut first, mut second) = sums;
    while let (Some(x), Some(y)) = (words.next(), words.next()) {
        first = first.wrapping_add(x).wrapping_add(second);
        second = second.wrapping_add(y).wrapping_add(first);
    }
    (first, second)
}

/// What the tests above rest on: a log that SQLite wrote is understood to its last commit, and what is torn behind it
/// changes nothing that was committed.
#[test]
fn tearing_a_log_leaves_every_commit_and_nothing_else() {
    for seed in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("test.db");
        let writer = rusqlite::Connection::open(&path).unwrap();
        writer.execute_batch("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=7").unwrap();
        writer.execute_batch("CREATE TABLE t(n INTEGER PRIMARY KEY, body BLOB)").unwrap();
        let mut random = Random::new(seed);
        let count = 1 + random.below(30);
        for _ in 0..count {
            writer
                .execute("INSERT INTO t(body) VALUES (zeroblob(?1))", [random.below(9_000) as i64])
                .unwrap();
        }
        let copy = tempfile::tempdir().unwrap();
        for file in files(folder.path()) {
            fs::copy(&file, copy.path().join(file.file_name().unwrap())).unwrap();
        }
        assert_eq!(tear_logs(copy.path(), &mut random), 1, "seed {seed}");
        let reader = rusqlite::Connection::open(copy.path().join("test.db")).unwrap();
        let found: i64 = reader.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        let sound: String = reader.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!((found, sound.as_str()), (count as i64, "ok"), "seed {seed}");
    }
}

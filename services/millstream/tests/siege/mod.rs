//! A running program under attack, with an honest device beside the attacker.

use crate::common::{Bag, Up, archive_payloads, bag, get, millstream, run, texts, until, warehouse_payloads};
use crate::raw_mqtt::Publisher;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// More than this a program under attack must not need, in MiB. Its own bounds add up to less than half (messages in
/// flight, open archive groups, page caches); a test build and the allocator have the rest.
const MOST_MIB: u64 = 400;

/// Small batches, and time to write them on a slow machine; the archive's folders are named by what the payload says, so that an attacker names them.
const CONFIG: &str = "\
shutdown: {drain: 100s}
icestore:
  location: [\"enrichment:location_id\", \"attribute:location_id\", /location]
  batch: {count: 1000, age: 500ms}
";

pub(crate) struct Siege {
    /// Holds the folder in which the program runs, so that a small step out of it is seen.
    outer: tempfile::TempDir,
    folder: PathBuf,
    before: BTreeSet<PathBuf>,
    pub(crate) up: Up,
    honest: Publisher,
}

impl Siege {
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with(config, millstream)
    }

    /// With a command of the test's own making for the folder.
    pub(crate) fn start_with(config: &str, command: impl FnOnce(&Path) -> std::process::Command) -> Self {
        let outer = tempfile::tempdir().unwrap();
        let folder = outer.path().join("a/b/c");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("millstream.yaml"), format!("{CONFIG}{config}")).unwrap();
        let before = outside(outer.path());
        let up = Up::launch(command(&folder), &[]);
        let honest = Publisher::start(up.mqtt, "honest", 10);
        honest.wait_for(50);
        Self { outer, folder, before, up, honest }
    }

    /// The honest device is served, and the process says that it is well.
    pub(crate) fn is_well(&self) {
        self.honest.wait_for(20);
        assert_eq!(get(self.up.http, "/healthz").0, 200);
    }

    /// A name that nobody else uses, for paths that lead out of the folder: where one has worked, it is found.
    pub(crate) fn marker(&self) -> String {
        format!("left-by{}", self.outer.path().file_name().unwrap().to_string_lossy())
    }

    /// Largest resident size so far, in MiB.
    pub(crate) fn peak_mib(&self) -> u64 {
        peak_mib(self.up.id())
    }

    /// How often the warehouse has `payload` once everything has arrived there: at least `acknowledged` times.
    pub(crate) fn stored_at_least(&self, payload: &[u8], acknowledged: usize) -> usize {
        let mut stored = 0;
        until("everything acknowledged is in the warehouse", || {
            stored = warehouse_payloads(&self.folder).iter().filter(|found| *found == payload).count();
            stored >= acknowledged
        });
        stored
    }

    /// The attack is over. `accepted` are the payloads that the attacker got a PUBACK of success for.
    pub(crate) fn end(self, test: &str, accepted: Bag) {
        self.is_well();
        until("ready", || get(self.up.http, "/readyz").0 == 200);
        let (peak, marker) = (self.peak_mib(), self.marker());
        let published = self.honest.finish();
        assert_eq!(
            (published.disconnects, published.refused.len()),
            (0, 0),
            "the honest device was disturbed"
        );
        let (status, stderr) = self.up.stop();
        assert_eq!(status.code(), Some(0), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert!(stderr.lines().count() < 100, "an attacker must not fill the log:\n{stderr}");
        println!("{test}: at most {peak} MiB resident");
        assert!(peak < MOST_MIB, "{peak} MiB resident");
        let mut sent = accepted;
        for payload in published.acked {
            *sent.entry(payload.into_bytes()).or_default() += 1;
        }
        assert_stores_hold(&self.folder, &sent);
        assert_eq!(outside(self.outer.path()), self.before, "files outside of the data folder");
        let strays = strays(self.outer.path(), &marker);
        assert!(strays.is_empty(), "files elsewhere: {strays:?}");
    }
}

fn assert_stores_hold(folder: &Path, sent: &Bag) {
    let arguments = ["up", "--until-drained", "--mqtt-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"];
    let output = run(folder, &arguments);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    let (rows, archived) = (bag(warehouse_payloads(folder)), bag(archive_payloads(folder)));
    assert_same("warehouse", &rows, sent);
    assert_same("archive", &archived, sent);
    let output = run(folder, &["books", "--deep", "--json"]);
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
}

/// Says which payloads differ, by their beginnings.
fn assert_same(store: &str, found: &Bag, wanted: &Bag) {
    let names = |one: &Bag, other: &Bag| -> Vec<String> {
        let missing = one.iter().filter(|(payload, count)| other.get(*payload) != Some(count));
        missing.take(10).map(|(payload, count)| format!("{count} × {}", beginning(payload))).collect()
    };
    let (missing, foreign) = (names(wanted, found), names(found, wanted));
    assert!(
        missing.is_empty() && foreign.is_empty(),
        "{store}: missing {missing:?}, not acknowledged and there {foreign:?}"
    );
}

fn beginning(payload: &[u8]) -> String {
    format!("{:?} ({} bytes)", String::from_utf8_lossy(&payload[..payload.len().min(60)]), payload.len())
}

pub(crate) fn peak_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// Everything below `outer` but what is in the data folder, and that folder's own entries.
fn outside(outer: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![outer.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("a/b/c/data") {
                continue;
            }
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path);
        }
    }
    found
}

/// What has `marker` in its name where a path out of `outer` would most likely end: above it, in `/tmp`, `/` and at home.
fn strays(outer: &Path, marker: &str) -> Vec<PathBuf> {
    let home = std::env::home_dir();
    let above = outer.ancestors().skip(1).chain(home.as_deref());
    let folders: BTreeSet<&Path> = above.chain([Path::new("/tmp"), Path::new("/")]).collect();
    let entries = folders.into_iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten().flatten();
    let is_marked =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(marker));
    entries.map(|entry| entry.path()).filter(is_marked).collect()
}

/// A number from the environment, so that CI can use a small one.
pub(crate) fn scale(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

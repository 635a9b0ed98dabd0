//! Retention in the running program, killed in the middle of it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod common;

use common::{PATIENCE, Up, archive_objects, books, run, small_recording, texts, warehouse};
use rusqlite::{Connection, OpenFlags};
use std::path::Path;
use std::time::{Duration, Instant};

const MESSAGES: usize = 3_000;
/// How often the program is killed while it forgets; more for longer runs.
const ROUNDS: &str = "MILLSTREAM_RETENTION_ROUNDS";

/// Ids that topic `raw` has forgotten.
fn forgotten(folder: &Path) -> i64 {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let bus = Connection::open_with_flags(folder.join("data/bus.db"), flags).unwrap();
    bus.busy_timeout(PATIENCE).unwrap();
    let sql = "SELECT coalesce(sum(count), 0) FROM folded WHERE place = 'topic:raw'";
    bus.query_row(sql, [], |row| row.get(0)).unwrap()
}

fn await_true(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn killed_while_it_forgets_it_loses_nothing_and_goes_on_until_all_is_gone_and_the_books_balance() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("millstream.yaml"),
        "bus: {lease: 2s}\nicestore: {batch: {age: 500ms}}\nretention: {ids: 4s, warehouse: 4s, archive: 4s}\n",
    )
    .unwrap();
    let file = small_recording(folder.path(), "many.ndjson", MESSAGES, 11);
    let rounds: i64 = std::env::var(ROUNDS).map_or(2, |text| text.parse().unwrap());
    for _ in 0..rounds {
        let up = Up::start(folder.path(), &[]);
        let broker = format!("mqtt://127.0.0.1:{}", up.mqtt);
        let fed = run(folder.path(), &["feed", "--broker", &broker, file.to_str().unwrap()]);
        assert_eq!(fed.status.code(), Some(0), "{:?}", texts(&fed));
        let before = forgotten(folder.path());
        await_true("ids are forgotten", || forgotten(folder.path()) > before);
        up.signal(rustix::process::Signal::KILL);
        up.end();
        let (report, _) = books(folder.path());
        assert_eq!(report["unaccounted_count"], 0, "{report:#}");
    }
    let up = Up::start(folder.path(), &[]);
    let total = rounds * i64::try_from(MESSAGES).unwrap();
    await_true("all ids are forgotten", || forgotten(folder.path()) == total);
    await_true("all objects are removed", || archive_objects(folder.path()).is_empty());
    // The newest row stays: its number must not be given again.
    let rows = || warehouse(folder.path()).query_row("SELECT count(*) FROM messages", [], |row| row.get(0));
    await_true("all rows but the newest are removed", || rows() == Ok(1));
    let (status, stderr) = up.stop();
    assert_eq!(status.code(), Some(0), "{stderr}");
    let (report, code) = books(folder.path());
    assert_eq!((&report["balanced"], code), (&serde_json::json!(true), Some(0)), "{report:#}");
    assert_eq!(report["folded"]["messages"], total);
    assert_eq!(report["warehouse"]["removed"], total - 1);
    assert_eq!(report["archive"]["removed_lines"], total);
    let deep = run(folder.path(), &["books", "--deep"]);
    assert_eq!(deep.status.code(), Some(0), "{:?}", texts(&deep));
}

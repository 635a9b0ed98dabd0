//! Real servers and the official emulators for tests: started on free loopback ports, stopped by their process id, gone
//! with the process that started them.
//!
//! A server that is not installed leaves its tests out, loudly; with `MILLSTREAM_REQUIRE_SERVERS=1` they fail instead.
//!
//! The administration helpers speak HTTP with blocking sockets over loopback, so that a test needs no client to prepare
//! what a client is tested against. They panic when a server refuses: a test that cannot be set up has failed.

mod bigquery;
mod firestore;
mod http;
mod mosquitto;
mod process;
mod pubsub;
mod redis;
mod server;

use std::io;
use std::path::PathBuf;

pub use self::bigquery::BigQueryEmulator;
pub use self::firestore::FirestoreEmulator;
pub use self::mosquitto::Mosquitto;
pub use self::pubsub::{PubSubEmulator, PubSubProject, Publication, Pulled, SubscriptionSettings};
pub use self::redis::Redis;
pub use self::server::Server;

/// The program in `PATH`, or in the folders for servers that a user's `PATH` often lacks.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// The first file below the emulators of the Google Cloud CLI whose path is `folder` and whose name ends with `ending`.
fn find_emulator(folder: &str, ending: &str) -> Option<PathBuf> {
    // The CLI itself would say where it is installed, and take a second to start.
    let program = find_program("gcloud")?.canonicalize().ok()?;
    let root = program.parent()?.parent()?;
    let files = std::fs::read_dir(root.join("platform").join(folder)).ok()?;
    let mut files = files.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|file| file.to_str().is_some_and(|path| path.ends_with(ending)))
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

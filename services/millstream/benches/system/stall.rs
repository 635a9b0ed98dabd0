//! Peak memory while a sink is stalled, and of a process that starts with what has piled up meanwhile.

use crate::path::feed;
use crate::program::{self, Up};
use crate::{figure, messages, scaled};

const FED: [usize; 2] = [500_000, 1_000_000];

pub(crate) fn run() {
    let payloads = messages::payloads();
    let folder = tempfile::tempdir().unwrap();
    let half = messages::recording(folder.path(), &payloads, scaled(FED[0]));
    let up = Up::start(folder.path());
    let lock = rusqlite::Connection::open(folder.path().join("data/warehouse.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    for count in FED {
        feed(folder.path(), &up, &half);
        figure(&format!("peak memory, {} messages fed, warehouse stalled", scaled(count)), up.peak(), "MiB");
    }
    up.kill();
    lock.execute_batch("ROLLBACK").unwrap();
    drop(lock);
    let up = Up::start(folder.path());
    up.wait_for("millstream_messages_out_total{stage=\"bigquery\"}", scaled(FED[0]));
    figure(&format!("peak memory, start with a backlog of {}", scaled(FED[1])), up.peak(), "MiB");
    up.stop();
    program::run(folder.path(), &["up", "--until-drained"]);
    program::run(folder.path(), &["books"]);
}

//! Payloads of devices: real ones where recordings are at hand, else made up in their shape.

use bytes::Bytes;
use std::io::{BufRead, BufReader};
use testkit::servers::say_left_out;

/// At most `count` payloads, from all recordings in turn.
pub(crate) fn payloads(test: &str, count: usize) -> Vec<Bytes> {
    let Ok(folder) = std::env::var("MILLSTREAM_RECORDINGS") else {
        say_left_out(test, "real messages only: MILLSTREAM_RECORDINGS names no folder with recordings");
        return (0..count).map(made_up).collect();
    };
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "gz"));
    let share = count.div_ceil(files.len().max(1));
    let recorded = files.iter().flat_map(|file| {
        let file = std::fs::File::open(file).expect("a recording");
        let lines = BufReader::new(icestore::decompress(".jsonl.gz", file).expect("a decoder")).lines();
        lines.take(share).map(|line| Bytes::from(line.expect("a line")))
    });
    recorded.take(count).collect()
}

fn made_up(n: usize) -> Bytes {
    let at = 1_672_867_882_000 + n;
    Bytes::from(format!(
        r#"{{"timestamp":{at},"value":{n}.5,"note":"zählt","decoded":{{"payload":{{"temperature":-{n}.25,"battery":{n}}}}}}}"#
    ))
}

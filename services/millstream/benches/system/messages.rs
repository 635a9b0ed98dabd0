//! The payloads that are played: recordings where there are some, else made up ones of their size.

use std::io::Read;
use std::path::PathBuf;

/// How many messages are made up when there are no recordings.
const MADE_UP: usize = 40_000;

/// All payloads, one for one.
pub(crate) fn payloads() -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    for file in recordings() {
        let mut text = Vec::new();
        let file = std::fs::File::open(&file).unwrap();
        flate2::read::MultiGzDecoder::new(file).read_to_end(&mut text).unwrap();
        payloads
            .extend(text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec));
    }
    if payloads.is_empty() {
        println!("no recordings (MILLSTREAM_RECORDINGS): {MADE_UP} messages are made up");
        payloads = (0..MADE_UP).map(made_up).collect();
    }
    payloads
}

fn recordings() -> Vec<PathBuf> {
    let Some(folder) = std::env::var_os("MILLSTREAM_RECORDINGS") else { return Vec::new() };
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("MILLSTREAM_RECORDINGS names a folder")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .collect();
    files.sort();
    files
}

fn made_up(n: usize) -> Vec<u8> {
    let spread = n.wrapping_mul(2_654_435_761) >> 7;
    let gateway = |at: usize| {
        format!(r#"{{"gateway_id":"gw-{:04}","rssi":-{},"snr":{}.25}}"#, spread % 9_000 + at, n % 120, at)
    };
    let gateways: Vec<_> = (0..22).map(gateway).collect();
    let stamp = 1_672_867_882_000 + n * 1_000;
    format!(
        r#"{{"device_id":"dev-{}","timestamp":{stamp},"value":{}.5,"gateways":[{}]}}"#,
        n % 5,
        n % 100,
        gateways.join(",")
    )
    .into_bytes()
}

/// Writes `count` payloads, from the first on again and again, as one recording. Answers its path.
pub(crate) fn recording(folder: &std::path::Path, payloads: &[Vec<u8>], count: usize) -> PathBuf {
    let path = folder.join("recording.ndjson");
    let mut text = Vec::new();
    let mut file = std::fs::File::create(&path).unwrap();
    for payload in payloads.iter().cycle().take(count) {
        text.extend_from_slice(payload);
        text.push(b'\n');
        if text.len() > 1 << 20 {
            std::io::Write::write_all(&mut file, &text).unwrap();
            text.clear();
        }
    }
    std::io::Write::write_all(&mut file, &text).unwrap();
    path
}

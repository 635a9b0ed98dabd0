//! What fuzzing found, and its seeds, replayed without a fuzzer: `fuzz/` holds the corpora and what must hold of them.
//! The packets are replayed beside their parsers, in `mqttconverter`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "../../../fuzz/src/configuration.rs"]
mod configuration;
#[path = "../../../fuzz/src/recording.rs"]
mod recording;
#[path = "../../../fuzz/src/template.rs"]
mod template;

fn replay(target: &str, holds: fn(&[u8])) {
    let folder = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let data = std::fs::read(&path).unwrap();
        if std::panic::catch_unwind(|| holds(&data)).is_err() {
            panic!("{} breaks what must hold", path.display());
        }
        count += 1;
    }
    assert!(count > 20, "only {count} files in {folder}");
}

#[test]
fn recordings_are_read_alike_however_they_arrive_and_damaged_ones_name_the_line() {
    replay("recording", recording::holds);
}

#[test]
fn configurations_are_refused_with_a_place_in_the_file_or_print_and_read_back() {
    replay("configuration", configuration::holds);
}

#[test]
fn templates_filters_and_pointers_mean_what_their_definitions_say() {
    replay("template", template::holds);
}

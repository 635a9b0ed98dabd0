//! Documents that are made from the code stay in step with it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

use millstream::config::Config;
use service_kit::config::{render_reference, schema};
use std::path::PathBuf;

fn document(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join("docs").join(name)
}

const HEAD: &str = "\
# Configuration reference

Generated from the types. To write it anew after a change:
`MILLSTREAM_WRITE_DOCS=1 cargo test -p millstream --test documents`.

One YAML file, `./millstream.yaml` or `--config FILE`. Everything has a default; the empty file is a working one. A flag
wins over an environment variable, which wins over the file. `${VAR}` and `${VAR:-default}` in values come from the
environment, `$${` writes `${`. Durations are written `250ms`, `5s`, `1m30s`, `2h`; sizes `512KiB`, `64MiB`, `10MB`.
A secret is a text, `${VAR}`, or `{file: PATH}`. Unknown keys are mistakes. `millstream check` names every mistake with
its line; `millstream schema` prints the JSON Schema for editors; `--print-config` shows what takes effect.

";

#[test]
fn the_configuration_reference_is_the_one_of_the_types() {
    let text = format!("{HEAD}{}", render_reference(&schema::<Config>()));
    let path = document("configuration.md");
    if std::env::var_os("MILLSTREAM_WRITE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == text, "docs/configuration.md is out of date; its head says how to write it anew");
}

#[test]
fn every_metric_is_documented() {
    let names = include_str!("../../../crates/messagepipeline/src/metric_names.rs");
    let documented = std::fs::read_to_string(document("metrics.md")).unwrap();
    let names: Vec<_> = names.split('"').filter(|part| part.starts_with("millstream_")).collect();
    assert!(names.len() > 20);
    for name in names {
        assert!(documented.contains(name), "docs/metrics.md does not describe {name}");
    }
}

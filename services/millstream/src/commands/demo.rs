//! `millstream demo`: a simulated fleet through the whole path, then what arrived, where it lies and what to try next.

use super::up::{Work, run_system};
use crate::books::Report;
use crate::check::check;
use crate::cli::{Common, DemoArgs};
use crate::config::{self, Config};
use crate::output::{Failure, print, say};
use crate::rate::Rate;
use crate::simulate::Fleet;
use crate::table::{Format, Printer, terminal_width};
use embedded::folder::DataFolder;
use embedded::registry::Importer;
use embedded::warehouse::WarehouseReader;
use messagepipeline::SystemClock;
use service_kit::Exit;
use service_kit::config::Override;
use service_kit::telemetry::{self, LogLevel};
use std::fmt::Write as _;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Rows shown at the end.
const ROWS: &str = "SELECT substr(received_at, 12, 8) AS received, device_id, value, client_id, location_id, category \
                    FROM messages ORDER BY message_id DESC LIMIT 5";
/// Archive objects shown at the end.
const OBJECTS: usize = 6;
/// The demo's own questions are answered from a few thousand rows.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn run(common: &Common, arguments: &DemoArgs) -> Result<Exit, Failure> {
    let rate: Rate = arguments
        .rate
        .parse()
        .map_err(|error| Failure::usage(format!("--rate {:?}: {error}", arguments.rate)))?;
    let data = folder(common)?;
    let any_port = |pointer: &str| Override::new(pointer, "127.0.0.1:0", "demo");
    let overrides = vec![
        Override::new("/data", data.to_string_lossy(), "demo"),
        any_port("/ingestion/mqtt/listen"),
        any_port("/http/listen"),
    ];
    // The demo shows the defaults: a configuration of one's own is for `up`.
    let shown = Common { config: None, data: None, ..common.clone() };
    let loaded = config::built_in(&shown, overrides)?;
    let (plans, _) = check(&loaded)?;
    let mut config = loaded.value;
    config.log.level = LogLevel::Warn;
    let metrics = telemetry::init(&config.log, super::feed::verbosity(common)).map_err(Failure::failed)?;

    let fleet =
        Fleet::new(arguments.seed, arguments.devices, arguments.messages, rate, Arc::new(SystemClock));
    register(&config.data, &fleet)?;
    print(&format!(
        "{} simulated devices send {} messages over MQTT: endpoint → bus → enrichment → warehouse and archive\n",
        arguments.devices, arguments.messages
    ))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let work = Work::demo(fleet, arguments.messages, common.quiet);
    let (exit, report) = runtime.block_on(run_system(&config, plans, metrics, work))?;
    let Some(report) = report else { return Ok(exit) };
    show(&config, &report)?;
    if report.unaccounted_count > 0 {
        return Ok(Exit::Unbalanced);
    }
    Ok(if exit == Exit::Done && !report.balanced { Exit::Failed } else { exit })
}

/// A new folder: `--data`, if it is not there yet, else one of its own among the temporary files.
fn folder(common: &Common) -> Result<PathBuf, Failure> {
    if let Some(data) = &common.data {
        if data.exists() {
            return Err(Failure::usage(format!(
                "{} is there already, and the demo wants a new folder",
                data.display()
            )));
        }
        return Ok(data.clone());
    }
    let started = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S");
    Ok(std::env::temp_dir().join(format!("millstream-demo-{started}-{}", std::process::id())))
}

/// Tells the registry about the fleet, as `millstream devices import` would.
fn register(data: &Path, fleet: &Fleet) -> Result<(), Failure> {
    let mut table = "device_id,client_id,location_id,category\n".to_owned();
    for device in fleet.registry() {
        let _ = writeln!(
            table,
            "{},{},{},{}",
            device.device_id, device.client_id, device.location_id, device.category
        );
    }
    let folder = DataFolder::share(data)?;
    let mut importer = Importer::open(&folder.registry(), Arc::new(SystemClock))?;
    importer.import(BufReader::new(table.as_bytes()), &mut |_| ())?;
    Ok(())
}

fn show(config: &Config, report: &Report) -> Result<(), Failure> {
    let folder = DataFolder::inspect(&config.data)?;
    print(&format!("\nThe books\n\n{}", indented(&report.to_text())))?;
    print("\nThe last rows of the warehouse\n\n")?;
    let warehouse = WarehouseReader::open(&folder.warehouse(), &config.bigquery.table)?;
    let mut rows = Vec::new();
    let mut printer = Printer::new(
        &mut rows,
        Format::Table { width: terminal_width().map(|width| width.saturating_sub(2)) },
    );
    let mut written = Ok(());
    let names = warehouse.query(ROWS, DEADLINE, &mut |names, cells| {
        written = printer.row(names, cells);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    written?;
    printer.finish(&names)?;
    print(&indented(&String::from_utf8_lossy(&rows)))?;
    print(&format!("\nThe archive: {} objects, by day and place\n\n", report.archive.objects))?;
    print(&indented(&objects(&folder)?))?;
    next_steps(&config.data)
}

fn objects(folder: &DataFolder) -> Result<String, Failure> {
    let reader = embedded::archive::ArchiveReader::open(
        &folder.archive_index(),
        &folder.archive(),
        &folder.archive_tmp(),
    )?;
    let mut text = String::new();
    let mut seen = 0_usize;
    reader.objects(&mut |object| {
        seen += 1;
        if seen <= OBJECTS {
            let _ = writeln!(
                text,
                "archive/{}  {} lines, {} bytes",
                object.name, object.digest.count, object.bytes
            );
        }
        Ok(())
    })?;
    if seen > OBJECTS {
        let _ = writeln!(text, "… and {} more", seen - OBJECTS);
    }
    Ok(text)
}

fn next_steps(data: &Path) -> Result<(), Failure> {
    let data = data.display();
    print(&format!(
        "\nIt all lies in {data}. Try next\n\n  \
         millstream query --data {data} 'SELECT location_id, count(*), avg(value) FROM messages GROUP BY 1'\n  \
         millstream dead-letters list --data {data}\n  \
         millstream up\n"
    ))?;
    if std::env::args_os().next().is_some_and(|program| program.to_string_lossy().contains("target/")) {
        say("\n(`millstream` is target/release/millstream here, or `cargo run --release --`.)");
    }
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "  {}", line.trim_end());
        all
    })
}

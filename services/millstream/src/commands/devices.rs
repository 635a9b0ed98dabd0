//! `millstream devices import|list|show`.

use super::{configuration, stored};
use crate::cli::{Common, DevicesCommand};
use crate::output::{Failure, print, say};
use crate::progress::Progress;
use embedded::folder::DataFolder;
use embedded::registry::{Device, Importer, Registry, RegistrySettings};
use enrichment_service::SourceKind;
use messagepipeline::SystemClock;
use service_kit::Exit;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

pub(super) fn run(common: &Common, command: DevicesCommand) -> Result<Exit, Failure> {
    match command {
        DevicesCommand::Import { file } => import(common, &file),
        DevicesCommand::List { limit, after, json } => list(common, limit, after.as_deref(), json),
        DevicesCommand::Show { id } => show(common, &id),
    }
}

fn import(common: &Common, file: &Path) -> Result<Exit, Failure> {
    let named = |error: &dyn std::fmt::Display| Failure::failed(format!("{}: {error}", file.display()));
    let source: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(file).map_err(|error| named(&error))?))
    };
    let config = configuration(common)?.value;
    if config.enrichment.source.kind == SourceKind::Firestore {
        return Err(Failure::usage(format!(
            "devices come from Firestore (enrichment.source.kind): write them to its collection `{}`",
            config.enrichment.source.collection
        )));
    }
    let folder = DataFolder::share(&config.data)?;
    let mut importer = Importer::open(&folder.registry(), Arc::new(SystemClock))?;
    let progress = Progress::new(common.quiet, "lines");
    let report =
        importer.import(source, &mut |report| progress.at(report.lines())).map_err(|error| named(&error))?;
    progress.end();
    for refusal in &report.refusals {
        say(&format!("{}:{}: {}", file.display(), refusal.line, refusal.reason));
    }
    print(&format!(
        "{} added, {} changed, {} unchanged, {} refused\n",
        report.added, report.changed, report.unchanged, report.refused
    ))?;
    Ok(if report.refused == 0 { Exit::Done } else { Exit::Failed })
}

fn list(common: &Common, limit: usize, after: Option<&str>, json: bool) -> Result<Exit, Failure> {
    let devices = read(common, |registry| async move { registry.list(after, limit).await })?;
    let mut text = String::new();
    for device in &devices {
        text.push_str(&if json { as_json(device)? } else { as_line(device) });
        text.push('\n');
    }
    print(&text)?;
    if devices.len() == limit
        && let Some(last) = devices.last()
    {
        say(&format!("the first {limit}; --after {:?} goes on, --limit shows more", last.device_id));
    }
    Ok(Exit::Done)
}

fn show(common: &Common, id: &str) -> Result<Exit, Failure> {
    let device = read(common, |registry| async move { registry.get(id).await })?;
    let device = device.ok_or_else(|| Failure::failed(format!("no device {id:?} in the registry")))?;
    print(&format!("{}\n", as_json(&device)?))?;
    Ok(Exit::Done)
}

fn read<T, F>(common: &Common, question: impl FnOnce(Registry) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, embedded::Error>>,
{
    let (_, folder) = stored(common)?;
    let registry = Registry::open(folder.registry(), RegistrySettings::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(question(registry))?)
}

fn as_json(device: &Device) -> Result<String, Failure> {
    serde_json::to_string(device).map_err(Failure::failed)
}

fn as_line(device: &Device) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let mut line = format!(
        "{}  client {}  location {}  category {}",
        device.device_id,
        text(&device.client_id),
        text(&device.location_id),
        text(&device.category)
    );
    for (name, value) in &device.extra {
        line.push_str(&format!("  {name} {value}"));
    }
    // A device id may hold anything printable; control characters are refused at the import.
    line
}

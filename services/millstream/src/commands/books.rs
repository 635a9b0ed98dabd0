//! `millstream books`.

use crate::books::{Books, Remote, Report};
use crate::cli::{BooksArgs, Common};
use crate::config::Config;
use crate::output::{Failure, print, say};
use crate::system::has_remote_sink;
use connectors::BusKind;
use embedded::folder::DataFolder;
use service_kit::Exit;

#[cfg(feature = "google")]
mod cloud;

pub(super) fn run(common: &Common, arguments: &BooksArgs) -> Result<Exit, Failure> {
    let config = super::configuration(common)?.value;
    if config.bus.kind == BusKind::Pubsub {
        return in_the_cloud(&config, arguments);
    }
    let folder = DataFolder::inspect(&config.data)?;
    let running = folder.is_in_use()?;
    if running && has_remote_sink(&config) {
        return Err(Failure::failed(
            "`up` is running, and a sink stands outside its data folder: they cannot be read at the same moment; stop it first",
        ));
    }
    let books = Books::open(&folder, &config.bigquery.table)?.with(outside(&config)?);
    let report = books.report(running)?;
    show(&report, arguments)?;
    let mut damaged = false;
    if arguments.deep {
        for problem in books.verify_archive()? {
            damaged = true;
            say(&format!("archive: {problem}"));
        }
    }
    Ok(if report.unaccounted_count > 0 || damaged { Exit::Unbalanced } else { Exit::Done })
}

fn show(report: &Report, arguments: &BooksArgs) -> Result<(), Failure> {
    let text = if arguments.json {
        format!("{}\n", serde_json::to_string_pretty(report).map_err(Failure::failed)?)
    } else {
        report.to_text()
    };
    Ok(print(&text)?)
}

/// What sinks outside the data folder hold.
fn outside(config: &Config) -> Result<Remote, Failure> {
    if !has_remote_sink(config) {
        return Ok(Remote::default());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(remote(config))
}

/// As [`outside`], within a runtime.
pub(super) async fn remote(config: &Config) -> Result<Remote, Failure> {
    if !has_remote_sink(config) {
        return Ok(Remote::default());
    }
    #[cfg(feature = "google")]
    return cloud::remote(config).await.map_err(Failure::failed);
    #[cfg(not(feature = "google"))]
    return Err(super::without_google("a sink outside the data folder"));
}

#[cfg(feature = "google")]
fn in_the_cloud(config: &Config, arguments: &BooksArgs) -> Result<Exit, Failure> {
    let report = cloud::report(config, arguments)?;
    show(&report, arguments)?;
    Ok(if report.unaccounted_count > 0 { Exit::Unbalanced } else { Exit::Done })
}

#[cfg(not(feature = "google"))]
fn in_the_cloud(_: &Config, _: &BooksArgs) -> Result<Exit, Failure> {
    Err(super::without_google("bus.kind: pubsub"))
}

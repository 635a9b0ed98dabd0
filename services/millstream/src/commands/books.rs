//! `millstream books`.

use crate::books::{Books, Report};
use crate::cli::{BooksArgs, Common};
use crate::output::{Failure, print, say};
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
    let books = Books::open(&folder, &config.bigquery.table)?;
    let running = folder.is_in_use()?;
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

#[cfg(feature = "google")]
fn in_the_cloud(config: &crate::config::Config, arguments: &BooksArgs) -> Result<Exit, Failure> {
    let report = cloud::report(config, arguments)?;
    show(&report, arguments)?;
    Ok(if report.unaccounted_count > 0 { Exit::Unbalanced } else { Exit::Done })
}

#[cfg(not(feature = "google"))]
fn in_the_cloud(_: &crate::config::Config, _: &BooksArgs) -> Result<Exit, Failure> {
    Err(super::without_google("bus.kind: pubsub"))
}

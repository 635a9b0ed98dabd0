//! The books of services that run on Google Cloud.

use crate::books::{CloudBooks, Remote, Report, read_lines, read_rows};
use crate::cli::BooksArgs;
use crate::config::Config;
use crate::output::Failure;
use bigquery_service::WarehouseKind;
use connectors::{ConnectError, Google, PubSubBus};
use icestore_service::ArchiveKind;
use ingestion_service::{LEDGER_FOLDER, Ledgers};
use messagepipeline::{Clock, SystemClock, Timestamp};
use service_kit::config::Duration;
use std::path::PathBuf;

pub(super) fn report(config: &Config, arguments: &BooksArgs) -> Result<Report, Failure> {
    let age: Duration = arguments
        .pending_age
        .parse()
        .map_err(|error| Failure::usage(format!("--pending-age {:?}: {error}", arguments.pending_age)))?;
    let age = i64::try_from(age.get().as_micros()).unwrap_or(i64::MAX);
    let settled_before = Timestamp::from_micros(SystemClock.now().as_micros().saturating_sub(age));
    let ledger = ledger(config, arguments, settled_before)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let books = open(config, ledger, settled_before).await.map_err(Failure::failed)?;
        books.report().await.map_err(Failure::failed)
    })
}

/// What the sinks outside the data folder hold.
pub(super) async fn remote(config: &Config) -> Result<Remote, ConnectError> {
    let google = Google::new(&config.google, &std::env::vars().collect()).await?;
    let rows = match config.bigquery.kind {
        WarehouseKind::Embedded => None,
        WarehouseKind::Bigquery => {
            let reader = bigquery_service::google::reader(&config.bigquery, &google)?;
            Some(read_rows(&reader, dataset(config, &google)).await?)
        }
    };
    let archive = &config.icestore.google;
    let lines = match config.icestore.kind {
        ArchiveKind::Folder => None,
        ArchiveKind::CloudStorage => {
            let reader = icestore_service::google::reader(archive, &google).await?;
            Some(read_lines(&reader, &archive.bucket, archive.prefix.trim_matches('/')).await?)
        }
    };
    Ok(Remote { rows, lines })
}

/// The table's dataset, for people.
fn dataset(config: &Config, google: &Google) -> String {
    format!("{}.{}", google.project(), config.bigquery.google.dataset)
}

fn ledger(config: &Config, arguments: &BooksArgs, settled_before: Timestamp) -> Result<Ledgers, Failure> {
    let mut folders = arguments.ledger.clone();
    if folders.is_empty() {
        folders.push(config.data.join(LEDGER_FOLDER));
    }
    Ledgers::read(folders.iter().map(PathBuf::as_path), settled_before).map_err(|(folder, error)| {
        Failure::failed(format!(
            "the ledger {}: {error}; name the folders that the replicas of ingestion write with --ledger",
            folder.display()
        ))
    })
}

async fn open(
    config: &Config,
    ledger: Ledgers,
    settled_before: Timestamp,
) -> Result<CloudBooks, ConnectError> {
    let google = Google::new(&config.google, &std::env::vars().collect()).await?;
    let archive = &config.icestore.google;
    Ok(CloudBooks {
        ledger,
        warehouse: bigquery_service::google::reader(&config.bigquery, &google)?,
        table: (dataset(config, &google), config.bigquery.table.clone()),
        archive: icestore_service::google::reader(archive, &google).await?,
        prefix: archive.prefix.trim_matches('/').to_owned(),
        bucket: archive.bucket.clone(),
        bus: PubSubBus::new(&google, &config.bus.pubsub)?,
        settled_before,
    })
}

//! The table in BigQuery as the configuration says.

use crate::{BigQueryConfig, DriftConfig, WarehouseConfig, WriteModeConfig};
use bqstore::Columns;
use bqstore::bigquery::{BigQueryInserter, BigQueryOptions, BigQueryReader, Drift, Endpoints, WriteMode};
use connectors::{ConnectError, Google};
use messagepipeline::StageError;

/// Requests under way at a time. One of a few megabytes takes BigQuery a fraction of a second.
const IN_FLIGHT: usize = 8;

fn options(config: &WarehouseConfig, google: &Google) -> Result<BigQueryOptions, ConnectError> {
    let BigQueryConfig {
        dataset,
        location,
        mode,
        create,
        cluster_by,
        expiration,
        max_staleness,
        drift,
        timeout,
        recall,
    } = &config.google;
    let endpoints = google.bigquery_endpoints().map(|(rest, grpc)| Endpoints { rest, grpc });
    // The emulator loses itself in inserts that come side by side: each one locks its database.
    let max_in_flight = if endpoints.is_some() { 1 } else { IN_FLIGHT };
    let credentials = google.credentials(endpoints.as_ref().map(|endpoints| endpoints.rest.as_str()))?;
    Ok(BigQueryOptions {
        location: location.clone(),
        endpoints,
        mode: match mode {
            WriteModeConfig::Append => WriteMode::Append,
            WriteModeConfig::Upsert => WriteMode::Upsert,
            WriteModeConfig::InsertAll => WriteMode::InsertAll,
        },
        create: *create,
        cluster_by: cluster_by.clone(),
        expiration: expiration.map(|kept| kept.get()),
        max_staleness: max_staleness.map(|age| age.get()),
        drift: match drift {
            DriftConfig::AddColumns => Drift::AddColumns,
            DriftConfig::ExtraColumn => Drift::ExtraColumn,
            DriftConfig::Ignore => Drift::Ignore,
        },
        timeout: timeout.get(),
        recall: recall.get(),
        max_in_flight,
        ..BigQueryOptions::new(google.project(), dataset, &config.table, credentials)
    })
}

/// What puts rows into the table. Nothing is connected yet.
///
/// # Errors
/// When there are no credentials or settings cannot work.
pub fn inserter(
    config: &WarehouseConfig,
    columns: &Columns,
    google: &Google,
) -> Result<BigQueryInserter, ConnectError> {
    Ok(BigQueryInserter::new(options(config, google)?, columns).map_err(StageError::from)?)
}

/// What reads the table.
///
/// # Errors
/// As for [`inserter`].
pub fn reader(config: &WarehouseConfig, google: &Google) -> Result<BigQueryReader, ConnectError> {
    Ok(BigQueryReader::new(&options(config, google)?).map_err(StageError::from)?)
}

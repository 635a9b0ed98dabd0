//! The archive in Cloud Storage as the configuration says.

use crate::CloudStorageConfig;
use ::icestore::gcs::{GcsOptions, GcsReader, GcsStore};
use connectors::{ConnectError, Google};
use messagepipeline::{Clock, StageError};
use std::sync::Arc;

fn options(config: &CloudStorageConfig, google: &Google) -> Result<GcsOptions, ConnectError> {
    let endpoint = google.storage_endpoint();
    let credentials = google.credentials(endpoint.as_deref())?;
    Ok(GcsOptions {
        endpoint,
        create_bucket: config.create_bucket,
        project: Some(google.project().to_owned()),
        location: config.location.clone(),
        timeout: config.timeout.get(),
        recall: config.recall.get(),
        writer: google.writer(),
        ..GcsOptions::new(&config.bucket, credentials)
    })
}

/// What puts objects into the bucket. It asks nothing before it is opened.
///
/// # Errors
/// When there are no credentials or the client cannot be set up.
pub async fn store(
    config: &CloudStorageConfig,
    google: &Google,
    clock: Arc<dyn Clock>,
) -> Result<GcsStore, ConnectError> {
    Ok(GcsStore::new(options(config, google)?, clock).await.map_err(StageError::from)?)
}

/// What reads the bucket.
///
/// # Errors
/// When there are no credentials or the bucket cannot be read.
pub async fn reader(config: &CloudStorageConfig, google: &Google) -> Result<GcsReader, ConnectError> {
    Ok(GcsReader::connect(&options(config, google)?).await.map_err(StageError::from)?)
}

//! Registry and shared cache outside the process, as the configuration says.

use crate::{EnrichmentConfig, RedisConfig};
use cache::{Change, Fetcher, Layered};
use cache_firestore::{FirestoreOptions, FirestoreSource, emulator_credentials};
use cache_redis::{RedisOptions, RedisStore};
use connectors::{ConnectError, Google};
use futures_util::stream::{BoxStream, StreamExt, pending};
use messagepipeline::{Enrichment as DeviceData, ErrorClass, StageError};
use std::sync::Arc;

/// A device registry, what stands before it, and its changes.
pub struct Registry {
    /// The source of truth.
    pub source: Arc<dyn Fetcher<DeviceData>>,
    /// What a cache in memory asks: the shared cache where there is one, else the source.
    pub layers: Arc<dyn Fetcher<DeviceData>>,
    /// What changes in it.
    pub changes: BoxStream<'static, Change>,
}

/// The registry in Firestore.
///
/// # Errors
/// When there are no credentials or a setting cannot be used.
pub async fn firestore(config: &EnrichmentConfig, google: &Google) -> Result<Registry, ConnectError> {
    let endpoint = google.firestore_endpoint();
    let credentials = match &endpoint {
        Some(_) => emulator_credentials(),
        None => google.credentials(None)?,
    };
    let options = FirestoreOptions {
        database: config.source.database.clone(),
        collection: config.source.collection.clone(),
        endpoint,
        timeout: config.lookup_timeout.get(),
        ..FirestoreOptions::new(google.project(), credentials)
    };
    let firestore = FirestoreSource::new(&options).map_err(StageError::from)?;
    let changes = if config.source.listen { firestore.changes() } else { pending().boxed() };
    let source: Arc<dyn Fetcher<DeviceData>> = Arc::new(firestore);
    Ok(Registry { layers: layered(config, Arc::clone(&source)).await?, source, changes })
}

/// `source` behind the shared cache, where one is configured.
///
/// # Errors
/// When a setting of the shared cache cannot be used. One that cannot be reached is gone past.
pub async fn layered(
    config: &EnrichmentConfig,
    source: Arc<dyn Fetcher<DeviceData>>,
) -> Result<Arc<dyn Fetcher<DeviceData>>, ConnectError> {
    let Some(redis) = &config.redis else { return Ok(source) };
    let store = RedisStore::<DeviceData>::open(&redis_options(redis)?).await.map_err(StageError::from)?;
    Ok(Arc::new(Layered::new(store, Some(source))))
}

fn redis_options(redis: &RedisConfig) -> Result<RedisOptions, ConnectError> {
    let certificate = |path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|error| {
            let detail = format!("enrichment.redis.ca, {}: {error}", path.display());
            StageError::new(ErrorClass::Configuration, "redis-ca", detail)
        })
    };
    Ok(RedisOptions {
        user: redis.user.clone(),
        password: redis.password.as_ref().map(|password| password.expose().to_owned()),
        root_certificate: redis.ca.as_ref().map(certificate).transpose()?,
        namespace: redis.namespace.clone(),
        max_age: redis.ttl.get(),
        negative_age: redis.negative_ttl.get(),
        timeout: redis.timeout.get(),
        url: redis.url.clone(),
        ..RedisOptions::default()
    })
}

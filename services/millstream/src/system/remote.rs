//! Parts of the path that stand outside the data folder: registry, shared cache, warehouse and archive on Google Cloud.

use crate::config::Config;
use bigquery_service::WarehouseKind;
use bqstore::{Columns, RowInserter};
use cache::{Change, Fetcher};
use connectors::ConnectError;
use enrichment_service::SourceKind;
use futures_util::stream::BoxStream;
use icestore::ObjectStore;
use icestore_service::ArchiveKind;
use messagepipeline::{Clock, Enrichment};
use std::sync::Arc;

/// Keys of the configuration that ask for something outside, as JSON Pointers.
pub(crate) fn asked_for(config: &Config) -> Vec<&'static str> {
    let keys = [
        ("/enrichment/source/kind", config.enrichment.source.kind == SourceKind::Firestore),
        ("/enrichment/redis", config.enrichment.redis.is_some()),
        ("/bigquery/kind", config.bigquery.kind == WarehouseKind::Bigquery),
        ("/icestore/kind", config.icestore.kind == ArchiveKind::CloudStorage),
    ];
    keys.into_iter().filter(|(_, asked)| *asked).map(|(key, _)| key).collect()
}

/// Whether a sink stands outside, so that the data folder alone does not know what is finished.
pub(crate) fn has_remote_sink(config: &Config) -> bool {
    config.bigquery.kind == WarehouseKind::Bigquery || config.icestore.kind == ArchiveKind::CloudStorage
}

/// A device registry, what stands before it, and its changes.
pub(super) struct Registry {
    pub(super) source: Arc<dyn Fetcher<Enrichment>>,
    pub(super) layers: Arc<dyn Fetcher<Enrichment>>,
    pub(super) changes: BoxStream<'static, Change>,
}

/// What is outside.
pub(super) struct Remote {
    #[cfg(feature = "google")]
    google: Option<connectors::Google>,
}

#[cfg(feature = "google")]
impl Remote {
    pub(super) async fn new(config: &Config) -> Result<Self, ConnectError> {
        let is_asked_for = asked_for(config).iter().any(|key| *key != "/enrichment/redis");
        let google = if is_asked_for {
            Some(connectors::Google::new(&config.google, &std::env::vars().collect()).await?)
        } else {
            None
        };
        Ok(Self { google })
    }

    pub(super) fn rows(
        &self,
        config: &Config,
        columns: &Columns,
    ) -> Result<Option<Arc<dyn RowInserter>>, ConnectError> {
        match (&self.google, config.bigquery.kind) {
            (Some(google), WarehouseKind::Bigquery) => {
                Ok(Some(Arc::new(bigquery_service::google::inserter(&config.bigquery, columns, google)?)))
            }
            _ => Ok(None),
        }
    }

    pub(super) async fn objects(
        &self,
        config: &Config,
        clock: &Arc<dyn Clock>,
    ) -> Result<Option<Arc<dyn ObjectStore>>, ConnectError> {
        match (&self.google, config.icestore.kind) {
            (Some(google), ArchiveKind::CloudStorage) => {
                let clock = Arc::clone(clock);
                let store = icestore_service::google::store(&config.icestore.google, google, clock).await?;
                Ok(Some(Arc::new(store)))
            }
            _ => Ok(None),
        }
    }

    /// `embedded`, or the registry and the layers that the configuration names.
    pub(super) async fn registry(
        &self,
        config: &Config,
        embedded: Registry,
    ) -> Result<Registry, ConnectError> {
        let section = &config.enrichment;
        match (&self.google, section.source.kind) {
            (Some(google), SourceKind::Firestore) => {
                let enrichment_service::google::Registry { source, layers, changes } =
                    enrichment_service::google::firestore(section, google).await?;
                Ok(Registry { source, layers, changes })
            }
            _ => {
                let layers = enrichment_service::google::layered(section, embedded.layers).await?;
                Ok(Registry { layers, ..embedded })
            }
        }
    }
}

/// Without Google Cloud in the program `check` has refused whatever asks for it.
#[cfg(not(feature = "google"))]
#[expect(
    clippy::unused_async,
    clippy::unused_self,
    clippy::unnecessary_wraps,
    reason = "the same calls as with it"
)]
impl Remote {
    pub(super) async fn new(_: &Config) -> Result<Self, ConnectError> {
        Ok(Self {})
    }

    pub(super) fn rows(&self, _: &Config, _: &Columns) -> Result<Option<Arc<dyn RowInserter>>, ConnectError> {
        Ok(None)
    }

    pub(super) async fn objects(
        &self,
        _: &Config,
        _: &Arc<dyn Clock>,
    ) -> Result<Option<Arc<dyn ObjectStore>>, ConnectError> {
        Ok(None)
    }

    pub(super) async fn registry(&self, _: &Config, embedded: Registry) -> Result<Registry, ConnectError> {
        Ok(embedded)
    }
}

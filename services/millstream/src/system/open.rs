//! Opening every store and building every service, in the order in which messages flow back: sinks before sources,
//! so that nothing is received before all that stands behind it works.

use super::descriptors;
use super::remote::{self, Registry, Remote};
use super::retention::Retention;
use crate::check::{ENRICHED, Plans, RAW};
use crate::config::Config;
use bqstore::RowInserter;
use connectors::{Bus, ConnectError, Window};
use embedded::archive::Archive;
use embedded::folder::DataFolder;
use embedded::registry::Registry as DeviceRegistry;
use embedded::warehouse::Warehouse;
use icestore::ObjectStore;
use messagepipeline::{BoxConsumer, Clock, FlushRequest, Health, IdGenerator, SystemClock};
use mqttconverter::endpoint::EndpointHandle;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Why the system could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A store or the endpoint.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] embedded::Error),
    /// Parts that do not fit together.
    #[error("{0}")]
    Build(String),
}

/// Everything open, nothing running yet.
pub struct System {
    /// Where devices connect; `None` when messages come from a broker.
    pub mqtt: Option<SocketAddr>,
    /// The services.
    pub services: Services,
    /// The stores.
    pub stores: Stores,
    /// Ingestion's rules, for dead letters that are retried.
    pub ingest: ingestion_service::Ingest,
    /// Forgets and removes what is old; `None` when everything is kept.
    pub(super) retention: Option<Retention>,
}

/// The services and what runs beside them.
pub struct Services {
    pub(super) ingestion: ingestion_service::Ingestion,
    pub(super) endpoint: Option<EndpointHandle>,
    pub(super) enrichment: enrichment_service::Enrichment,
    pub(super) background: enrichment_service::Background,
    pub(super) warehouse: bigquery_service::Warehouse,
    pub(super) archive: icestore_service::Archive,
}

/// The open stores.
#[derive(Clone)]
pub struct Stores {
    /// The bus.
    pub bus: Bus,
    /// The registry.
    pub registry: DeviceRegistry,
    /// The warehouse.
    pub warehouse: Arc<Warehouse>,
    /// The archive.
    pub archive: Arc<Archive>,
    /// A table outside that takes the rows in place of the warehouse.
    pub(super) remote_rows: Option<Arc<dyn RowInserter>>,
    /// A bucket outside that takes the objects in place of the archive.
    pub(super) remote_objects: Option<Arc<dyn ObjectStore>>,
    /// Asks the sinks to write what they hold now.
    pub flush: FlushRequest,
}

impl System {
    /// Opens the stores of `folder` and builds the services.
    ///
    /// # Errors
    /// When a store, the endpoint or a certificate cannot be used.
    pub async fn open(
        config: &Config,
        plans: Plans,
        folder: &DataFolder,
        health: &Health,
    ) -> Result<Self, OpenError> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let remote = Remote::new(config).await?;
        let stores = open_stores(config, &plans, folder, &remote, health, &clock).await?;
        let archive = build_archive(config, plans.archive, &stores, health, &clock).await?;
        let warehouse = build_warehouse(config, plans.warehouse, &stores, health).await?;
        let (enrichment, background) =
            build_enrichment(config, plans.enrichment, &stores, &remote, health, &clock).await?;
        let source = open_source(config, &stores.bus, health, &clock).await?;
        let mut publishers = BTreeMap::new();
        for topic in plans.ingestion.topics() {
            publishers.insert(topic.clone(), stores.bus.publisher(topic).await?);
        }
        let ingest = plans.ingestion.ingest(publishers.clone()).map_err(|mistakes| refused(&mistakes))?;
        let parts = ingestion_service::Parts {
            consumer: source.consumer,
            publishers,
            dead_letters: stores.bus.dead_letters(),
            health: health.stage(ingestion_service::STAGE),
        };
        let ingestion = plans.ingestion.build(parts).map_err(|mistakes| refused(&mistakes))?;
        let services =
            Services { ingestion, endpoint: source.endpoint, enrichment, background, warehouse, archive };
        // What is finished is known where both sinks are.
        let retention = match remote::has_remote_sink(config) {
            true => None,
            false => Retention::new(config, folder, &stores, clock)?,
        };
        Ok(Self { mqtt: source.address, services, stores, ingest, retention })
    }
}

fn refused(mistakes: &[impl ToString]) -> OpenError {
    OpenError::Build(mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

async fn open_stores(
    config: &Config,
    plans: &Plans,
    folder: &DataFolder,
    remote: &Remote,
    health: &Health,
    clock: &Arc<dyn Clock>,
) -> Result<Stores, OpenError> {
    let bus = Bus::open(&config.bus, folder, config.enrichment.park.max_messages, Arc::clone(clock)).await?;
    let columns = plans.warehouse.columns();
    Ok(Stores {
        bus,
        registry: connectors::registry(folder, config.enrichment.lookup_timeout.get())?,
        warehouse: connectors::warehouse(folder, plans.warehouse.table(), columns)?,
        archive: connectors::archive(folder, health.stage("archive"))?,
        remote_rows: remote.rows(config, columns)?,
        remote_objects: remote.objects(config, clock).await?,
        flush: FlushRequest::new(),
    })
}

async fn build_archive(
    config: &Config,
    plan: icestore_service::Plan,
    stores: &Stores,
    health: &Health,
    clock: &Arc<dyn Clock>,
) -> Result<icestore_service::Archive, OpenError> {
    let archive = &config.icestore;
    let bytes = archive.window_bytes();
    let window =
        Window { messages: archive.max_in_flight as usize, bytes, max_attempts: archive.max_attempts };
    let name = icestore_service::STAGE;
    Ok(plan.build(icestore_service::Parts {
        consumer: stores.bus.consumer(ENRICHED, name, window).await?,
        store: stores.remote_objects.clone().unwrap_or_else(|| Arc::clone(&stores.archive) as _),
        dead_letters: stores.bus.dead_letters_of(ENRICHED, name, window).await?,
        clock: Arc::clone(clock),
        health: health.stage(name),
        flush: stores.flush.clone(),
    }))
}

async fn build_warehouse(
    config: &Config,
    plan: bigquery_service::Plan,
    stores: &Stores,
    health: &Health,
) -> Result<bigquery_service::Warehouse, OpenError> {
    let warehouse = &config.bigquery;
    let window = Window {
        messages: warehouse.max_in_flight as usize,
        bytes: warehouse.max_in_flight_bytes.as_usize(),
        max_attempts: warehouse.max_attempts,
    };
    let name = bigquery_service::STAGE;
    Ok(plan.build(bigquery_service::Parts {
        consumer: stores.bus.consumer(ENRICHED, name, window).await?,
        inserter: stores.remote_rows.clone().unwrap_or_else(|| Arc::clone(&stores.warehouse) as _),
        dead_letters: stores.bus.dead_letters_of(ENRICHED, name, window).await?,
        health: health.stage(name),
        flush: stores.flush.clone(),
    }))
}

async fn build_enrichment(
    config: &Config,
    plan: enrichment_service::Plan,
    stores: &Stores,
    remote: &Remote,
    health: &Health,
    clock: &Arc<dyn Clock>,
) -> Result<(enrichment_service::Enrichment, enrichment_service::Background), OpenError> {
    let enrichment = &config.enrichment;
    let window = Window {
        messages: enrichment.max_in_flight as usize,
        bytes: enrichment.max_in_flight_bytes.as_usize(),
        max_attempts: enrichment.max_attempts,
    };
    let name = enrichment_service::STAGE;
    let embedded = Registry {
        source: Arc::new(stores.registry.clone()),
        layers: Arc::new(stores.registry.clone()),
        changes: enrichment_service::any_change(stores.registry.changes()),
    };
    let Registry { source, layers, changes } = remote.registry(config, embedded).await?;
    let parts = enrichment_service::Parts {
        consumer: stores.bus.consumer(RAW, name, window).await?,
        output: stores.bus.publisher(ENRICHED).await?,
        registry: source,
        layers,
        changes,
        lot: Some(stores.bus.parking_lot()),
        dead_letters: stores.bus.dead_letters_of(RAW, name, window).await?,
        clock: Arc::clone(clock),
        health: health.stage(name),
    };
    Ok(plan.build(parts))
}

/// Where device messages come from.
struct Source {
    consumer: BoxConsumer,
    address: Option<SocketAddr>,
    endpoint: Option<EndpointHandle>,
}

async fn open_source(
    config: &Config,
    bus: &Bus,
    health: &Health,
    clock: &Arc<dyn Clock>,
) -> Result<Source, OpenError> {
    let ids = Arc::new(IdGenerator::new(Arc::clone(clock)));
    let ingestion = &config.ingestion;
    if let Some(broker) = &ingestion.broker {
        let options = ingestion_service::broker_options(broker, ingestion);
        let consumer = connectors::broker(
            options,
            ids,
            Arc::clone(clock),
            health.stage("broker"),
            std::process::id().into(),
        )?;
        return Ok(Source { consumer, address: None, endpoint: None });
    }
    let mut options =
        ingestion_service::endpoint_options(ingestion).map_err(|mistakes| refused(&mistakes))?;
    options.max_connections = descriptors::connections(options.max_connections);
    let (consumer, address, handle) =
        connectors::endpoint(options, ids, Arc::clone(clock), Some(bus.sessions())).await?;
    Ok(Source { consumer, address: Some(address), endpoint: Some(handle) })
}

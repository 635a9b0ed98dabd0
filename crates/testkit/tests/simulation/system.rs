//! The process: the four services as their crates put them together, over the stores that outlive it.

use crate::bus::{FaultyDeadLetters, FaultyPublisher, WatchedConsumer};
use crate::stores::{FaultyArchive, FaultyLayer, FaultyLot, FaultyRegistry, FaultyTable, Stores};
use crate::world::{Fault, Kind, Op, World};
use bigquery_service::WarehouseConfig;
use cache::{Fetcher, Layered};
use enrichment_service::EnrichmentConfig;
use icestore_service::ArchiveConfig;
use ingestion_service::IngestionConfig;
use messagepipeline::{
    BoxConsumer, Clock, DeadLetters, Enrichment, FlushRequest, Health, Publisher, ServiceError, Shutdown,
    Summary,
};
use service_kit::{Outcome, Signals, Tasks};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use testkit::memory::ConsumerLimits;
use tokio::task::JoinHandle;

/// The configuration of a seed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Config {
    pub(crate) ingestion: IngestionConfig,
    pub(crate) enrichment: EnrichmentConfig,
    pub(crate) warehouse: WarehouseConfig,
    pub(crate) archive: ArchiveConfig,
    pub(crate) window: usize,
    pub(crate) chunk: usize,
}

/// One life of the process.
pub(crate) struct Process {
    world: World,
    pub(crate) shutdown: Shutdown,
    pub(crate) ended: JoinHandle<Outcome>,
}

impl Process {
    pub(crate) fn start(
        world: &World,
        stores: &Stores,
        config: &Config,
        clock: &Arc<dyn Clock>,
        drain: Duration,
    ) -> Self {
        world.next_life();
        world.note(Op::Process, 0, Some(Fault::Start));
        stores.archive.lock().open();
        let parts = Parts { world, stores, config, clock, health: Health::new(), life: world.life() };
        let shutdown = Shutdown::new();
        let mut tasks = Tasks::new(shutdown.clone());
        parts.spawn(&mut tasks, &shutdown);
        let (_, signals) = Signals::channel();
        Self { world: world.clone(), shutdown, ended: tokio::spawn(tasks.run(signals, drain)) }
    }

    /// The process dies here: nothing that it still does has an effect.
    pub(crate) fn kill(self) {
        self.world.next_life();
        self.world.note(Op::Process, 0, Some(Fault::Crash));
        self.ended.abort();
    }
}

async fn run(service: impl Future<Output = Result<Summary, ServiceError>>) -> Result<(), ServiceError> {
    service.await.map(drop)
}

struct Parts<'a> {
    world: &'a World,
    stores: &'a Stores,
    config: &'a Config,
    clock: &'a Arc<dyn Clock>,
    health: Health,
    life: u32,
}

impl Parts<'_> {
    fn spawn(&self, tasks: &mut Tasks, shutdown: &Shutdown) {
        let (enrichment, background) = self.enrichment();
        tasks.spawn("bigquery", run(self.warehouse().run(shutdown.clone())));
        tasks.spawn("icestore", run(self.archive().run(shutdown.clone())));
        tasks.spawn("enrichment", run(enrichment.run(shutdown.clone())));
        let watched = shutdown.clone();
        tasks.spawn("enrichment background", async move {
            background.run(watched).await;
            Ok::<_, std::convert::Infallible>(())
        });
        tasks.spawn("ingestion", run(self.ingestion().run(shutdown.clone())));
    }

    fn consumer(&self, subscription: &'static str, budget: usize) -> BoxConsumer {
        let limits = ConsumerLimits {
            chunk: self.config.chunk,
            outstanding: self.config.window,
            ..ConsumerLimits::default()
        };
        let inner = self.stores.bus.consumer(subscription, limits);
        BoxConsumer::new(WatchedConsumer::new(self.world, self.stores, subscription, budget, inner))
    }

    fn publisher(&self, topic: &str, op: Op, refused: Kind) -> Arc<dyn Publisher> {
        let topic = self.stores.bus.publisher(topic);
        Arc::new(FaultyPublisher { world: self.world.clone(), life: self.life, op, refused, topic })
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(FaultyDeadLetters {
            world: self.world.clone(),
            life: self.life,
            stores: self.stores.clone(),
        })
    }

    fn ingestion(&self) -> ingestion_service::Ingestion {
        let config = &self.config.ingestion;
        let parts = ingestion_service::Parts {
            consumer: self.consumer(ingestion_service::STAGE, config.max_in_flight_bytes.as_usize()),
            publishers: BTreeMap::from([(
                "raw".to_owned(),
                self.publisher("raw", Op::PublishRaw, Kind::RefusedRaw),
            )]),
            dead_letters: self.dead_letters(),
            health: self.health.stage(ingestion_service::STAGE),
        };
        let plan = ingestion_service::Plan::new(config, &["raw"]).expect("a valid section");
        plan.build(parts).expect("a publisher for each route")
    }

    fn enrichment(&self) -> (enrichment_service::Enrichment, enrichment_service::Background) {
        let (world, life, stores) = (self.world.clone(), self.life, self.stores);
        let registry = FaultyRegistry { world: world.clone(), life, registry: Arc::clone(&stores.registry) };
        let layer = FaultyLayer { world: world.clone(), life, layer: Arc::clone(&stores.layer) };
        let registry: Arc<dyn Fetcher<Enrichment>> = Arc::new(registry);
        let layers = Arc::new(Layered::new(layer, Some(Arc::clone(&registry))));
        let lot = FaultyLot { world, life, lot: Arc::clone(&stores.lot), room: stores.lot_room };
        let config = &self.config.enrichment;
        let parts = enrichment_service::Parts {
            consumer: self.consumer(enrichment_service::STAGE, config.max_in_flight_bytes.as_usize()),
            output: self.publisher("enriched", Op::PublishEnriched, Kind::RefusedEnriched),
            registry,
            layers,
            changes: enrichment_service::any_change(stores.registry.changes.subscribe()),
            lot: Some(Arc::new(lot)),
            dead_letters: self.dead_letters(),
            clock: Arc::clone(self.clock),
            health: self.health.stage(enrichment_service::STAGE),
        };
        let plan = enrichment_service::Plan::new(config).expect("a valid section");
        plan.build(parts)
    }

    fn warehouse(&self) -> bigquery_service::Warehouse {
        let (world, table) = (self.world.clone(), Arc::clone(&self.stores.table));
        let config = &self.config.warehouse;
        bigquery_service::Plan::new(config).expect("a valid section").build(bigquery_service::Parts {
            consumer: self.consumer(bigquery_service::STAGE, config.max_in_flight_bytes.as_usize()),
            inserter: Arc::new(FaultyTable { world, life: self.life, table }),
            dead_letters: self.dead_letters(),
            health: self.health.stage(bigquery_service::STAGE),
            flush: FlushRequest::new(),
        })
    }

    fn archive(&self) -> icestore_service::Archive {
        let (world, archive) = (self.world.clone(), Arc::clone(&self.stores.archive));
        let config = &self.config.archive;
        icestore_service::Plan::new(config).expect("a valid section").build(icestore_service::Parts {
            consumer: self.consumer(icestore_service::STAGE, config.memory.as_usize()),
            store: Arc::new(FaultyArchive { world, life: self.life, archive }),
            dead_letters: self.dead_letters(),
            clock: Arc::clone(self.clock),
            health: self.health.stage(icestore_service::STAGE),
            flush: FlushRequest::new(),
        })
    }
}

//! Configuration → running parts: bus consumer → enricher → publisher, with what keeps its cache fresh and brings
//! parked messages back.

use crate::{EnrichmentConfig, FieldNames, UnknownDevicePolicy};
use ::enrichment::{
    Enricher, FieldMapping, KeyExtractor, KeySource, ParkingLot, Releaser, ReleaserSettings, UnknownDevice,
    invalidate_on_change,
};
use cache::{Ages, Change, Fetcher, Lru};
use futures_util::stream::BoxStream;
use messagepipeline::{
    BatchLimits, BatchingService, BoxConsumer, Clock, DeadLetters, Enrichment as DeviceData,
    PublishProcessor, Publisher, ServiceOptions, Shutdown, StageHealth,
};
use std::sync::Arc;
use tokio::sync::watch;

/// The stage's name.
pub const STAGE: &str = "enrichment";

/// The service, ready to run.
pub type Enrichment = BatchingService<BoxConsumer, Enricher, PublishProcessor>;

/// What the service is given from outside.
pub struct Parts {
    /// The raw topic.
    pub consumer: BoxConsumer,
    /// The enriched topic.
    pub output: Arc<dyn Publisher>,
    /// The device registry: the source of truth, without a cache.
    pub registry: Arc<dyn Fetcher<DeviceData>>,
    /// What the cache in memory asks: the registry itself, or layers shared with other processes that end in it.
    pub layers: Arc<dyn Fetcher<DeviceData>>,
    /// What changes in the registry; [`any_change`](::enrichment::any_change) for one that does not say what.
    pub changes: BoxStream<'static, Change>,
    /// Where messages of unknown devices wait. Without one nothing is parked, and `unknown_device: park` passes them.
    pub lot: Option<Arc<dyn ParkingLot>>,
    /// Where messages go that are given up on.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// The clock that tells how long a message has been parked.
    pub clock: Arc<dyn Clock>,
    /// The stage's line on the health board.
    pub health: StageHealth,
}

/// The section, checked.
#[derive(Debug)]
pub struct Plan {
    config: EnrichmentConfig,
    keys: KeyExtractor,
}

impl Plan {
    /// Checks the section. Opens nothing.
    ///
    /// # Errors
    /// Every mistake with its path below `enrichment`.
    pub fn new(config: &EnrichmentConfig) -> Result<Self, Vec<(String, String)>> {
        let mut sources = Vec::new();
        let mut mistakes = Vec::new();
        for (index, text) in config.keys.iter().enumerate() {
            match text.split_once(':') {
                Some(("attribute", name)) if !name.is_empty() => {
                    sources.push(KeySource::Attribute(name.to_owned()))
                }
                Some(("enrichment", name)) if !name.is_empty() => {
                    sources.push(KeySource::Enrichment(name.to_owned()))
                }
                _ => mistakes.push((
                    format!("keys[{index}]"),
                    format!("`{text}` is no place for a key; write attribute:<name> or enrichment:<name>"),
                )),
            }
        }
        mistakes.extend(crate::check::check(config));
        if mistakes.is_empty() {
            Ok(Self { config: config.clone(), keys: KeyExtractor::new(sources) })
        } else {
            Err(mistakes)
        }
    }

    /// The service over `parts`, and the tasks beside it.
    #[must_use]
    pub fn build(self, parts: Parts) -> (Enrichment, Background) {
        let config = &self.config;
        let names = match config.fields {
            FieldNames::Registry => FieldMapping::default(),
            FieldNames::NameLocationServiceTag => FieldMapping::name_location_service_tag(),
        };
        let source = names.clone().over(parts.registry);
        let ages = Ages { max: config.cache.max_age.get(), negative: config.cache.negative_age.get() };
        let layers = names.over(parts.layers);
        let cache: Arc<dyn Fetcher<DeviceData>> =
            match Lru::new(config.cache.size as usize, ages, Some(Arc::clone(&layers))) {
                Ok(cache) => Arc::new(cache),
                Err(cache::ZeroSize) => layers,
            };
        let unknown = match (config.unknown_device, &parts.lot) {
            (UnknownDevicePolicy::DeadLetter, _) => UnknownDevice::DeadLetter,
            (UnknownDevicePolicy::Park, Some(lot)) => {
                UnknownDevice::Park { lot: Arc::clone(lot), clock: Arc::clone(&parts.clock) }
            }
            (UnknownDevicePolicy::Pass, _) | (UnknownDevicePolicy::Park, None) => UnknownDevice::Pass,
        };
        let enricher = Enricher::new(self.keys, Arc::clone(&cache), unknown);
        let options = ServiceOptions {
            max_attempts: config.max_attempts,
            dead_letters: Some(Arc::clone(&parts.dead_letters)),
            health: Some(parts.health),
            ..ServiceOptions::new(STAGE)
        };
        let limits = BatchLimits::publishing(config.max_in_flight_bytes.as_usize());
        let processor = PublishProcessor::new(Arc::clone(&parts.output));
        let service = BatchingService::new(options, limits, parts.consumer, enricher, processor);
        let settings = ReleaserSettings { max_age: config.park.max_age.get(), ..ReleaserSettings::default() };
        let releaser = parts.lot.map(|lot| Releaser {
            lot,
            source,
            cache: Arc::clone(&cache),
            output: parts.output,
            dead_letters: parts.dead_letters,
            clock: parts.clock,
            settings,
        });
        (service, Background { cache, releaser, changes: parts.changes })
    }
}

/// What runs beside the service: the cache follows the registry, and parked messages come back.
pub struct Background {
    cache: Arc<dyn Fetcher<DeviceData>>,
    releaser: Option<Releaser>,
    changes: BoxStream<'static, Change>,
}

impl Background {
    /// Runs until the shutdown begins.
    pub async fn run(self, shutdown: Shutdown) {
        // Parked messages are looked at when the caches have forgotten what changed.
        let (forgotten, changed) = watch::channel(0);
        let release = async {
            if let Some(releaser) = self.releaser {
                releaser.run(changed, shutdown.clone()).await;
            }
        };
        let invalidate = invalidate_on_change(&*self.cache, self.changes, &forgotten, shutdown.clone());
        tokio::join!(invalidate, release);
    }
}

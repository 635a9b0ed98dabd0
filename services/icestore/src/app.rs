//! Configuration → running parts: bus consumer → archive key → groups by key → object store.

use crate::{ArchiveConfig, ArchiveKind};
use ::icestore::{
    ArchiveProcessor, ArchiveSettings, ArchiveTransformer, KeyConfig, LocationSources, ObjectStore, Prefix,
};
use messagepipeline::{
    BatchLimits, BatchingService, BoxConsumer, Clock, DeadLetters, FlushRequest, ServiceOptions,
    SourceWindow, StageHealth,
};
use std::sync::Arc;

/// The stage's name.
pub const STAGE: &str = "icestore";

/// Objects made at the same time. Compression takes a core each; two keep a small machine busy and leave room.
const WORKERS: usize = 2;

/// The service, ready to run.
pub type Archive = BatchingService<BoxConsumer, ArchiveTransformer, ArchiveProcessor>;

/// What the service is given from outside.
pub struct Parts {
    /// The enriched topic.
    pub consumer: BoxConsumer,
    /// Where objects go.
    pub store: Arc<dyn ObjectStore>,
    /// Where messages go that are given up on.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// Stamps the lines of the `base64` form.
    pub clock: Arc<dyn Clock>,
    /// The stage's line on the health board.
    pub health: StageHealth,
    /// Asks for what is grouped to be written now.
    pub flush: FlushRequest,
}

/// The section, checked.
#[derive(Clone, Debug)]
pub struct Plan {
    config: ArchiveConfig,
    prefix: Prefix,
    locations: LocationSources,
}

impl Plan {
    /// Checks the section. Opens nothing.
    ///
    /// # Errors
    /// Every mistake with its path below `icestore`.
    pub fn new(config: &ArchiveConfig) -> Result<Self, Vec<(String, String)>> {
        let mut mistakes = crate::check::check(config);
        let prefix = match config.kind {
            ArchiveKind::Folder => Prefix::default(),
            ArchiveKind::CloudStorage => Prefix::parse(&config.google.prefix).unwrap_or_else(|error| {
                mistakes.push(("google.prefix".to_owned(), error.to_string()));
                Prefix::default()
            }),
        };
        match LocationSources::new(&KeyConfig { location: config.location.clone() }) {
            Ok(locations) if mistakes.is_empty() => {
                return Ok(Self { config: config.clone(), prefix, locations });
            }
            Ok(_) => {}
            Err(problems) => {
                mistakes
                    .extend(problems.into_iter().map(|problem| ("location".to_owned(), problem.to_string())));
            }
        }
        Err(mistakes)
    }

    /// The service over `parts`.
    #[must_use]
    pub fn build(self, parts: Parts) -> Archive {
        let config = &self.config;
        let limits = BatchLimits {
            count: config.batch.count as usize,
            bytes: config.batch.bytes.as_usize(),
            age: config.batch.age.get(),
            budget: config.memory.as_usize(),
        };
        let options = ServiceOptions {
            workers: WORKERS,
            max_attempts: config.max_attempts,
            dead_letters: Some(parts.dead_letters),
            health: Some(parts.health),
            flush: Some(parts.flush),
            window: Some(SourceWindow {
                messages: config.max_in_flight as usize,
                bytes: config.window_bytes(),
            }),
            ..ServiceOptions::new(STAGE)
        };
        let settings =
            ArchiveSettings { prefix: self.prefix, form: config.line, compression: config.compression };
        let processor = ArchiveProcessor::new(parts.store, settings, parts.clock);
        let transformer = ArchiveTransformer::new(self.locations);
        BatchingService::new(options, limits, parts.consumer, transformer, processor)
            .keyed(|item| item.value.clone())
    }
}

//! The program `enrichment`: Pub/Sub → look-ups (memory → Redis → Firestore) → Pub/Sub.

use crate::google::{Registry, firestore};
use crate::{EnrichmentConfig, Parts, Plan, STAGE, SourceKind, UnknownDevicePolicy, file_mistakes};
use connectors::{
    ConnectError, ENRICHED, Environment, File, Google, GooglePart, PubSubBus, RAW, Window, check_bus,
    check_google,
};
use messagepipeline::SystemClock;
use service_kit::OtherSection;
use service_kit::config::{ConfigErrors, Loaded, Problem};
use service_kit::program::{Closing, Program, Service};
use std::convert::Infallible;
use std::sync::Arc;

/// The service as a program.
#[derive(Debug)]
pub struct EnrichmentProgram;

type Config = File<OtherSection, EnrichmentConfig>;

impl Service for EnrichmentProgram {
    type Config = Config;
    type Plan = Plan;

    const NAME: &'static str = STAGE;
    const ABOUT: &'static str = "Takes messages from one topic of Pub/Sub, adds what the registry knows of their \
        devices, and publishes them to another; a message is acknowledged only when the other topic has it.";

    fn check(
        loaded: &Loaded<Config>,
        environment: &Environment,
    ) -> Result<(Plan, Vec<Problem>), ConfigErrors> {
        let config = &loaded.value;
        let mut check = loaded.check();
        check_bus(&config.bus, &mut check);
        check_google(&config.google, &[GooglePart::PubSub, GooglePart::Firestore], environment, &mut check);
        if config.enrichment.source.kind == SourceKind::Embedded {
            check.error(
                "/enrichment/source/kind",
                "is embedded, which is a file of `millstream up`: set it to firestore",
            );
        }
        if config.enrichment.unknown_device == UnknownDevicePolicy::Park {
            check.error(
                "/enrichment/unknown_device",
                "is park, which Pub/Sub has no place for: set it to pass or dead-letter",
            );
        }
        check.mistakes("/enrichment", file_mistakes(&config.enrichment));
        match Plan::new(&config.enrichment) {
            Ok(plan) => Ok((plan, check.finish()?)),
            Err(mistakes) => Err(check.refuse("/enrichment", mistakes)),
        }
    }

    async fn start(config: Config, plan: Plan, program: &mut Program) -> Result<Closing, String> {
        start(config, plan, program).await.map_err(|error| error.to_string())
    }
}

async fn start(config: Config, plan: Plan, program: &mut Program) -> Result<Closing, ConnectError> {
    let google = Google::new(&config.google, &program.environment).await?;
    let bus = PubSubBus::new(&google, &config.bus.pubsub)?;
    bus.create(&[ENRICHED], Some((RAW, STAGE))).await?;
    let section = &config.enrichment;
    let window = Window {
        messages: section.max_in_flight as usize,
        bytes: section.max_in_flight_bytes.as_usize(),
        max_attempts: section.max_attempts,
    };
    let Registry { source, layers, changes } = firestore(section, &google).await?;
    let parts = Parts {
        consumer: bus.consumer(STAGE, window),
        output: bus.publisher(ENRICHED, window),
        registry: source,
        layers,
        changes,
        lot: None,
        dead_letters: bus.dead_letters(),
        clock: Arc::new(SystemClock),
        health: program.health.stage(STAGE),
    };
    let (service, background) = plan.build(parts);
    let shutdown = program.shutdown.clone();
    program.tasks.spawn(STAGE, async move { service.run(shutdown).await.map(drop) });
    bus.watch_topic(ENRICHED, program);
    let shutdown = program.shutdown.clone();
    program.tasks.spawn("registry changes", async move {
        background.run(shutdown).await;
        Ok::<_, Infallible>(())
    });
    Ok(Box::pin(std::future::ready(Ok(()))))
}

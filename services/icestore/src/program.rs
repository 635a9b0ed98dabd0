//! The program `icestore`: Pub/Sub → objects in Cloud Storage.

use crate::google::store;
use crate::{ArchiveConfig, ArchiveKind, Parts, Plan, STAGE};
use ::icestore::ObjectStore;
use connectors::{
    ConnectError, ENRICHED, Environment, File, Google, GooglePart, PubSubBus, Window, check_bus, check_google,
};
use messagepipeline::{Clock, FlushRequest, SystemClock};
use service_kit::OtherSection;
use service_kit::config::{ConfigErrors, Loaded, Problem};
use service_kit::program::{Closing, Program, Service};
use service_kit::run_when_open;
use std::sync::Arc;

/// The service as a program.
#[derive(Debug)]
pub struct IcestoreProgram;

type Config = File<OtherSection, OtherSection, OtherSection, ArchiveConfig>;

impl Service for IcestoreProgram {
    type Config = Config;
    type Plan = Plan;

    const NAME: &'static str = STAGE;
    const ABOUT: &'static str = "Takes enriched messages from Pub/Sub and writes them as compressed objects by day and place to Cloud Storage; a message is acknowledged only when its object is stored.";

    fn check(
        loaded: &Loaded<Config>,
        environment: &Environment,
    ) -> Result<(Plan, Vec<Problem>), ConfigErrors> {
        let config = &loaded.value;
        let mut check = loaded.check();
        check_bus(&config.bus, &mut check);
        check_google(&config.google, &[GooglePart::PubSub, GooglePart::Storage], environment, &mut check);
        if config.icestore.kind == ArchiveKind::Folder {
            check.error(
                "/icestore/kind",
                "is folder, which is written by `millstream up`: set it to cloud-storage, with the bucket in \
                 icestore.google",
            );
        }
        match Plan::new(&config.icestore) {
            Ok(plan) => Ok((plan, check.finish()?)),
            Err(mistakes) => Err(check.refuse("/icestore", mistakes)),
        }
    }

    async fn start(config: Config, plan: Plan, program: &mut Program) -> Result<Closing, String> {
        start(config, plan, program).await.map_err(|error| error.to_string())
    }
}

async fn start(config: Config, plan: Plan, program: &mut Program) -> Result<Closing, ConnectError> {
    let google = Google::new(&config.google, &program.environment).await?;
    let bus = PubSubBus::new(&google, &config.bus.pubsub)?;
    bus.create(&[], Some((ENRICHED, STAGE))).await?;
    let section = &config.icestore;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let sink: Arc<dyn ObjectStore> = Arc::new(store(&section.google, &google, Arc::clone(&clock)).await?);
    let window = Window {
        messages: section.max_in_flight as usize,
        bytes: section.window_bytes(),
        max_attempts: section.max_attempts,
    };
    let health = program.health.stage(STAGE);
    let service = plan.build(Parts {
        consumer: bus.consumer(STAGE, window),
        store: Arc::clone(&sink),
        dead_letters: bus.dead_letters(),
        clock,
        health: health.clone(),
        flush: FlushRequest::new(),
    });
    let (opening, shutdown) = (Arc::clone(&sink), program.shutdown.clone());
    program.tasks.spawn(STAGE, async move {
        run_when_open(|| opening.open(), &health, &shutdown, service.run(shutdown.clone())).await
    });
    Ok(Box::pin(async move { sink.close().await.map_err(|error| format!("Cloud Storage: {error}")) }))
}

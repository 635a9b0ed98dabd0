//! The program `bigquery`: Pub/Sub → rows of BigQuery.

use crate::google::inserter;
use crate::{Parts, Plan, STAGE, WarehouseConfig, WarehouseKind};
use bqstore::RowInserter;
use connectors::{
    ConnectError, ENRICHED, Environment, File, Google, GooglePart, PubSubBus, Window, check_bus, check_google,
};
use messagepipeline::FlushRequest;
use service_kit::OtherSection;
use service_kit::config::{ConfigErrors, Loaded, Problem};
use service_kit::program::{Closing, Program, Service};
use service_kit::run_when_open;
use std::sync::Arc;

/// The service as a program.
#[derive(Debug)]
pub struct BigQueryProgram;

type Config = File<OtherSection, OtherSection, WarehouseConfig>;

impl Service for BigQueryProgram {
    type Config = Config;
    type Plan = Plan;

    const NAME: &'static str = STAGE;
    const ABOUT: &'static str = "Takes enriched messages from Pub/Sub and writes them as rows to BigQuery; a message is acknowledged only when its row is stored.";

    fn check(
        loaded: &Loaded<Config>,
        environment: &Environment,
    ) -> Result<(Plan, Vec<Problem>), ConfigErrors> {
        let config = &loaded.value;
        let mut check = loaded.check();
        check_bus(&config.bus, &mut check);
        check_google(&config.google, &[GooglePart::PubSub, GooglePart::BigQuery], environment, &mut check);
        if config.bigquery.kind == WarehouseKind::Embedded {
            check.error(
                "/bigquery/kind",
                "is embedded, which is a file of `millstream up`: set it to bigquery, with the dataset in bigquery.google",
            );
        }
        match Plan::new(&config.bigquery) {
            Ok(plan) => Ok((plan, check.finish()?)),
            Err(mistakes) => Err(check.refuse("/bigquery", mistakes)),
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
    let section = &config.bigquery;
    let sink: Arc<dyn RowInserter> = Arc::new(inserter(section, plan.columns(), &google)?);
    let window = Window {
        messages: section.max_in_flight as usize,
        bytes: section.max_in_flight_bytes.as_usize(),
        max_attempts: section.max_attempts,
    };
    let health = program.health.stage(STAGE);
    let service = plan.build(Parts {
        consumer: bus.consumer(STAGE, window),
        inserter: Arc::clone(&sink),
        dead_letters: bus.dead_letters(),
        health: health.clone(),
        flush: FlushRequest::new(),
    });
    let (opening, shutdown) = (Arc::clone(&sink), program.shutdown.clone());
    program.tasks.spawn(STAGE, async move {
        run_when_open(|| opening.open(), &health, &shutdown, service.run(shutdown.clone())).await
    });
    Ok(Box::pin(async move { sink.close().await.map_err(|error| format!("BigQuery: {error}")) }))
}

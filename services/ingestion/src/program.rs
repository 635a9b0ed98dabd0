//! The program `ingestion`: MQTT → (spool →) Pub/Sub.

use crate::ledger::{LEDGER_FOLDER, Ledger, LedgerOptions, Reached};
use crate::spool::Spool;
use crate::{
    FORWARD, IngestionConfig, Parts, Plan, STAGE, broker_options, check_certificates, endpoint_options, run,
};
use connectors::{
    ConnectError, Environment, File, Google, GooglePart, PubSubBus, PubSubConfig, RAW, Window, check_bus,
    check_google, check_topic,
};
use messagepipeline::{
    BatchLimits, BoxConsumer, Clock, DeadLetters, Health, IdGenerator, Publisher, SystemClock,
};
use mqttconverter::endpoint::EndpointHandle;
use mqttconverter::routing::Mistake;
use service_kit::config::{ByteSize, ConfigErrors, Loaded, Problem, pointer};
use service_kit::program::{Closing, Program, Service};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// Pub/Sub takes messages of 10 MB. The rest is for attributes, device data, and base64 in the `json` form.
const MAX_PACKET: ByteSize = ByteSize::from_mib(6);

/// How long the client waits after the last message of a call for more; the least that its timer can.
const SHORTEST_DELAY: Duration = Duration::from_millis(1);

/// Bytes under way from the spool to Pub/Sub: enough for 80 MB/s where an answer takes a tenth of a second.
const BEHIND_SPOOL: usize = 8 << 20;

/// The least that the ledger keeps.
const A_DAY: Duration = Duration::from_hours(24);

/// The service as a program.
#[derive(Debug)]
pub struct IngestionProgram;

type Config = File<IngestionConfig>;

impl Service for IngestionProgram {
    type Config = Config;
    type Plan = Plan;

    const NAME: &'static str = STAGE;
    const ABOUT: &'static str = "Takes device messages from MQTT and publishes them to Pub/Sub; a device's message is \
        acknowledged only when Pub/Sub, or the spool on disk, has it.";

    fn check(
        loaded: &Loaded<Config>,
        environment: &Environment,
    ) -> Result<(Plan, Vec<Problem>), ConfigErrors> {
        let config = &loaded.value;
        let mut check = loaded.check();
        check_bus(&config.bus, &mut check);
        check_google(&config.google, &[GooglePart::PubSub], environment, &mut check);
        if config.ingestion.broker.is_none() && config.ingestion.spool.is_none() {
            check.warn(
                "/ingestion/mqtt",
                "keeps what QoS 2 needs in memory only, because there is no ingestion.spool: what a device sends at QoS \
                 2 across a restart may be stored twice",
            );
        }
        let largest = config.ingestion.broker.as_ref().map_or_else(
            || ("/ingestion/mqtt/max_packet_size", config.ingestion.mqtt.max_packet_size),
            |broker| ("/ingestion/broker/max_packet_size", broker.max_packet_size),
        );
        if largest.1 > MAX_PACKET {
            let message = format!(
                "is more than Pub/Sub takes with what is added to a message: set it to {MAX_PACKET} or less"
            );
            check.error(largest.0, message);
        }
        if config.ingestion.spool.as_ref().is_some_and(|spool| spool.max_size < largest.1) {
            let message = format!("holds not even one message of {}: set it to 1GiB or more", largest.1);
            check.error("/ingestion/spool/max_size", message);
        }
        if config.ingestion.ledger && config.ingestion.ledger_keep.get() < A_DAY {
            check.error(
                "/ingestion/ledger_keep",
                "is less than a day, and ids are forgotten by days: set it to 1d or more",
            );
        }
        check_certificates(&config.ingestion, SystemClock.now(), &mut check);
        for (index, route) in config.ingestion.routes.iter().enumerate() {
            let pointer = format!("/ingestion/routes/{index}/topic");
            check_topic(&config.bus.pubsub, &route.topic, &pointer, &mut check);
        }
        let topics: Vec<&str> = config.ingestion.routes.iter().map(|route| route.topic.as_str()).collect();
        match Plan::new(&config.ingestion, &topics) {
            Ok(plan) => {
                for topic in plan.topics().iter().filter(|topic| *topic != RAW) {
                    let message = format!(
                        "lead to the topic `{topic}`, which none of Millstream's services reads: Pub/Sub forgets what is \
                         published there unless a subscription of yours is there first, and `books` will miss it"
                    );
                    check.warn("/ingestion/routes", message);
                }
                for warning in plan.warnings() {
                    let path = format!("/ingestion{}", pointer(&warning.path));
                    check.warn(&path, &warning.message);
                }
                Ok((plan, check.finish()?))
            }
            Err(mistakes) => Err(check.refuse("/ingestion", mistakes.into_iter().map(Into::into))),
        }
    }

    async fn start(config: Config, plan: Plan, program: &mut Program) -> Result<Closing, String> {
        start(config, plan, program).await.map_err(|error| error.to_string())
    }
}

async fn start(config: Config, plan: Plan, program: &mut Program) -> Result<Closing, ConnectError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let ids = Arc::new(IdGenerator::new(Arc::clone(&clock)));
    let google = Google::new(&config.google, &program.environment).await?;
    let delay = config.bus.pubsub.publish_delay.get();
    let bus = PubSubBus::new(&google, &gathered(&config.bus.pubsub))?;
    let topics = plan.topics().to_vec();
    bus.create(&topics.iter().map(String::as_str).collect::<Vec<_>>(), None).await?;
    let data = config.data.0.as_path();
    let spool = match &config.ingestion.spool {
        Some(settings) => Some(Arc::new(Spool::open(data, settings, &topics, Arc::clone(&clock)).await?)),
        None => None,
    };
    let window = Window {
        messages: config.ingestion.max_in_flight as usize,
        bytes: config.ingestion.max_in_flight_bytes.as_usize(),
        max_attempts: 0,
    };
    // What waits for Pub/Sub's answer waits in memory twice, as it is and as it was sent. Behind a spool it need not.
    let last =
        if spool.is_some() { Window { bytes: window.bytes.min(BEHIND_SPOOL), ..window } } else { window };
    let out = Out {
        ledger: open_ledger(&config, Reached::Bus, &ids, &clock)?,
        spooled: match &spool {
            Some(_) => open_ledger(&config, Reached::Spool, &ids, &clock)?,
            None => None,
        },
        spool: spool.clone(),
        limits: BatchLimits { age: delay, ..BatchLimits::publishing(last.bytes) },
        dead_letters: bus.dead_letters(),
    };
    let mut publishers = BTreeMap::new();
    for topic in &topics {
        // Messages are taken while it is missing: with a spool they are safe, and without one their devices keep them.
        bus.watch_topic(topic, program);
        publishers.insert(topic.clone(), out.publisher(topic, bus.publisher(topic, last), program).await?);
    }
    out.forget(program)?;
    let (consumer, endpoint) =
        source(&config.ingestion, spool.as_deref(), ids, clock, &program.health).await?;
    let parts =
        Parts { consumer, publishers, dead_letters: bus.dead_letters(), health: program.health.stage(STAGE) };
    // What the spool takes is on disk at once; its messages are gathered behind it.
    let plan = if spool.is_some() { plan } else { plan.gathering(delay) };
    let service = plan.build(parts).map_err(|mistakes| refused(&mistakes))?;
    let drain = config.shutdown.drain.get();
    let shutdown = program.shutdown.clone();
    program.tasks.spawn(STAGE, async move { run(service, endpoint, shutdown, drain).await.map(drop) });
    Ok(Box::pin(async move {
        match spool {
            Some(spool) => spool.close().await.map_err(|error| format!("spool: {error}")),
            None => Ok(()),
        }
    }))
}

/// The way out to the topics.
struct Out {
    /// Of what the bus has.
    ledger: Option<Ledger>,
    /// Of what the spool has.
    spooled: Option<Ledger>,
    spool: Option<Arc<Spool>>,
    /// Of the groups that leave the spool.
    limits: BatchLimits,
    dead_letters: Arc<dyn DeadLetters>,
}

impl Out {
    /// The publisher of `topic` that messages are acknowledged after: `direct`, or the spool, behind which a task of
    /// `program` takes them to `direct`.
    async fn publisher(
        &self,
        topic: &str,
        direct: Arc<dyn Publisher>,
        program: &mut Program,
    ) -> Result<Arc<dyn Publisher>, ConnectError> {
        let direct = recorded(self.ledger.as_ref(), direct);
        let Some(spool) = &self.spool else { return Ok(direct) };
        // Each topic has a line of its own: it may be missing while the others are there.
        let name = format!("{FORWARD} {topic}");
        let health = program.health.stage(name.clone());
        let letters = Arc::clone(&self.dead_letters);
        let forward = spool.forward(topic, direct, letters, health, self.limits).await?;
        let shutdown = program.shutdown.clone();
        program.tasks.spawn(name, async move { forward.run(shutdown).await.map(drop) });
        Ok(recorded(self.spooled.as_ref(), spool.publisher(topic).await?))
    }

    /// Forgets what is old, in tasks of `program`.
    fn forget(&self, program: &mut Program) -> Result<(), ConnectError> {
        if let Some(ledger) = self.ledger.clone() {
            let shutdown = program.shutdown.clone();
            program.tasks.spawn("ledger", async move {
                ledger.forget_old(shutdown).await;
                Ok::<_, Infallible>(())
            });
        }
        if let Some(spool) = &self.spool {
            let (forgetting, shutdown) = (spool.forgetting()?, program.shutdown.clone());
            program.tasks.spawn("spool ids", async move {
                forgetting.run(shutdown).await;
                Ok::<_, Infallible>(())
            });
        }
        Ok(())
    }
}

/// `publisher`, entered in `ledger` where there is one.
fn recorded(ledger: Option<&Ledger>, publisher: Arc<dyn Publisher>) -> Arc<dyn Publisher> {
    match ledger {
        Some(ledger) => ledger.record(publisher),
        None => publisher,
    }
}

/// The settings of publishers that get what belongs into one request in one call. Gathered by the client, every message
/// would be a call of its own, with its own tasks and an entry of its own in the ledger.
fn gathered(config: &PubSubConfig) -> PubSubConfig {
    PubSubConfig { publish_delay: SHORTEST_DELAY.into(), ..config.clone() }
}

fn open_ledger(
    config: &Config,
    reached: Reached,
    ids: &IdGenerator,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Ledger>, ConnectError> {
    if !config.ingestion.ledger {
        return Ok(None);
    }
    let folder = config.data.0.join(LEDGER_FOLDER);
    let options = LedgerOptions {
        folder: folder.clone(),
        name: ids.next_id(),
        keep: config.ingestion.ledger_keep.get(),
    };
    let ledger = Ledger::create(options, reached, Arc::clone(clock)).map_err(|error| {
        let detail = format!(
            "the ledger of ids cannot be written in {}: {error}; set `data` to a folder that can, or ingestion.ledger to \
             false",
            folder.display()
        );
        messagepipeline::StageError::new(messagepipeline::ErrorClass::Configuration, "ledger", detail)
    })?;
    Ok(Some(ledger))
}

async fn source(
    config: &IngestionConfig,
    spool: Option<&Spool>,
    ids: Arc<IdGenerator>,
    clock: Arc<dyn Clock>,
    health: &Health,
) -> Result<(BoxConsumer, Option<EndpointHandle>), ConnectError> {
    if let Some(broker) = &config.broker {
        let options = broker_options(broker, config);
        let seed = service_kit::random_seed();
        let consumer = connectors::broker(options, ids, clock, health.stage("broker"), seed)?;
        return Ok((consumer, None));
    }
    let options = endpoint_options(config).map_err(|mistakes| refused(&mistakes))?;
    let sessions = spool.map(Spool::sessions);
    let (consumer, address, handle) = connectors::endpoint(options, ids, clock, sessions).await?;
    tracing::info!(%address, "devices connect here");
    Ok((consumer, Some(handle)))
}

fn refused(mistakes: &[Mistake]) -> ConnectError {
    let text = mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    messagepipeline::StageError::new(messagepipeline::ErrorClass::Configuration, "configuration", text).into()
}

//! `millstream replay`.
//!
//! ```text
//!  folder or bucket ─► icestore::replay ─┬─► topic of the bus
//!                      in order, paced   └─► channel ─► feed ─► MQTT broker
//! ```

#[cfg(feature = "google")]
mod cloud;
mod mqtt;

use super::feed::{LOOK, STOP, connection, say_problems, start_log, summary};
use crate::check::RAW;
use crate::cli::{Common, ReplayArgs};
use crate::config::Config;
use crate::feed::{self, FeedOptions, FeedReport};
use crate::output::{Failure, print, say};
use crate::progress::Progress;
use crate::rate::{Pacer, Rate};
use connectors::{Bus, BusKind};
use embedded::folder::DataFolder;
use icestore::replay::{Replay, ReplayOptions, ReplayProgress, Replayed, Selection};
use icestore::{FolderReader, ObjectReader, Prefix};
use icestore_service::ArchiveKind;
use messagepipeline::{Publisher, Shutdown, StageError, SystemClock};
use service_kit::{Exit, Signals, Tasks};
use std::convert::Infallible;
use std::sync::Arc;

pub(super) fn run(common: &Common, arguments: &ReplayArgs) -> Result<Exit, Failure> {
    let config = super::configuration(common)?.value;
    let rate = arguments
        .rate
        .parse()
        .map_err(|error| Failure::usage(format!("--rate {:?}: {error}", arguments.rate)))?;
    let destination = Destination::new(&config, arguments)?;
    start_log(common)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let played = runtime.block_on(played(common, &config, arguments, rate, destination))?;
    played.report()
}

/// Where messages go.
enum Destination {
    /// The topic of the bus in this folder, whose lock is held.
    Topic {
        topic: String,
        folder: DataFolder,
    },
    /// The topic on Pub/Sub.
    #[cfg(feature = "google")]
    PubSub(String),
    Broker(Box<FeedOptions>),
}

impl Destination {
    fn new(config: &Config, arguments: &ReplayArgs) -> Result<Self, Failure> {
        if let (Some(from), Some(until)) = (&arguments.from, &arguments.until)
            && from > until
        {
            return Err(Failure::usage(format!(
                "--from {from} is after --until {until}: both days are replayed, the earlier one first"
            )));
        }
        if let Some(url) = &arguments.broker {
            return Ok(Self::Broker(Box::new(FeedOptions {
                connections: arguments.connections,
                client_id: arguments.client_id.clone(),
                ..connection(url, &arguments.connection)?
            })));
        }
        let topic = arguments.topic.clone().unwrap_or_default();
        if topic.trim().is_empty() {
            return Err(Failure::usage("--topic is empty: name a topic of the bus, such as raw"));
        }
        match config.bus.kind {
            BusKind::Embedded => Ok(Self::Topic { topic, folder: DataFolder::open(&config.data)? }),
            #[cfg(feature = "google")]
            BusKind::Pubsub if cloud::is_of_dead_letters(config, &topic) => Err(Failure::usage(format!(
                "--topic {topic} is that of the dead letters (bus.pubsub.dead_letters), where an archived message would \
                 count as given up: name the topic of a stage, such as raw"
            ))),
            #[cfg(feature = "google")]
            BusKind::Pubsub => Ok(Self::PubSub(topic)),
            #[cfg(not(feature = "google"))]
            BusKind::Pubsub => Err(super::without_google("bus.kind: pubsub")),
        }
    }
}

/// What is replayed, and how.
struct Plan {
    reader: Box<dyn ObjectReader>,
    selection: Selection,
    options: ReplayOptions,
    rate: Rate,
}

/// What came of it.
struct Played {
    ended: Result<Replayed, StageError>,
    progress: ReplayProgress,
    feed: Option<FeedReport>,
    closed: Result<(), Failure>,
}

async fn played(
    common: &Common,
    config: &Config,
    arguments: &ReplayArgs,
    rate: Rate,
    destination: Destination,
) -> Result<Played, Failure> {
    let (reader, prefix) = source(config, arguments.source.as_deref()).await?;
    let plan = Plan {
        reader,
        selection: Selection {
            prefix,
            from: arguments.from.clone(),
            until: arguments.until.clone(),
            locations: arguments.location.clone(),
            devices: arguments.device.clone(),
        },
        options: ReplayOptions {
            new_ids: arguments.new_ids,
            enrichment: arguments.topic.as_deref() != Some(RAW),
            memory: (arguments.memory as usize) << 20,
        },
        rate,
    };
    let (config, shutdown) = (config.clone(), Shutdown::new());
    let mut tasks = Tasks::new(shutdown.clone());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let progress = Progress::new(common.quiet, "messages");
    tasks.spawn("replay", async move {
        let played = match destination {
            Destination::Topic { topic, folder } => {
                to_topic(&config, plan, &topic, &folder, &progress, &shutdown).await
            }
            #[cfg(feature = "google")]
            Destination::PubSub(topic) => to_pubsub(&config, plan, &topic, &progress, &shutdown).await,
            Destination::Broker(options) => Ok(to_broker(plan, *options, &progress, &shutdown).await),
        };
        progress.end();
        // Nobody waits for it any more when the program is being stopped hard.
        let _ = sender.send(played);
        Ok::<_, Infallible>(())
    });
    let outcome = tasks.run(Signals::os()?, STOP).await;
    receiver.await.map_err(|_| {
        let why = outcome.cut_short.or_else(|| outcome.failures.first().map(ToString::to_string));
        Failure::failed(format!("replay: {}", why.unwrap_or_default()))
    })?
}

/// The archive that is asked for, and the folder in it.
async fn source(config: &Config, named: Option<&str>) -> Result<(Box<dyn ObjectReader>, Prefix), Failure> {
    let archive = &config.icestore.google;
    match named {
        None if config.icestore.kind == ArchiveKind::CloudStorage => {
            bucket(config, &archive.bucket, &archive.prefix).await
        }
        None => {
            let folder = DataFolder::inspect(&config.data)?;
            Ok((Box::new(FolderReader::new(folder.archive())), Prefix::default()))
        }
        Some(text) => match text.strip_prefix("gs://") {
            Some(place) => {
                let (name, prefix) = place.split_once('/').unwrap_or((place, ""));
                bucket(config, name, prefix).await
            }
            None => Ok((Box::new(FolderReader::new(text)), Prefix::default())),
        },
    }
}

#[cfg(feature = "google")]
async fn bucket(
    config: &Config,
    name: &str,
    prefix: &str,
) -> Result<(Box<dyn ObjectReader>, Prefix), Failure> {
    let prefix = Prefix::parse(prefix).map_err(Failure::usage)?;
    let google = connectors::Google::new(&config.google, &std::env::vars().collect())
        .await
        .map_err(Failure::failed)?;
    let mut archive = config.icestore.google.clone();
    archive.bucket = name.to_owned();
    let reader = icestore_service::google::reader(&archive, &google).await.map_err(Failure::failed)?;
    Ok((Box::new(reader), prefix))
}

#[cfg(not(feature = "google"))]
async fn bucket(_: &Config, name: &str, _: &str) -> Result<(Box<dyn ObjectReader>, Prefix), Failure> {
    Err(super::without_google(&format!("gs://{name}")))
}

async fn to_topic(
    config: &Config,
    plan: Plan,
    topic: &str,
    folder: &DataFolder,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<Played, Failure> {
    let parked = config.enrichment.park.max_messages;
    let bus = Bus::open(&config.bus, folder, parked, Arc::new(SystemClock)).await.map_err(Failure::failed)?;
    let publisher = bus.publisher(topic).await.map_err(Failure::failed)?;
    folder.note_stores()?;
    let (ended, counts) = play(&plan, publisher.as_ref(), progress, shutdown).await;
    let closed = bus.close().await.map_err(Failure::failed);
    Ok(Played { ended, progress: counts, feed: None, closed })
}

#[cfg(feature = "google")]
async fn to_pubsub(
    config: &Config,
    plan: Plan,
    topic: &str,
    progress: &Progress,
    shutdown: &Shutdown,
) -> Result<Played, Failure> {
    let publisher = cloud::publisher(config, topic, plan.options.new_ids).await?;
    let (ended, counts) = play(&plan, publisher.as_ref(), progress, shutdown).await;
    Ok(Played { ended, progress: counts, feed: None, closed: Ok(()) })
}

async fn to_broker(plan: Plan, options: FeedOptions, progress: &Progress, shutdown: &Shutdown) -> Played {
    let (publisher, source) = mqtt::channel();
    let replaying = async {
        let played = play(&plan, &publisher, progress, shutdown).await;
        // The source ends with it.
        drop(publisher);
        played
    };
    let feeding = feed::run(options, source, feed::Progress::default(), shutdown);
    let ((ended, counts), report) = tokio::join!(replaying, feeding);
    Played { ended, progress: counts, feed: Some(report), closed: Ok(()) }
}

/// Plays and shows how far it is.
async fn play(
    plan: &Plan,
    publisher: &dyn Publisher,
    progress: &Progress,
    shutdown: &Shutdown,
) -> (Result<Replayed, StageError>, ReplayProgress) {
    let mut pacer = Pacer::new(plan.rate);
    let pace = move |time| pacer.due(Some(time));
    let replay = Replay::new(plan.reader.as_ref(), publisher, &plan.selection, plan.options, pace, shutdown);
    let counts = replay.progress();
    let ended = tokio::select! {
        ended = replay.run() => ended,
        never = show(&counts, progress) => match never {},
    };
    (ended, counts)
}

async fn show(counts: &ReplayProgress, progress: &Progress) -> Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = counts.counts();
        progress.show(|| format!("{} messages of {} objects", now.published, now.objects), None);
    }
}

impl Played {
    fn report(self) -> Result<Exit, Failure> {
        for problem in self.progress.problems() {
            say(&problem);
        }
        let counts = self.progress.counts();
        let mut text = format!("{} messages of {} objects replayed", counts.published, counts.objects);
        for (count, what) in [
            (counts.refused, "refused"),
            (counts.repeated, "lines of messages that had come already"),
            (counts.damaged, "objects damaged"),
            (counts.foreign, "objects passed over that are not the archive's"),
        ] {
            if count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        if let Some(report) = &self.feed {
            say_problems(report);
            text.push_str(&format!("; {}", summary(report)));
        }
        // The feed's summary says it itself.
        if self.feed.is_none() && matches!(self.ended, Ok(Replayed::Stopped)) {
            text.push_str("; stopped before the end");
        }
        print(&format!("{text}\n"))?;
        self.closed?;
        let fed = self.feed.as_ref().is_none_or(FeedReport::is_success);
        match self.ended {
            // The feed has said why.
            Err(_) if !fed => Ok(Exit::Failed),
            Err(error) => Err(Failure::failed(error)),
            Ok(Replayed::Complete) if fed && counts.refused == 0 && counts.damaged == 0 => Ok(Exit::Done),
            Ok(_) => Ok(Exit::Failed),
        }
    }
}

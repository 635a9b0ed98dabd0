//! `millstream up`.

use super::feed::{playlist, say_problems, summary, verbosity};
use crate::books::{Books, Report};
use crate::check::{ENRICHED, Plans, RAW, check};
use crate::cli::{Common, UpArgs};
use crate::config::{self, Config};
use crate::control;
use crate::feed::{self, BrokerAddress, FeedOptions, FeedReport, Playlist};
use crate::output::{Failure, print, say};
use crate::progress::Progress;
use crate::simulate::Fleet;
use crate::system::{Stores, System, drained};
use connectors::BusKind;
use embedded::bus::Backlog;
use embedded::folder::DataFolder;
use messagepipeline::{Health, Shutdown};
use service_kit::config::Override;
use service_kit::telemetry::{self, Metrics};
use service_kit::{Exit, Outcome, Signals, Tasks, admin};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often readiness is looked at until it is said.
const LOOK: Duration = Duration::from_millis(10);
/// How often the live view is drawn.
const FOLLOW: Duration = Duration::from_millis(200);

pub(super) fn overrides(arguments: &UpArgs) -> Vec<Override> {
    let mut overrides = Vec::new();
    if let Some(address) = arguments.mqtt_listen {
        overrides.push(Override::new("/ingestion/mqtt/listen", address.to_string(), "--mqtt-listen"));
    }
    if let Some(address) = arguments.http_listen {
        overrides.push(Override::new("/http/listen", address.to_string(), "--http-listen"));
    }
    overrides
}

pub(super) fn run(common: &Common, arguments: &UpArgs) -> Result<Exit, Failure> {
    let loaded = config::read(common, overrides(arguments))?;
    let (plans, warnings) = check(&loaded)?;
    let config = loaded.value;
    if config.bus.kind == BusKind::Pubsub {
        return Err(Failure::usage(
            "bus.kind is pubsub, which joins services that are processes of their own: run ingestion, enrichment, bigquery \
             and icestore with this file; for one process, leave bus.kind out",
        ));
    }
    let playlist = match arguments.feed.is_empty() {
        true => None,
        false => Some(own_playlist(&config, arguments)?),
    };
    if let Some(path) = &arguments.report {
        // Found out before the work and not after it.
        std::fs::File::create(path)
            .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))?;
    }
    let metrics = telemetry::init(&config.log, verbosity(common)).map_err(Failure::failed)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    telemetry::record_build("millstream", env!("CARGO_PKG_VERSION"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let work = Work {
        play: playlist.map(|playlist| Play::Recordings(Box::new(playlist))),
        until_drained: arguments.until_drained,
        qos: arguments.play.qos,
        connections: arguments.play.connections,
        quiet: common.quiet,
        report: arguments.report.is_some(),
        accept_missing_stores: arguments.accept_missing_stores,
    };
    let (exit, report) = runtime.block_on(run_system(&config, plans, metrics, work))?;
    match report {
        Some(report) => finish(arguments, exit, &report),
        None => Ok(exit),
    }
}

/// Recordings for the endpoint of this process.
fn own_playlist(config: &Config, arguments: &UpArgs) -> Result<Playlist, Failure> {
    let ingestion = &config.ingestion;
    if ingestion.broker.is_some() {
        return Err(Failure::usage(
            "--feed plays into the endpoint of this process, and ingestion.broker takes its place; play with \
             `millstream feed --broker URL` from a second terminal",
        ));
    }
    if ingestion.mqtt.tls.is_some() || !ingestion.mqtt.users.is_empty() {
        return Err(Failure::usage(
            "--feed has no user and no certificate for the endpoint that ingestion.mqtt protects; play with \
             `millstream feed --user NAME …` from a second terminal",
        ));
    }
    playlist(&arguments.feed, &arguments.play)
}

/// What to do beside running.
pub(super) struct Work {
    play: Option<Play>,
    until_drained: bool,
    qos: u8,
    connections: u16,
    quiet: bool,
    report: bool,
    accept_missing_stores: bool,
}

/// What is played into the endpoint.
enum Play {
    Recordings(Box<Playlist>),
    Fleet { fleet: Box<Fleet>, messages: u64 },
}

impl Work {
    /// A simulated fleet, with a live view of how far its messages are, until all have arrived.
    pub(super) fn demo(fleet: Fleet, messages: u64, quiet: bool) -> Self {
        let play = Some(Play::Fleet { fleet: Box::new(fleet), messages });
        Self {
            play,
            until_drained: true,
            qos: 1,
            connections: 4,
            quiet,
            report: true,
            accept_missing_stores: false,
        }
    }
}

/// Runs everything to its end. Answers how it ended and the books after it.
pub(super) async fn run_system(
    config: &Config,
    plans: Plans,
    metrics: Metrics,
    work: Work,
) -> Result<(Exit, Option<Report>), Failure> {
    // Reading all ids takes time on a large folder: a plain stop does not wait for it, `millstream books` does.
    let wants_books = work.until_drained || work.report;
    let folder = DataFolder::open(&config.data)?;
    folder.require_stores(work.accept_missing_stores)?;
    let (health, shutdown) = (Health::new(), Shutdown::new());
    let mut signals = Signals::os()?;
    let routes = admin::router(health.clone(), shutdown.clone(), metrics.clone());
    let admin = admin::serve(config.http.listen, routes).await.map_err(Failure::failed)?;
    let opening = System::open(config, plans, &folder, &health);
    let Some(system) = signals.unless_stopped(&shutdown, opening).await else {
        admin.stop().await;
        return Ok((Exit::Done, None));
    };
    let system = system.map_err(Failure::failed)?;
    let mqtt = system.mqtt;
    let is_demo = matches!(work.play, Some(Play::Fleet { .. }));
    let orders = match prepare(config, &folder, &system, (!is_demo).then(|| admin.local_addr())).await {
        Ok(orders) => orders,
        Err(failure) => {
            admin.stop().await;
            // What kept it from starting is what there is to say.
            let _ = system.stores.close().await;
            return Err(failure);
        }
    };
    let mut tasks = Tasks::new(shutdown.clone());
    let stores = system.spawn(&mut tasks, &health, &shutdown, config.shutdown.drain.get());
    let _upkeep = metrics.start_upkeep();
    if !is_demo {
        tasks.spawn("readiness", say_when_ready(health.clone(), shutdown.clone()));
    }
    let complete = Arc::new(AtomicBool::new(true));
    spawn_work(&mut tasks, work, mqtt, &stores, &health, &shutdown, &complete);

    let outcome = tasks.run(signals, config.shutdown.drain.get()).await;

    orders.stop().await;
    admin.stop().await;
    let closed = stores.close().await;
    // Said before the books are read: what stopped a task may keep them from being read too.
    let ended = say_outcome(&outcome, closed, complete.load(Ordering::SeqCst));
    let report = match wants_books {
        true => {
            let outside = super::books::remote(config).await?;
            Some(Books::open(&folder, &config.bigquery.table)?.with(outside).report(false)?)
        }
        false => None,
    };
    drop(folder);
    Ok((ended, report))
}

/// The last that can fail before anything runs. `http` is where the admin server listens, if that is to be said.
async fn prepare(
    config: &Config,
    folder: &DataFolder,
    system: &System,
    http: Option<SocketAddr>,
) -> Result<control::Server, Failure> {
    folder.note_stores()?;
    let letters = control::Letters::new(system.stores.bus.letter_queue(), system.ingest.clone());
    let orders = control::Server::start(folder, letters).await;
    let orders = orders.map_err(Failure::failed)?;
    let Some(http) = http else { return Ok(orders) };
    match introduce(config, system.mqtt, http) {
        Ok(()) => Ok(orders),
        Err(failure) => {
            orders.stop().await;
            Err(failure)
        }
    }
}

fn introduce(config: &Config, mqtt: Option<SocketAddr>, http: SocketAddr) -> Result<(), Failure> {
    let from = match (mqtt, &config.ingestion.broker) {
        (Some(address), _) => format!("mqtt  {address}"),
        (None, broker) => format!("from  {}", broker.as_ref().map_or("", |broker| broker.url.as_str())),
    };
    print(&format!("{from}\nhttp  http://{http}\ndata  {}\n", config.data.display()))?;
    Ok(())
}

async fn say_when_ready(health: Health, shutdown: Shutdown) -> std::io::Result<()> {
    while !health.is_ready() {
        tokio::select! {
            () = shutdown.begun() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    print("ready\n")
}

/// Starts the feed and the wait for the drain, as far as they were asked for.
fn spawn_work(
    tasks: &mut Tasks,
    work: Work,
    mqtt: Option<SocketAddr>,
    stores: &Stores,
    health: &Health,
    shutdown: &Shutdown,
    complete: &Arc<AtomicBool>,
) {
    if work.play.is_none() && !work.until_drained {
        return;
    }
    let (stores, health, shutdown, complete) =
        (stores.clone(), health.clone(), shutdown.clone(), Arc::clone(complete));
    tasks.spawn("feed and drain", async move {
        let Work { play, until_drained, qos, connections, quiet, .. } = work;
        let view = LiveView::new(quiet, &play);
        if let (Some(play), Some(mqtt)) = (play, mqtt) {
            let options = FeedOptions { qos, connections, ..FeedOptions::new(reachable(mqtt)) };
            let report = feed_in(play, options, &view, &stores, &shutdown).await;
            say_problems(&report);
            if !report.is_success() {
                complete.store(false, Ordering::SeqCst);
            }
            if qos == 0 {
                tokio::select! {
                    () = shutdown.begun() => {}
                    () = settle_unacknowledged(&stores) => {}
                }
            }
        }
        if until_drained {
            let drained = drained(&stores, &health, &shutdown, |backlog| view.show(backlog)).await;
            view.end();
            drained.map_err(|error| error.to_string())?;
            shutdown.begin();
        }
        Ok::<_, String>(())
    });
}

/// Plays and shows how far it is.
async fn feed_in(
    play: Play,
    options: FeedOptions,
    view: &LiveView,
    stores: &Stores,
    shutdown: &Shutdown,
) -> FeedReport {
    match play {
        Play::Recordings(playlist) => {
            let report = super::feed::play(options, *playlist, &view.progress, shutdown).await;
            say(&format!("fed: {}", summary(&report)));
            report
        }
        Play::Fleet { fleet, .. } => {
            let fed = feed::run(options, *fleet, feed::Progress::default(), shutdown);
            tokio::select! {
                report = fed => report,
                never = view.follow(stores) => match never {},
            }
        }
    }
}

/// How far messages are on their path.
struct LiveView {
    progress: Progress,
    expected: u64,
}

impl LiveView {
    fn new(quiet: bool, play: &Option<Play>) -> Self {
        let expected = if let Some(Play::Fleet { messages, .. }) = play { *messages } else { 0 };
        Self { progress: Progress::new(quiet, "messages"), expected }
    }

    fn show(&self, backlog: &Backlog) {
        let published = |name: &str| {
            backlog.topics.iter().find(|topic| topic.name == name).map_or(0, |topic| topic.published.count)
        };
        let open = |name: &str| {
            let found = backlog.subscriptions.iter().find(|subscription| subscription.name == name);
            found.map_or(0, |subscription| subscription.unsettled)
        };
        let (raw, enriched) = (published(RAW), published(ENRICHED));
        let rows = enriched.saturating_sub(open(bigquery_service::STAGE));
        let lines = enriched.saturating_sub(open(icestore_service::STAGE));
        let text = || format!("acknowledged {raw} → enriched {enriched} → rows {rows}, archived {lines}");
        let part = (self.expected > 0).then_some((rows + lines, 2 * self.expected));
        self.progress.show(text, part);
    }

    async fn follow(&self, stores: &Stores) -> std::convert::Infallible {
        loop {
            tokio::time::sleep(FOLLOW).await;
            if let Ok(backlog) = stores.bus.backlog().await {
                self.show(&backlog);
            }
        }
    }

    fn end(&self) {
        self.progress.end();
    }
}

/// At QoS 0 nobody says when the endpoint has read the last message: waits until the topics have stood still.
async fn settle_unacknowledged(stores: &Stores) {
    const STILL: Duration = Duration::from_millis(500);
    let mut before = None;
    loop {
        let Ok(backlog) = stores.bus.backlog().await else { return };
        let published = backlog.topics.iter().map(|topic| topic.published.count).sum::<u64>();
        if before == Some(published) {
            return;
        }
        before = Some(published);
        tokio::time::sleep(STILL).await;
    }
}

/// The address under which this machine reaches what listens on `address`.
fn reachable(address: SocketAddr) -> BrokerAddress {
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    BrokerAddress { host: host.to_string(), port: address.port(), tls: false }
}

fn say_outcome(outcome: &Outcome, closed: Result<(), String>, complete: bool) -> Exit {
    for failure in &outcome.failures {
        say(&format!("millstream: {failure}"));
    }
    if let Some(reason) = &outcome.cut_short {
        say(&format!(
            "millstream: stopped before everything in flight was finished ({reason}); it comes again at the next start"
        ));
    }
    if let Err(error) = &closed {
        say(&format!("millstream: {error}"));
    }
    if closed.is_err() || !complete { Exit::Failed } else { outcome.exit() }
}

fn finish(arguments: &UpArgs, exit: Exit, report: &Report) -> Result<Exit, Failure> {
    let written = write_report(arguments, report);
    if arguments.until_drained {
        print(&report.to_text())?;
    }
    if report.unaccounted_count == 0 && report.pending_messages > 0 {
        say(&format!(
            "{} messages wait in the data folder; the next `up` goes on with them",
            report.pending_messages
        ));
    }
    if let Err(failure) = &written {
        say(&failure.message);
    }
    if report.unaccounted_count > 0 {
        say(&report.verdict());
        return Ok(Exit::Unbalanced);
    }
    let unfinished = arguments.until_drained && !report.balanced;
    Ok(if written.is_err() || (exit == Exit::Done && unfinished) { Exit::Failed } else { exit })
}

fn write_report(arguments: &UpArgs, report: &Report) -> Result<(), Failure> {
    let Some(path) = &arguments.report else { return Ok(()) };
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(path, text + "\n").map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

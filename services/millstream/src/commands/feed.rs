//! `millstream feed`, and how `up --feed` plays recordings.

use crate::cli::{Common, ConnectionArgs, FeedArgs, PlayArgs};
use crate::feed::{self, BrokerAddress, Credentials, Ended, FeedOptions, FeedReport, Playlist, Protocol};
use crate::output::{Failure, print, say};
use crate::pointer::Pointers;
use crate::progress::Progress;
use crate::recording::ReadProgress;
use crate::template::TopicTemplate;
use messagepipeline::Shutdown;
use mqttconverter::tls::{ClientTls, Identity};
use service_kit::config::Secret;
use service_kit::telemetry::{self, LogSettings};
use service_kit::{Exit, Signals, Tasks};
use std::path::PathBuf;
use std::time::Duration;

/// Time to wait for the PUBACKs of what was sent, after a signal.
pub(super) const STOP: Duration = Duration::from_secs(10);
/// How often progress is shown.
pub(super) const LOOK: Duration = Duration::from_millis(100);

pub(super) fn run(common: &Common, arguments: &FeedArgs) -> Result<Exit, Failure> {
    let options = options(arguments)?;
    let playlist = playlist(&arguments.files, &arguments.play)?;
    start_log(common)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(played(common, options, playlist))?;
    say_problems(&report);
    print(&format!("{}\n", summary(&report)))?;
    Ok(if report.is_success() { Exit::Done } else { Exit::Failed })
}

async fn played(common: &Common, options: FeedOptions, playlist: Playlist) -> Result<FeedReport, Failure> {
    let shutdown = Shutdown::new();
    let mut tasks = Tasks::new(shutdown.clone());
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let progress = Progress::new(common.quiet, "messages");
    tasks.spawn("feed", async move {
        // Nobody waits for the report any more when the program is being stopped hard.
        let _ = sender.send(play(options, playlist, &progress, &shutdown).await);
        Ok::<_, std::convert::Infallible>(())
    });
    let outcome = tasks.run(Signals::os()?, STOP).await;
    receiver.await.map_err(|_| {
        let why = outcome.cut_short.or_else(|| outcome.failures.first().map(ToString::to_string));
        Failure::failed(format!("feed: {}", why.unwrap_or_default()))
    })
}

pub(super) fn start_log(common: &Common) -> Result<(), Failure> {
    let format = common.log_format.map(|format| match format {
        crate::cli::LogFormat::Text => telemetry::LogFormat::Text,
        crate::cli::LogFormat::Json => telemetry::LogFormat::Json,
    });
    let settings = LogSettings { format, level: telemetry::LogLevel::Warn, ..LogSettings::default() };
    telemetry::init(&settings, verbosity(common)).map_err(Failure::failed)?;
    Ok(())
}

/// How often `-v` was given, and whether `-q` was: errors only.
pub(super) fn verbosity(common: &Common) -> telemetry::Verbosity {
    telemetry::Verbosity { verbose: common.verbose, quiet: if common.quiet { 2 } else { 0 } }
}

/// The recordings, opened.
///
/// # Errors
/// When a template, rate or pointer is wrong, or a file cannot be read.
pub(super) fn playlist(files: &[PathBuf], play: &PlayArgs) -> Result<Playlist, Failure> {
    let template: TopicTemplate =
        play.topic.parse().map_err(|error| Failure::usage(format!("--topic {:?}: {error}", play.topic)))?;
    let rate =
        play.rate.parse().map_err(|error| Failure::usage(format!("--rate {:?}: {error}", play.rate)))?;
    let pointers = Pointers::parse(&play.time_pointer)
        .map_err(|error| Failure::usage(format!("--time-pointer {:?}: {error}", play.time_pointer)))?;
    Playlist::new(files.to_vec(), template, rate, pointers).map_err(Failure::failed)
}

fn options(arguments: &FeedArgs) -> Result<FeedOptions, Failure> {
    Ok(FeedOptions {
        qos: arguments.play.qos,
        connections: arguments.play.connections,
        client_id: arguments.client_id.clone(),
        acked: arguments.acked.clone(),
        ..connection(&arguments.broker, &arguments.connection)?
    })
}

/// How to reach the broker `url`.
pub(super) fn connection(url: &str, arguments: &ConnectionArgs) -> Result<FeedOptions, Failure> {
    let broker: BrokerAddress = url.parse().map_err(Failure::usage)?;
    let password = match &arguments.password_file {
        Some(path) => Some(Secret::from_file(path).map_err(Failure::failed)?.expose().to_owned()),
        None => None,
    };
    let identity = match (&arguments.cert_file, &arguments.key_file) {
        (Some(certificate), Some(key)) => {
            Some(Identity { certificate: certificate.clone(), key: key.clone() })
        }
        _ => None,
    };
    Ok(FeedOptions {
        protocol: if arguments.protocol == "5" { Protocol::V5 } else { Protocol::V311 },
        credentials: arguments.user.clone().map(|user| Credentials { user, password }),
        tls: ClientTls { ca: arguments.ca_file.clone(), identity },
        window: arguments.window,
        ..FeedOptions::new(broker)
    })
}

/// Plays and shows how far it is.
pub(super) async fn play(
    options: FeedOptions,
    playlist: Playlist,
    progress: &Progress,
    shutdown: &Shutdown,
) -> FeedReport {
    let (counts, read) = (feed::Progress::default(), playlist.progress());
    let showing = show(&counts, &read, progress, options.qos);
    let report = tokio::select! {
        report = feed::run(options, playlist, counts.clone(), shutdown) => report,
        never = showing => match never {},
    };
    progress.end();
    report
}

async fn show(
    counts: &feed::Progress,
    read: &ReadProgress,
    progress: &Progress,
    qos: u8,
) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = counts.counts();
        let done = if qos == 0 { now.sent } else { now.acked };
        let text = || format!("{done} {}", if qos == 0 { "sent" } else { "acknowledged" });
        progress.show(text, read.total().map(|total| (read.consumed(), total)));
    }
}

/// Names the lines that were not taken.
pub(super) fn say_problems(report: &FeedReport) {
    for problem in &report.problems {
        say(&format!("{}: {}", problem.place, problem.reason));
    }
    let all = report.counts.refused + report.counts.skipped;
    let named = report.problems.len() as u64;
    if all > named {
        say(&format!("… and {} more", all - named));
    }
    if let Ended::Failed(error) = &report.ended {
        say(&format!("millstream: {error}"));
    }
}

/// What the feed did, in a line.
pub(super) fn summary(report: &FeedReport) -> String {
    let counts = report.counts;
    let seconds = report.elapsed.as_secs_f64().max(0.001);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "for people"
    )]
    let rate = (counts.sent as f64 / seconds) as u64;
    let mut text =
        format!("{} sent, {} acknowledged in {seconds:.1} s ({rate}/s)", counts.sent, counts.acked);
    for (count, what) in
        [(counts.resent, "sent again"), (counts.refused, "refused"), (counts.skipped, "skipped")]
    {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    if counts.connections < u64::from(report.connections) {
        text.push_str(&format!("; {} of {} connections", counts.connections, report.connections));
    }
    if matches!(report.ended, Ended::Stopped) {
        text.push_str("; stopped before the end");
    }
    text
}

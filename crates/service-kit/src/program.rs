//! The frame of a deployable service: command line, configuration, telemetry, admin server, signals, drain.
//!
//! ```text
//! arguments ─► configuration, checked ─► telemetry ─► admin server ─► Service::start ─► until a signal ─► drain ─► close
//! ```

use crate::config::{
    ConfigErrors, Loaded, Override, Partial, Problem, Source, load_or_partial, print_config,
};
use crate::sections::{HttpConfig, ShutdownConfig};
use crate::telemetry::{self, LogSettings, Verbosity};
use crate::{Exit, Outcome, Signals, Tasks, admin};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use futures_util::future::BoxFuture;
use messagepipeline::{Health, Shutdown};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fmt::Display;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

/// How long `health` waits for an answer.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);
/// How long closing may take after the drain; every verdict has been given by then.
const CLOSING: Duration = Duration::from_secs(8);
/// How long what runs beside the tasks is waited for at the very end: a host name that is being looked up takes as long
/// as the system's resolver likes, and nobody needs its address any more.
const LEFT_BEHIND: Duration = Duration::from_millis(500);
/// How often readiness is looked at until it is said.
const LOOK: Duration = Duration::from_millis(50);

/// A configuration that has the sections of every program.
pub trait Sections: DeserializeOwned + Serialize + JsonSchema {
    /// Log lines.
    fn log(&self) -> &LogSettings;
    /// The admin server.
    fn http(&self) -> &HttpConfig;
    /// How the program stops.
    fn shutdown(&self) -> &ShutdownConfig;
}

/// Closes what outlives the tasks. What it says is shown.
pub type Closing = BoxFuture<'static, Result<(), String>>;

/// A deployable service.
pub trait Service {
    /// The sections of the file that it reads.
    type Config: Sections;
    /// The checked configuration.
    type Plan;

    /// Its name: of the binary, in logs and metrics.
    const NAME: &'static str;
    /// One sentence for `--help`.
    const ABOUT: &'static str;

    /// Checks what types alone cannot tell, and of `environment` what the service goes by. Opens nothing but the files
    /// that are named: certificates and credentials.
    ///
    /// # Errors
    /// Every mistake with its place.
    fn check(
        loaded: &Loaded<Self::Config>,
        environment: &HashMap<String, String>,
    ) -> Result<(Self::Plan, Vec<Problem>), ConfigErrors>;

    /// Builds the parts and spawns their tasks. Nothing outside needs to be there yet: what is missing is waited for in
    /// the tasks, and `/readyz` says so. A signal that comes meanwhile drops this future at whichever await it stands.
    ///
    /// # Errors
    /// When a part cannot be built as configured.
    fn start(
        config: Self::Config,
        plan: Self::Plan,
        program: &mut Program,
    ) -> impl Future<Output = Result<Closing, String>>;
}

/// What a service is started in.
#[derive(Debug)]
pub struct Program {
    /// Where its tasks go.
    pub tasks: Tasks,
    /// A line for each of its stages.
    pub health: Health,
    /// Begins with SIGTERM.
    pub shutdown: Shutdown,
    /// The environment variables.
    pub environment: HashMap<String, String>,
}

#[derive(Debug, Parser)]
#[command(
    disable_help_subcommand = true,
    after_help = "\
Exit codes: 0 stopped in good order, 1 failed, 2 wrong usage or configuration.

SIGTERM and Ctrl-C take nothing more and finish what is in flight within shutdown.drain; a second one stops at once.
What is not finished is delivered again: nothing acknowledged is lost either way."
)]
struct Cli {
    /// Configuration file; sections of other services in it are left to them
    #[arg(long, global = true, value_name = "FILE", env = "MILLSTREAM_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// Address of /healthz, /readyz and /metrics; PORT in the environment means 0.0.0.0:PORT
    #[arg(long, global = true, value_name = "ADDR", env = "MILLSTREAM_HTTP_LISTEN", hide_env_values = true)]
    http_listen: Option<String>,
    /// Log lines as `text` or `json` [default: text on a terminal, json elsewhere]
    #[arg(long, global = true, value_name = "FORMAT", env = "MILLSTREAM_LOG_FORMAT", hide_env_values = true)]
    log_format: Option<String>,
    /// More log lines; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Print the configuration as it takes effect (file, environment and flags together; secrets masked) and stop
    #[arg(long, global = true)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until stopped; so does no command at all
    Run,
    /// Read the configuration and say all that is wrong with it; opens nothing
    Check,
    /// Ask the running service whether it is ready; exits 0 or 1, for container health checks
    Health,
}

/// Why the program ends before it has run.
struct Stop {
    message: String,
    exit: Exit,
}

impl Stop {
    fn failed(error: impl Display) -> Self {
        Self { message: error.to_string(), exit: Exit::Failed }
    }
}

impl From<ConfigErrors> for Stop {
    fn from(errors: ConfigErrors) -> Self {
        let count = errors.errors.len();
        let problems = errors.errors.iter().map(|problem| format!("{problem}\n"));
        let warnings = errors.warnings.iter().map(|problem| format!("{problem} (warning)\n"));
        let mut message: String = problems.chain(warnings).collect();
        let plural = if count == 1 { "" } else { "s" };
        message.push_str(&format!("{count} mistake{plural} in the configuration"));
        Self { message, exit: Exit::Usage }
    }
}

/// Runs `S` as the process's program.
#[must_use]
pub fn run<S: Service>() -> Exit {
    let matches =
        Cli::command().name(S::NAME).about(S::ABOUT).version(env!("CARGO_PKG_VERSION")).get_matches();
    let done = Cli::from_arg_matches(&matches).map_err(|error| error.exit()).map(|cli| carry_out::<S>(&cli));
    match done {
        Ok(Ok(exit)) => exit,
        Ok(Err(stop)) => {
            say(&format!("{}: {}", S::NAME, stop.message));
            stop.exit
        }
        Err(never) => match never {},
    }
}

fn carry_out<S: Service>(cli: &Cli) -> Result<Exit, Stop> {
    let environment: HashMap<String, String> = std::env::vars().collect();
    let source = cli.config.as_ref().map_or_else(|| Ok(Source::none()), Source::file)?;
    let loaded = read::<S>(&source, &environment, &overrides(cli, &environment))?;
    if matches!(cli.command, Some(Command::Health)) {
        return ask_health(&loaded);
    }
    if cli.print_config {
        print(&print_config(&loaded.value).map_err(Stop::failed)?).map_err(Stop::failed)?;
        return Ok(Exit::Done);
    }
    let (plan, warnings) = S::check(&loaded, &environment)?;
    if matches!(cli.command, Some(Command::Check)) {
        for warning in &warnings {
            say(&format!("{warning} (warning)"));
        }
        print("the configuration is fine\n").map_err(Stop::failed)?;
        return Ok(Exit::Done);
    }
    let verbosity = Verbosity { verbose: cli.verbose, quiet: if cli.quiet { 2 } else { 0 } };
    let metrics = telemetry::init(loaded.value.log(), verbosity).map_err(Stop::failed)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    telemetry::record_build(S::NAME, env!("CARGO_PKG_VERSION"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Stop::failed)?;
    let ended = runtime.block_on(operate::<S>(loaded.value, plan, metrics, environment));
    runtime.shutdown_timeout(LEFT_BEHIND);
    ended
}

/// A section whose values have the wrong types does not keep the others from being checked to the end.
fn read<S: Service>(
    source: &Source,
    environment: &HashMap<String, String>,
    overrides: &[Override],
) -> Result<Loaded<S::Config>, ConfigErrors> {
    load_or_partial(source, environment, overrides).map_err(|partial| {
        let Partial { errors, rest } = *partial;
        match rest.map(|rest| S::check(&rest, environment)) {
            Some(Err(more)) => errors.and_of_other_sections(more),
            _ => errors,
        }
    })
}

fn overrides(cli: &Cli, environment: &HashMap<String, String>) -> Vec<Override> {
    let mut overrides = Vec::new();
    if let Some(port) = environment.get("PORT") {
        overrides.push(Override::new("/http/listen", format!("0.0.0.0:{}", port.trim()), "PORT"));
    }
    if let Some(address) = &cli.http_listen {
        overrides.push(Override::new("/http/listen", address, "--http-listen"));
    }
    if let Some(format) = &cli.log_format {
        overrides.push(Override::new("/log/format", format, "--log-format"));
    }
    overrides
}

async fn operate<S: Service>(
    config: S::Config,
    plan: S::Plan,
    metrics: telemetry::Metrics,
    environment: HashMap<String, String>,
) -> Result<Exit, Stop> {
    let (health, shutdown) = (Health::new(), Shutdown::new());
    let mut signals = Signals::os().map_err(Stop::failed)?;
    let routes = admin::router(health.clone(), shutdown.clone(), metrics.clone());
    let admin = admin::serve(config.http().listen, routes).await.map_err(Stop::failed)?;
    let _upkeep = metrics.start_upkeep();
    let drain = config.shutdown().drain.get();
    let mut program = Program { tasks: Tasks::new(shutdown.clone()), health, shutdown, environment };
    print(&format!("http  http://{}\n", admin.local_addr())).map_err(Stop::failed)?;
    let begun = program.shutdown.clone();
    let closing = match signals.unless_stopped(&begun, S::start(config, plan, &mut program)).await {
        Some(Ok(closing)) => closing,
        // What runs already is drained; the rest holds nothing that was acknowledged and not stored.
        None => Box::pin(std::future::ready(Ok(()))),
        Some(Err(reason)) => {
            admin.stop().await;
            return Err(Stop { message: reason, exit: Exit::Failed });
        }
    };
    let Program { mut tasks, health, shutdown, .. } = program;
    tasks.spawn("readiness", say_when_ready(health, shutdown));
    let outcome = tasks.run(signals, drain).await;
    let closed = tokio::time::timeout(CLOSING, closing).await;
    let closed = closed.unwrap_or_else(|_| Err(format!("closing did not end within {CLOSING:?}")));
    admin.stop().await;
    Ok(conclude(S::NAME, &outcome, closed))
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

fn conclude(name: &str, outcome: &Outcome, closed: Result<(), String>) -> Exit {
    for failure in &outcome.failures {
        say(&format!("{name}: {failure}"));
    }
    if let Some(reason) = &outcome.cut_short {
        say(&format!(
            "{name}: stopped before everything in flight was finished ({reason}); it is delivered again"
        ));
    }
    match closed {
        Ok(()) => outcome.exit(),
        Err(reason) => {
            say(&format!("{name}: {reason}"));
            Exit::Failed
        }
    }
}

/// Asks `/readyz` of the service that runs with this configuration.
fn ask_health<C: Sections>(loaded: &Loaded<C>) -> Result<Exit, Stop> {
    let address = loaded.value.http().listen;
    if address.port() == 0 {
        let message = "is port 0, which picks a free one at each start, so nobody can know where to ask: set a port of its \
                       own, here, with --http-listen or with PORT";
        let mut check = loaded.check();
        check.error("/http/listen", message);
        check.finish()?;
    }
    Ok(match readiness(address) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => Exit::Done,
        Ok(answer) => {
            say(answer.split("\r\n\r\n").nth(1).unwrap_or(&answer).trim());
            Exit::Failed
        }
        Err(error) => {
            say(&format!("no answer from http://{address}/readyz: {error}"));
            Exit::Failed
        }
    })
}

fn readiness(address: SocketAddr) -> std::io::Result<String> {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, address.port()), HEALTH_TIMEOUT)?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTH_TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    // An answer is a few hundred bytes; whoever sends more is not this program.
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    Ok(answer)
}

/// A line on standard error; where that is gone, nobody is left to tell.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

//! What every Millstream program shares: configuration, telemetry, signals, drain and the admin HTTP server.
//!
//! A program is a list of steps:
//!
//! ```no_run
//! use messagepipeline::{Health, Shutdown};
//! use service_kit::{Exit, Signals, Tasks, admin, config, telemetry};
//! # use schemars::JsonSchema;
//! # use serde::Deserialize;
//! # #[derive(Deserialize, JsonSchema)]
//! # struct Config { #[serde(default)] log: telemetry::LogSettings }
//! # async fn ingest(_: Shutdown) -> Result<(), std::io::Error> { Ok(()) }
//! # async fn program() -> Result<Exit, Box<dyn std::error::Error>> {
//! // load the configuration: every mistake at once, before anything is opened
//! let source = config::Source::file("millstream.yaml")?;
//! let loaded = config::load::<Config>(&source, &std::env::vars().collect(), &[])?;
//! // telemetry
//! let metrics = telemetry::init(&loaded.value.log, telemetry::Verbosity::default())?;
//! let _upkeep = metrics.start_upkeep();
//! telemetry::record_build("ingestion", env!("CARGO_PKG_VERSION"));
//! // build
//! let (health, shutdown) = (Health::new(), Shutdown::new());
//! let routes = admin::router(health.clone(), shutdown.clone(), metrics.clone());
//! let admin = admin::serve(([127, 0, 0, 1], 8080).into(), routes).await?;
//! let mut tasks = Tasks::new(shutdown.clone());
//! tasks.spawn("ingestion", ingest(shutdown.clone()));
//! // run until a signal or the first failure, then drain
//! let outcome = tasks.run(Signals::os()?, config::Duration::from_secs(25).get()).await;
//! admin.stop().await;
//! # Ok(outcome.exit())
//! # }
//! ```

pub mod admin;
pub mod config;
mod opening;
pub mod program;
mod run;
mod sections;
mod seed;
mod signals;
pub mod telemetry;

pub use opening::{open_when_possible, run_when_open};
pub use run::{Exit, Failure, Outcome, Tasks};
pub use sections::{HttpConfig, OtherSection, ShutdownConfig};
pub use seed::random_seed;
pub use signals::{Signal, Signals};

/// The static programs' allocator. That of musl takes one lock for all threads: chunks that one thread fills and another
/// lets go cost five times the CPU.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

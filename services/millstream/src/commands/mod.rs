//! One file per command.

mod books;
mod check;
mod dead_letters;
mod demo;
mod devices;
mod feed;
mod hash_password;
mod query;
mod replay;
mod up;

use crate::cli::{Cli, Command, Common};
use crate::config::{self, Config};
use crate::output::Failure;
use embedded::folder::DataFolder;
use service_kit::Exit;
use service_kit::config::{Loaded, Override, print_config, schema};

/// Carries out what was typed.
///
/// # Errors
/// Why it could not be done, for people; with the exit code.
pub fn run(cli: Cli) -> Result<Exit, Failure> {
    let Cli { common, command } = cli;
    if common.print_config {
        let loaded = config::read(&common, overrides(&command))?;
        crate::output::print(&print_config(&loaded.value)?)?;
        return Ok(Exit::Done);
    }
    match command {
        Command::Demo(arguments) => demo::run(&common, &arguments),
        Command::Up(arguments) => up::run(&common, &arguments),
        Command::Feed(arguments) => feed::run(&common, &arguments),
        Command::Replay(arguments) => replay::run(&common, &arguments),
        Command::Check(arguments) => check::run(&common, &arguments),
        Command::Books(arguments) => books::run(&common, &arguments),
        Command::DeadLetters { command } => dead_letters::run(&common, command),
        Command::Devices { command } => devices::run(&common, command),
        Command::Query(arguments) => query::run(&common, &arguments),
        Command::Schema => {
            let text = serde_json::to_string_pretty(&schema::<Config>()).map_err(Failure::failed)?;
            crate::output::print(&format!("{text}\n"))?;
            Ok(Exit::Done)
        }
        Command::HashPassword => hash_password::run(),
    }
}

/// What flags of a command say in place of the file.
fn overrides(command: &Command) -> Vec<Override> {
    match command {
        Command::Up(arguments) => up::overrides(arguments),
        _ => Vec::new(),
    }
}

/// The configuration, for commands that read the stores.
fn configuration(common: &Common) -> Result<Loaded<Config>, Failure> {
    Ok(config::read(common, Vec::new())?)
}

/// The data folder, for commands that only read it.
fn stored(common: &Common) -> Result<(Config, DataFolder), Failure> {
    let config = configuration(common)?.value;
    let folder = DataFolder::inspect(&config.data)?;
    Ok((config, folder))
}

/// This program was built without what `key` asks for.
#[cfg(not(feature = "google"))]
fn without_google(key: &str) -> Failure {
    Failure::usage(format!(
        "{key} needs Google Cloud, and this program was built without it: build it with `cargo build --release \
         --features google`"
    ))
}

//! Starts everything that the four services talk to and keeps it until Ctrl-C, or until a command that runs inside it
//! has ended. `tests/rig` installs what is missing and calls this.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]
#![allow(clippy::expect_used, reason = "a rig that cannot stand up says why and ends")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use testkit::rig::{Rig, RigOptions};

const USAGE: &str = "\
usage: rig [--devices FILE] [--exactly-once] [--config FILE] [-- COMMAND…]

  --devices FILE   CSV file of devices for Firestore: device_id,client_id,location_id,category,…
  --exactly-once   subscriptions with exactly-once delivery
  --config FILE    write the services' configuration here too
  COMMAND          runs with the rig's environment; the rig ends with it and passes its exit code on

Without a command the environment is printed as lines for a shell, and the rig runs until Ctrl-C:
  tests/rig > rig.env &  …  . ./rig.env";

#[derive(Debug, Default)]
struct Arguments {
    devices: Option<PathBuf>,
    config: Option<PathBuf>,
    exactly_once: bool,
    command: Vec<String>,
}

fn main() -> ExitCode {
    let arguments = match read(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(mistake) => {
            eprintln!("{mistake}{USAGE}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(run(arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rig: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(mut words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut arguments = Arguments::default();
    while let Some(word) = words.next() {
        let mut file = || words.next().map(PathBuf::from).ok_or(format!("{word} needs a file\n"));
        match word.as_str() {
            "--devices" => arguments.devices = Some(file()?),
            "--config" => arguments.config = Some(file()?),
            "--exactly-once" => arguments.exactly_once = true,
            "--" => arguments.command = words.by_ref().collect(),
            "--help" | "-h" => return Err(String::new()),
            _ => return Err(format!("unknown argument {word:?}\n")),
        }
    }
    Ok(arguments)
}

async fn run(arguments: Arguments) -> Result<ExitCode, Box<dyn std::error::Error>> {
    use tokio::signal::unix::{SignalKind, signal};
    // Listened for before anything is started, so that an early Ctrl-C stops what is there.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let rig = tokio::select! {
        rig = stand_up(&arguments) => rig?,
        _ = interrupt.recv() => return Ok(ExitCode::FAILURE),
        _ = terminate.recv() => return Ok(ExitCode::FAILURE),
    };
    let environment = environment(&rig, &rig.write_configuration()?);
    let Some((program, words)) = arguments.command.split_first() else {
        for (name, value) in &environment {
            println!("export {name}={value}");
        }
        eprintln!("the rig stands; Ctrl-C stops it");
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        return Ok(ExitCode::SUCCESS);
    };
    let mut command = tokio::process::Command::new(program);
    command.args(words).envs(environment).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    // Ctrl-C at the terminal reaches the command too, and its end is waited for. A SIGTERM is for this process alone.
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => return Ok(ExitCode::FAILURE),
        }
    };
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

async fn stand_up(arguments: &Arguments) -> Result<Rig, Box<dyn std::error::Error>> {
    let options = RigOptions { exactly_once: arguments.exactly_once, ..RigOptions::default() };
    let rig = Rig::start("rig", options).await.ok_or("a server is missing; tests/rig installs them")?;
    if let Some(file) = &arguments.devices {
        let count = rig.import_devices(file)?;
        eprintln!("{count} devices in Firestore");
    }
    if let Some(file) = &arguments.config {
        std::fs::write(file, rig.configuration().to_string())?;
    }
    Ok(rig)
}

fn environment(rig: &Rig, configuration: &Path) -> Vec<(&'static str, String)> {
    let mut environment = rig.environment();
    environment.push(("MQTT_URL", rig.mosquitto.url()));
    environment.push(("REDIS_URL", rig.redis.url()));
    environment.push(("MILLSTREAM_CONFIG", configuration.display().to_string()));
    environment
}

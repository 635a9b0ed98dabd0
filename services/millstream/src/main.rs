//! The `millstream` program: arguments in, exit code out.

use clap::Parser;
use millstream::cli::Cli;
use service_kit::Exit;

fn main() -> Exit {
    match millstream::commands::run(Cli::parse()) {
        Ok(exit) => exit,
        Err(failure) => {
            millstream::output::say(&failure.message);
            failure.exit
        }
    }
}

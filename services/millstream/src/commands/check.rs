//! `millstream check`.

use super::configuration;
use crate::check;
use crate::cli::{CheckArgs, Common};
use crate::output::{Failure, print, say};
use service_kit::Exit;

pub(super) fn run(common: &Common, arguments: &CheckArgs) -> Result<Exit, Failure> {
    let loaded = configuration(common)?;
    let (_, warnings) = check::check(&loaded)?;
    for warning in &warnings {
        say(&format!("{warning} (warning)"));
    }
    if arguments.strict && !warnings.is_empty() {
        return Err(Failure::usage(format!("{} warnings, and --strict was given", warnings.len())));
    }
    print("The configuration is right.\n")?;
    Ok(Exit::Done)
}

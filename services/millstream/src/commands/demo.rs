//! `millstream demo`.

use crate::cli::{Common, DemoArgs};
use crate::output::Failure;
use service_kit::Exit;

pub(super) fn run(common: &Common, arguments: &DemoArgs) -> Result<Exit, Failure> {
    let _ = (common, arguments);
    Ok(Exit::Done)
}

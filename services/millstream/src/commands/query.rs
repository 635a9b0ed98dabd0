//! `millstream query`.

use super::stored;
use crate::cli::{Common, QueryArgs};
use crate::output::Failure;
use service_kit::Exit;

pub(super) fn run(common: &Common, arguments: &QueryArgs) -> Result<Exit, Failure> {
    let (config, folder) = stored(common)?;
    let _ = (config, folder, arguments);
    Ok(Exit::Done)
}

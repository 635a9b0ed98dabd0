//! Device registry, warehouse and archive.

use crate::ConnectError;
use bqstore::Columns;
use embedded::archive::Archive;
use embedded::folder::DataFolder;
use embedded::registry::{Registry, RegistrySettings};
use embedded::warehouse::Warehouse;
use messagepipeline::StageHealth;
use std::sync::Arc;
use std::time::Duration;

/// Opens the device registry of the data folder.
///
/// # Errors
/// When the file cannot be used.
pub fn registry(folder: &DataFolder, lookup_timeout: Duration) -> Result<Registry, ConnectError> {
    let settings = RegistrySettings { deadline: lookup_timeout, ..RegistrySettings::default() };
    Ok(Registry::open(folder.registry(), settings)?)
}

/// Opens the warehouse of the data folder and makes its table ready.
///
/// # Errors
/// When the file cannot be used, or a column is there for values of another type.
pub fn warehouse(
    folder: &DataFolder,
    table: &str,
    columns: &Columns,
) -> Result<Arc<Warehouse>, ConnectError> {
    Ok(Arc::new(Warehouse::open(&folder.warehouse(), table, columns)?))
}

/// Opens the archive of the data folder and finishes what a crash left. `health` says when an object cannot be
/// finished.
///
/// # Errors
/// When index or folders cannot be used, or an unfinished object that the index lists is gone.
pub fn archive(folder: &DataFolder, health: StageHealth) -> Result<Arc<Archive>, ConnectError> {
    let archive =
        Archive::open(&folder.archive_index(), &folder.archive(), &folder.archive_tmp(), Some(health))?;
    Ok(Arc::new(archive))
}

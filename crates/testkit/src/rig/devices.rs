//! Devices from a CSV file.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// The column that names the device.
const KEY: &str = "device_id";

/// Why a file of devices could not be read.
#[derive(Debug)]
pub struct DeviceFileError {
    file: PathBuf,
    reason: String,
}

impl std::fmt::Display for DeviceFileError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.file.display(), self.reason)
    }
}

impl std::error::Error for DeviceFileError {}

/// The documents of a file: name and fields. Empty cells are left out.
pub(super) fn read(file: &Path) -> Result<Vec<(String, Value)>, DeviceFileError> {
    let failed = |reason: String| DeviceFileError { file: file.to_owned(), reason };
    let mut reader = csv::Reader::from_path(file).map_err(|error| failed(error.to_string()))?;
    let columns = reader.headers().map_err(|error| failed(error.to_string()))?.clone();
    let key = columns.iter().position(|column| column == KEY);
    let key = key.ok_or_else(|| failed(format!("the first line names no column {KEY:?}")))?;
    let mut documents = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| failed(error.to_string()))?;
        let mut fields = Map::new();
        for (column, value) in columns.iter().zip(&record) {
            if column != KEY && !value.is_empty() {
                fields.insert(column.to_owned(), value.into());
            }
        }
        documents.push((record[key].to_owned(), Value::Object(fields)));
    }
    Ok(documents)
}

//! The table of devices.

use super::Device;
use crate::sqlite::Schema;
use rusqlite::{Connection, OptionalExtension, Row};
use std::collections::BTreeMap;

pub(super) const SCHEMA: Schema = Schema {
    kind: "device registry",
    application_id: 0x4D53_5247,
    shrinks: false,
    // Short rows under a text key: without a rowid there is one B-tree and not two.
    migrations: &["CREATE TABLE devices(
        device_id TEXT NOT NULL PRIMARY KEY,
        client_id TEXT,
        location_id TEXT,
        category TEXT,
        extra TEXT NOT NULL, -- JSON object: further columns
        updated_at TEXT NOT NULL -- RFC 3339, UTC
    ) STRICT, WITHOUT ROWID"],
};

pub(super) const GET: &str =
    "SELECT device_id, client_id, location_id, category, extra FROM devices WHERE device_id = ?1";
pub(super) const LIST: &str = "SELECT device_id, client_id, location_id, category, extra FROM devices
     WHERE device_id > ?1 ORDER BY device_id LIMIT ?2";

pub(super) fn get(connection: &Connection, device_id: &str) -> rusqlite::Result<Option<Device>> {
    connection.prepare_cached(GET)?.query_row([device_id], device).optional()
}

pub(super) fn device(row: &Row<'_>) -> rusqlite::Result<Device> {
    let extra = row.get_ref(4)?.as_str()?;
    // Only an import writes this column, and it writes an object. A person with another tool may have written
    // something else; the error names the column.
    let extra: BTreeMap<String, serde_json::Value> = serde_json::from_str(extra).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, Box::new(error))
    })?;
    Ok(Device {
        device_id: row.get(0)?,
        client_id: row.get(1)?,
        location_id: row.get(2)?,
        category: row.get(3)?,
        extra,
    })
}

//! What is stored in the end, read from the files themselves.

use super::devices::{Payloads, Record, device_id};
use crate::common::lines_of;
use rusqlite::{Connection, OpenFlags};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Numbers of messages by the id under which they are stored.
type Stored = BTreeMap<String, usize>;

/// What was counted.
#[derive(Debug)]
pub(crate) struct Counts {
    pub(crate) sent: usize,
    pub(crate) acked: usize,
    pub(crate) resent: usize,
    pub(crate) rows: usize,
    /// One for each copy beyond the first: the kill at which it was sent again.
    pub(crate) doubles: Vec<usize>,
}

/// Compares what the devices know with what warehouse and archive hold. An error says what is wrong first.
pub(crate) fn compare(data: &Path, payloads: &Payloads, record: &Record) -> Result<Counts, String> {
    refuse_dead_letters(&data.join("bus.db"))?;
    let rows = warehouse(&data.join("warehouse.db"), payloads)?;
    let lines = archive(data, payloads)?;
    if rows != lines {
        return Err(format!(
            "{} rows and {} lines; only in the warehouse {:?}, only in the archive {:?}",
            rows.len(),
            lines.len(),
            rows.iter().find(|(id, _)| !lines.contains_key(*id)),
            lines.iter().find(|(id, _)| !rows.contains_key(*id)),
        ));
    }
    let mut copies: BTreeMap<usize, usize> = BTreeMap::new();
    for number in rows.values() {
        *copies.entry(*number).or_default() += 1;
    }
    let lost: Vec<_> = record.acked.iter().filter(|number| !copies.contains_key(number)).collect();
    if let Some(first) = lost.first() {
        return Err(format!("{} acknowledged messages are lost, the first is {first}", lost.len()));
    }
    let mut doubles = Vec::new();
    for (number, count) in &copies {
        let resent = record.resent.get(number).map_or(&[][..], Vec::as_slice);
        let Some(causes) = resent.get(..count - 1) else {
            let sent = resent.len();
            return Err(format!("message {number} is there {count} times and was sent again {sent} times"));
        };
        doubles.extend_from_slice(causes);
    }
    Ok(Counts {
        sent: record.sent,
        acked: record.acked.len(),
        resent: record.resent.values().map(Vec::len).sum(),
        rows: rows.len(),
        doubles,
    })
}

/// No message here is at fault, so none may be given up.
fn refuse_dead_letters(bus: &Path) -> Result<(), String> {
    let bus = open(bus);
    let mut select = bus.prepare("SELECT stage, id, reason, detail, attempts FROM dead_letters").unwrap();
    let letters = select.query_map([], |row| {
        Ok(format!(
            "{} gave up {} after {} attempts: {}: {}",
            row.get::<_, String>(0)?,
            row.get::<_, String>(1)?,
            row.get::<_, i64>(4)?,
            row.get::<_, String>(2)?,
            row.get::<_, String>(3)?,
        ))
    });
    let letters: Vec<_> = letters.unwrap().map(Result::unwrap).collect();
    if letters.is_empty() { Ok(()) } else { Err(format!("{} dead letters: {}", letters.len(), letters[0])) }
}

fn warehouse(path: &Path, payloads: &Payloads) -> Result<Stored, String> {
    let warehouse = open(path);
    let mut select = warehouse
        .prepare("SELECT message_id, device_id, client_id, CAST(payload AS BLOB) FROM messages")
        .unwrap();
    let rows = select.query_map([], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, Option<String>>(1)?,
            row.get::<_, Option<String>>(2)?,
            row.get::<_, Vec<u8>>(3)?,
        ))
    });
    let mut stored = Stored::new();
    for row in rows.unwrap() {
        let (id, device, client, payload) = row.unwrap();
        let number = payloads.number(&payload);
        if device != Some(device_id(number)) || client != Some(format!("client-of-{}", device_id(number))) {
            return Err(format!("message {number} has the device {device:?} of {client:?}"));
        }
        stored.insert(id, number);
    }
    Ok(stored)
}

fn archive(data: &Path, payloads: &Payloads) -> Result<Stored, String> {
    #[derive(serde::Deserialize)]
    struct Line<'a> {
        id: String,
        #[serde(borrow)]
        payload: &'a RawValue,
    }
    let mut stored = Stored::new();
    for object in objects(&data.join("archive")) {
        for line in lines_of(std::slice::from_ref(&object)) {
            let line: Line<'_> =
                serde_json::from_slice(&line).map_err(|error| format!("{}: {error}", object.display()))?;
            let number = payloads.number(line.payload.get().as_bytes());
            if stored.insert(line.id.clone(), number).is_some() {
                return Err(format!(
                    "{} is in the archive twice, the second time in {}",
                    line.id,
                    object.display()
                ));
            }
        }
    }
    Ok(stored)
}

fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(objects(&path)) } else { found.push(path) }
    }
    found
}

/// Temporary files that the archive's index lists: their objects count as written.
pub(crate) fn pending_objects(index: &Path) -> Vec<String> {
    let index = open(index);
    let Ok(mut select) = index.prepare("SELECT temporary FROM objects WHERE temporary IS NOT NULL") else {
        // Killed before it had tables.
        return Vec::new();
    };
    select.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn open(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

//! Looking into the bucket for messages that come again.

use super::client::Client;
use crate::{
    ArchiveObject, Error, LineRef, NameRange, StoredObject, decode_line, decompress, payload_fingerprint,
};
use bytes::Bytes;
use messagepipeline::Timestamp;
use std::io::{BufRead, BufReader};
use std::ops::RangeInclusive;

/// Objects of the folder of `object` that may hold one of its messages: put there in the time `stored`, and with times of
/// first receipt that meet those of `object`. Objects of others are none. `sort_out` is given them page by page and
/// leaves those that must be read.
pub(super) async fn candidates(
    client: &Client,
    object: &ArchiveObject,
    stored: &RangeInclusive<Timestamp>,
    mut sort_out: impl FnMut(&mut Vec<StoredObject>),
) -> Result<Vec<StoredObject>, Error> {
    let range = NameRange { prefix: object.name.folder().to_owned(), ..NameRange::default() };
    let (mut found, mut page) = (Vec::new(), None);
    loop {
        let mut listed = client.list(&range, true, page).await?;
        listed.objects.retain(|candidate| {
            let meets = candidate.contents.is_some_and(|contents| {
                contents.first_received <= object.last_received
                    && contents.last_received >= object.first_received
            });
            meets && candidate.created.is_none_or(|created| stored.contains(&created))
        });
        sort_out(&mut listed.objects);
        found.append(&mut listed.objects);
        page = listed.next;
        if page.is_none() {
            return Ok(found);
        }
    }
}

/// The lines of the object `name`.
pub(super) async fn lines(client: &Client, name: &str) -> Result<Vec<LineRef>, Error> {
    let bytes = client.read(name).await?;
    let owned = name.to_owned();
    // Decompressing a large object takes longer than a thread that serves connections may.
    match tokio::task::spawn_blocking(move || decode(&owned, &bytes)).await {
        Ok(lines) => lines,
        Err(error) => {
            Err(Error::Compression { action: "decompressing", source: std::io::Error::other(error) })
        }
    }
}

fn decode(name: &str, bytes: &Bytes) -> Result<Vec<LineRef>, Error> {
    let mut text = BufReader::new(decompress(name, &bytes[..])?);
    let (mut line, mut lines) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        let read = text.read_until(b'\n', &mut line);
        match read.map_err(|source| Error::Compression { action: "decompressing", source })? {
            0 => return Ok(lines),
            _ => {
                let message = decode_line(&line)?;
                let fingerprint = payload_fingerprint(&message.payload);
                lines.push(LineRef { id: message.id, fingerprint });
            }
        }
    }
}

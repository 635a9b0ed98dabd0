//! What stands beside an object in the bucket.

use crate::{ArchiveObject, Contents, payload_fingerprint};
use messagepipeline::Digest;
use std::collections::HashMap;

const LINES: &str = "millstream-lines";
const FIRST_RECEIVED: &str = "millstream-first-received";
const LAST_RECEIVED: &str = "millstream-last-received";
const DIGEST: &str = "millstream-digest";
/// Fingerprint of the object's bytes, by which a writer knows its own object again.
const FINGERPRINT: &str = "millstream-fingerprint";
const WRITER: &str = "millstream-writer";

/// The custom metadata of `object`.
pub(super) fn of(object: &ArchiveObject, writer: &str) -> Vec<(&'static str, String)> {
    vec![
        (LINES, object.lines.len().to_string()),
        (FIRST_RECEIVED, object.first_received.to_string()),
        (LAST_RECEIVED, object.last_received.to_string()),
        (DIGEST, format!("{:016x}", object.digest.sum)),
        (FINGERPRINT, fingerprint(object)),
        (WRITER, writer.to_owned()),
    ]
}

fn fingerprint(object: &ArchiveObject) -> String {
    format!("{:016x}", payload_fingerprint(&object.bytes))
}

/// What the metadata say is in the object; `None` when it was not written by this product.
pub(super) fn contents(metadata: &HashMap<String, String>) -> Option<Contents> {
    let digest = Digest {
        count: metadata.get(LINES)?.parse().ok()?,
        sum: u64::from_str_radix(metadata.get(DIGEST)?, 16).ok()?,
    };
    let first_received = metadata.get(FIRST_RECEIVED)?.parse().ok()?;
    let last_received = metadata.get(LAST_RECEIVED)?.parse().ok()?;
    Some(Contents { digest, first_received, last_received })
}

/// Whether what is stored with these metadata is `object`: the same ids in the same bytes.
pub(super) fn is(metadata: &HashMap<String, String>, object: &ArchiveObject) -> bool {
    let same_ids = contents(metadata).is_some_and(|stored| stored.digest == object.digest);
    same_ids && metadata.get(FINGERPRINT) == Some(&fingerprint(object))
}

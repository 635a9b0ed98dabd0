//! What the fake holds: buckets, objects, unfinished uploads, faults and counters.

use bytes::Bytes;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The kinds of requests that are counted and that faults strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GcsRequest {
    /// A bucket is asked for or made.
    Bucket,
    /// An object is uploaded, whole or in part.
    Upload,
    /// An object's bytes are read.
    Read,
    /// An object's metadata are read.
    Metadata,
    /// Objects are listed.
    List,
    /// An object is deleted.
    Delete,
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcsFault {
    /// It is answered with this status and has no effect.
    Status(u16),
    /// It has its effect, and the connection is cut instead of an answer.
    LostReply,
    /// The connection is cut before it has an effect.
    Cut,
    /// It works after this time.
    Slow(Duration),
    /// It is never answered and has no effect.
    Never,
}

/// One object.
#[derive(Clone, Debug, Default)]
pub(super) struct Object {
    pub(super) bytes: Bytes,
    pub(super) generation: u64,
    pub(super) created: String,
    pub(super) content_type: String,
    pub(super) content_encoding: Option<String>,
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) crc32c: u32,
}

/// An object that is being uploaded.
#[derive(Clone, Debug, Default)]
pub(super) struct Upload {
    pub(super) bucket: String,
    pub(super) name: String,
    pub(super) if_generation: Option<u64>,
    pub(super) object: Object,
    pub(super) received: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) buckets: BTreeMap<String, BTreeMap<String, Object>>,
    pub(super) uploads: HashMap<u64, Upload>,
    pub(super) faults: HashMap<GcsRequest, VecDeque<Option<GcsFault>>>,
    pub(super) lasting: HashMap<GcsRequest, GcsFault>,
    pub(super) requests: HashMap<GcsRequest, u64>,
    next: u64,
    room: usize,
}

/// Why an upload was not taken.
pub(super) enum Refused {
    NoBucket,
    Precondition,
    Full,
}

impl State {
    pub(super) fn new(room: usize) -> Self {
        Self {
            buckets: BTreeMap::new(),
            uploads: HashMap::new(),
            faults: HashMap::new(),
            lasting: HashMap::new(),
            requests: HashMap::new(),
            next: 1,
            room,
        }
    }

    /// A number that was not given before.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Counts a request and says what goes wrong with it.
    pub(super) fn count(&mut self, kind: GcsRequest) -> Option<GcsFault> {
        *self.requests.entry(kind).or_default() += 1;
        let next = self.faults.get_mut(&kind).and_then(VecDeque::pop_front).flatten();
        next.or_else(|| self.lasting.get(&kind).copied())
    }

    /// Stores a finished upload. Gives the object back as it is stored.
    pub(super) fn finish(&mut self, upload: Upload) -> Result<Object, Refused> {
        let generation = self.number();
        let objects = self.buckets.get_mut(&upload.bucket).ok_or(Refused::NoBucket)?;
        let stored = objects.get(&upload.name).map_or(0, |object| object.generation);
        if upload.if_generation.is_some_and(|wanted| wanted != stored) {
            return Err(Refused::Precondition);
        }
        self.room = self.room.checked_sub(upload.received.len()).ok_or(Refused::Full)?;
        let object = Object {
            crc32c: crc32c(&upload.received),
            bytes: upload.received.into(),
            generation,
            created: now(),
            ..upload.object
        };
        if let Some(before) = objects.insert(upload.name, object.clone()) {
            self.room += before.bytes.len();
        }
        Ok(object)
    }

    pub(super) fn put(&mut self, bucket: &str, name: &str, bytes: Bytes) {
        let generation = self.number();
        let object = Object {
            crc32c: crc32c(&bytes),
            bytes,
            generation,
            created: now(),
            content_type: "application/octet-stream".to_owned(),
            ..Object::default()
        };
        self.buckets.entry(bucket.to_owned()).or_default().insert(name.to_owned(), object);
    }

    pub(super) fn delete(&mut self, bucket: &str, name: &str) -> bool {
        let Some(object) = self.buckets.get_mut(bucket).and_then(|objects| objects.remove(name)) else {
            return false;
        };
        self.room += object.bytes.len();
        true
    }
}

/// The time in RFC 3339.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let micros = i64::try_from(since.as_micros()).unwrap_or(i64::MAX);
    messagepipeline::Timestamp::from_micros(micros).to_string()
}

/// CRC-32C (Castagnoli, RFC 3720 appendix B.4), bit by bit reflected.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = table();
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)];
    !bytes.iter().fold(!0, step)
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let mut value = at as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ 0x82F6_3B78 } else { value >> 1 };
            bit += 1;
        }
        table[at] = value;
        at += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720, appendix B.4, and the check value of the CRC catalogue.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    }
}

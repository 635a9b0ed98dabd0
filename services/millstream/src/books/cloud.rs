//! The books of services that run on Google Cloud.
//!
//! Pub/Sub keeps no history to read, so the sinks and the dead letters are compared with the ledger of ids that
//! ingestion writes. An id that a sink holds and the ledger does not was published by an ingestion that died before
//! it noted it, so its device has no acknowledgement; it counts as published, and both sinks must have it. One from
//! before the oldest file of the ledger counts so too.
//!
//! Needs some 50 bytes of memory for each message.

use super::RemoteSink;
use super::reconcile::{Past, Reconciled, Set, Source, reconcile};
use super::report::{
    ArchiveLine, DeadLetterLine, LedgerLine, PendingLine, Report, StageLine, TopicLine, WarehouseLine,
};
use crate::check::{ENRICHED, RAW};
use bqstore::bigquery::BigQueryReader;
use connectors::PubSubBus;
use futures_util::{StreamExt, TryStreamExt};
use icestore::gcs::GcsReader;
use icestore::{NameRange, ObjectReader, decode_line, decompress};
use ingestion_service::Ledgers;
use messagepipeline::{Digest, ErrorClass, MessageId, StageError, Timestamp};
use pubsub::Record;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::time::Duration;

/// Objects read at a time.
const READ_AT_ONCE: usize = 8;
/// Dead letters and records of skips that are read, at most.
const MAX_RECORDS: usize = 1_000_000;
/// Looks at the dead letters before a message counts as missing.
const LOOKS: u32 = 3;
/// Stands for the stage where Pub/Sub itself gave a message up, by the policy of a subscription.
const FORWARDED: &str = "pubsub";
/// When no dead letter has come for so long, there are no more.
const QUIET: Duration = Duration::from_secs(3);

/// What the cloud's stores hold.
pub struct CloudBooks {
    /// What ingestion has taken on, and what of it was published since `settled_before` or lies in a spool.
    pub ledger: Ledgers,
    /// The warehouse.
    pub warehouse: BigQueryReader,
    /// Its table, for people.
    pub table: (String, String),
    /// The archive.
    pub archive: GcsReader,
    /// The folder of the archive in its bucket.
    pub prefix: String,
    /// The bucket.
    pub bucket: String,
    /// Dead letters and skips.
    pub bus: PubSubBus,
    /// Messages received or published after this may still be on their way.
    pub settled_before: Timestamp,
}

impl RemoteSink {
    /// A sink with these ids, which may stand there several times.
    fn new(place: String, mut ids: Vec<MessageId>, objects: u64) -> Self {
        ids.sort_unstable();
        let all = ids.len();
        ids.dedup();
        let copies = (all - ids.len()) as u64;
        Self { place, ids, copies, objects }
    }

    fn has(&self, id: &MessageId) -> bool {
        self.ids.binary_search(id).is_ok()
    }
}

/// The ids in a table of BigQuery.
///
/// # Errors
/// When it cannot be read.
pub async fn read_rows(reader: &BigQueryReader, place: String) -> Result<RemoteSink, StageError> {
    let (mut ids, mut copies) = (Vec::new(), 0);
    let mut pages = reader.ids().await.map_err(StageError::from)?;
    while let Some(page) = pages.next_page().await.map_err(StageError::from)? {
        for (id, count) in page {
            ids.push(id);
            copies += count.saturating_sub(1);
        }
    }
    let sink = RemoteSink::new(place, ids, 0);
    Ok(RemoteSink { copies: sink.copies + copies, ..sink })
}

/// The ids in the objects below `prefix` of a bucket, all of which are read.
///
/// # Errors
/// When an object cannot be read or is damaged.
pub async fn read_lines(reader: &GcsReader, bucket: &str, prefix: &str) -> Result<RemoteSink, StageError> {
    let range = NameRange { prefix: prefix.to_owned(), ..NameRange::default() };
    let (mut ids, mut objects, mut page) = (Vec::new(), 0, None);
    loop {
        let listed = reader.list(&range, page).await?;
        objects += listed.objects.len() as u64;
        let reads =
            listed.objects.into_iter().map(|object| async move { ids_in(reader, &object.name).await });
        let mut reads = futures_util::stream::iter(reads).buffer_unordered(READ_AT_ONCE);
        while let Some(some) = reads.try_next().await? {
            ids.extend(some);
        }
        page = listed.next;
        if page.is_none() {
            return Ok(RemoteSink::new(format!("gs://{bucket}/{prefix}"), ids, objects));
        }
    }
}

async fn ids_in(reader: &GcsReader, name: &str) -> Result<Vec<MessageId>, StageError> {
    let bytes = reader.read(name).await?;
    let (object, place) = (name.to_owned(), reader.place(name));
    let ids = tokio::task::spawn_blocking(move || {
        let lines = BufReader::new(decompress(&object, &bytes[..]).map_err(|error| error.to_string())?);
        let mut ids = Vec::new();
        for line in lines.split(b'\n') {
            let line = line.map_err(|error| error.to_string())?;
            ids.push(decode_line(&line).map_err(|error| error.to_string())?.id);
        }
        Ok::<_, String>(ids)
    });
    let damaged = |detail: String| {
        StageError::new(ErrorClass::Permanent, "archive-damaged", format!("{place}: {detail}"))
    };
    ids.await.map_err(|error| damaged(error.to_string()))?.map_err(damaged)
}

/// What was ended at each stage.
#[derive(Default)]
struct Ended {
    ids: BTreeMap<String, Vec<MessageId>>,
    letters: BTreeMap<(String, String), u64>,
    /// Letters that a person dropped, which are in `letters` no more.
    dropped: BTreeMap<(String, String), u64>,
    skips: BTreeMap<String, u64>,
}

impl Ended {
    /// What another look at the dead letters has shown; what both have shown is there once.
    fn add(&mut self, other: Self) {
        for (stage, ids) in other.ids {
            let known = self.ids.entry(stage).or_default();
            known.extend(ids);
            known.sort_unstable();
            known.dedup();
        }
        for (key, count) in other.letters {
            let known = self.letters.entry(key).or_default();
            *known = count.max(*known);
        }
        for (key, count) in other.dropped {
            let known = self.dropped.entry(key).or_default();
            *known = count.max(*known);
        }
        for (stage, count) in other.skips {
            let known = self.skips.entry(stage).or_default();
            *known = count.max(*known);
        }
    }
}

impl CloudBooks {
    /// Reads everything and compares it.
    ///
    /// # Errors
    /// When a store cannot be read.
    pub async fn report(&self) -> Result<Report, StageError> {
        let (rows, lines, mut ended) = tokio::try_join!(
            read_rows(&self.warehouse, self.table.0.clone()),
            read_lines(&self.archive, &self.bucket, &self.prefix),
            self.ended()
        )?;
        let mut published = self.ledger.ids.clone();
        published.extend(rows.ids.iter().chain(&lines.ids));
        published.sort_unstable();
        published.dedup();
        let in_no_ledger = published.iter().filter(|id| self.ledger.ids.binary_search(id).is_err());
        let beyond = self.told(in_no_ledger.copied());
        let mut found = self.compare(&published, &rows, &lines, &ended);
        // Letters may be with somebody else who looks at them, or on their way back from an earlier look.
        for _ in 1..LOOKS {
            if found.unaccounted_count == 0 {
                break;
            }
            ended.add(self.ended().await?);
            found = self.compare(&published, &rows, &lines, &ended);
        }
        for lost in &mut found.unaccounted {
            let place = lost.last_seen.replace("topic enriched, topic raw", "published by ingestion");
            lost.last_seen = place.replace("topic enriched", "published by ingestion");
            if self.tells_no_time(&lost.message_id) {
                lost.last_seen.push_str(", time unknown (in no ledger): it may still be on its way");
            }
        }
        Ok(self.write(found, &rows, &lines, &ended, beyond))
    }

    /// How many of `in_no_ledger`, which a sink has, were received while the ledger was whole, and how many before that
    /// or at a time that nothing tells.
    fn told(&self, in_no_ledger: impl Iterator<Item = MessageId>) -> (u64, u64) {
        let Some(since) = self.ledger.since else { return (in_no_ledger.count() as u64, 0) };
        let (mut beyond, mut before) = (0, 0);
        for id in in_no_ledger {
            let is_beyond = received(id).is_some_and(|time| time >= since);
            *(if is_beyond { &mut beyond } else { &mut before }) += 1;
        }
        (beyond, before)
    }

    async fn ended(&self) -> Result<Ended, StageError> {
        let mut ended = Ended::default();
        let reader = self.bus.letters();
        let listing = reader.list(MAX_RECORDS, QUIET, |record| match record {
            Record::Letter(letter) => {
                ended.ids.entry(letter.stage.clone()).or_default().push(letter.message.id);
                *ended.letters.entry((letter.stage, letter.reason)).or_default() += 1;
            }
            Record::Skip(skip) => {
                ended.ids.entry(skip.stage.to_string()).or_default().push(skip.id);
                *ended.skips.entry(skip.stage.into_owned()).or_default() += 1;
            }
            Record::Drop(drop) => {
                ended.ids.entry(drop.stage.clone()).or_default().push(drop.id);
                *ended.dropped.entry((drop.stage, drop.reason)).or_default() += 1;
            }
            Record::Foreign(foreign) => {
                ended.ids.entry(FORWARDED.to_owned()).or_default().push(foreign.message.id);
                let key = (FORWARDED.to_owned(), "max-delivery-attempts".to_owned());
                *ended.letters.entry(key).or_default() += 1;
            }
        });
        let listing = listing.await.map_err(StageError::from)?;
        if !listing.is_complete {
            let detail = format!("there are {MAX_RECORDS} dead letters and skips or more; not all were read");
            return Err(StageError::permanent("too-many-letters", detail));
        }
        for ids in ended.ids.values_mut() {
            ids.sort_unstable();
            ids.dedup();
        }
        Ok(ended)
    }

    fn compare(
        &self,
        published: &[MessageId],
        rows: &RemoteSink,
        lines: &RemoteSink,
        ended: &Ended,
    ) -> Reconciled {
        let none = Vec::new();
        let at = |stage: &str| ended.ids.get(stage).unwrap_or(&none).as_slice();
        // What the spool could not bring to the bus, what enrichment gave up, and what Pub/Sub moved away by its own policy.
        let mut lost_before = at(enrichment_service::STAGE).to_vec();
        lost_before.extend_from_slice(at(ingestion_service::FORWARD));
        lost_before.extend_from_slice(at(FORWARDED));
        lost_before.sort_unstable();
        // Pub/Sub does not say what is on the topic between; what was not ended before it must have passed it.
        let enriched = published
            .iter()
            .filter(|id| lost_before.binary_search(id).is_err() || rows.has(id) || lines.has(id));
        let young = |held: &RemoteSink| -> Vec<MessageId> {
            let recent = published.iter().filter(|id| self.may_be_on_its_way(id) && !held.has(id));
            recent.copied().collect()
        };
        let and_forwarded = |stage: &str| {
            let mut ids = [at(stage), at(FORWARDED)].concat();
            ids.sort_unstable();
            ids
        };
        let sources = vec![
            of(Set::Raw, published.to_vec()),
            of(Set::Enriched, enriched.copied().collect()),
            of(Set::Warehouse, rows.ids.clone()),
            of(Set::Archive, lines.ids.clone()),
            of(Set::EndedIngestion, at(ingestion_service::STAGE).to_vec()),
            of(Set::EndedEnrichment, lost_before.clone()),
            of(Set::EndedWarehouse, and_forwarded(bigquery_service::STAGE)),
            of(Set::EndedArchive, and_forwarded(icestore_service::STAGE)),
            of(Set::PendingWarehouse, young(rows)),
            of(Set::PendingArchive, young(lines)),
        ];
        reconcile(sources, &Past::default()).unwrap_or_else(|never: Infallible| match never {})
    }

    /// What the spool has and has neither brought to the bus nor given up.
    fn in_spool(&self, rows: &RemoteSink, lines: &RemoteSink, ended: &Ended) -> u64 {
        let given_up = ended.ids.get(ingestion_service::FORWARD);
        let has_left = |id: &MessageId| {
            rows.has(id) || lines.has(id) || given_up.is_some_and(|ids| ids.binary_search(id).is_ok())
        };
        self.ledger.spooled.iter().filter(|id| !has_left(id)).count() as u64
    }

    fn may_be_on_its_way(&self, id: &MessageId) -> bool {
        received(*id).is_some_and(|time| time >= self.settled_before)
            || self.ledger.recent.binary_search(id).is_ok()
            || self.ledger.spooled.binary_search(id).is_ok()
    }

    /// Whether nothing says when the message was published: a device's own id that stands in no ledger.
    fn tells_no_time(&self, id: &str) -> bool {
        let Ok(id) = id.parse::<MessageId>() else { return false };
        received(id).is_none() && self.ledger.ids.binary_search(&id).is_err()
    }

    fn write(
        &self,
        found: Reconciled,
        rows: &RemoteSink,
        lines: &RemoteSink,
        ended: &Ended,
        (beyond, before): (u64, u64),
    ) -> Report {
        let ledger: Digest = self.ledger.ids.iter().collect();
        let (stored, archived) = (found.digest(Set::Warehouse), found.digest(Set::Archive));
        let mut pending = [("bigquery", Set::PendingWarehouse), ("icestore", Set::PendingArchive)]
            .map(|(stage, set)| PendingLine {
                place: format!("before {stage}"),
                count: found.digest(set).count,
            })
            .to_vec();
        pending
            .push(PendingLine { place: "in the spool".to_owned(), count: self.in_spool(rows, lines, ended) });
        let count = |stage: &str| ended.skips.get(stage).copied().unwrap_or_default();
        let mut letters = BTreeMap::<_, (u64, u64)>::new();
        for (key, count) in &ended.letters {
            letters.entry(key).or_default().0 += count;
        }
        for (key, count) in &ended.dropped {
            let (all, dropped) = letters.entry(key).or_default();
            *all += count;
            *dropped += count;
        }
        let dead = |stage: &str| {
            letters.iter().filter(|((of, _), _)| of == stage).map(|(_, (count, _))| count).sum::<u64>()
        };
        let stage = |name: &str, out: u64| {
            let (skipped, dead_lettered) = (count(name), dead(name));
            let input = out + skipped + dead_lettered;
            StageLine { name: name.to_owned(), input, out, skipped, dead_lettered, redelivered: 0 }
        };
        let raw = found.digest(Set::Raw).count;
        let lines_of_letters = letters.iter().map(|((stage, reason), (count, dropped))| DeadLetterLine {
            stage: stage.clone(),
            reason: reason.clone(),
            count: *count,
            dropped: *dropped,
        });
        Report {
            balanced: found.unaccounted_count == 0,
            folded: None,
            topics: [RAW, ENRICHED].map(TopicLine::unknown).into(),
            ledger: Some(LedgerLine {
                ids: ledger.count,
                digest: ledger.to_string(),
                since: self.ledger.since.map(|since| since.to_string()),
                beyond,
                before,
            }),
            stages: vec![
                stage(ingestion_service::STAGE, raw),
                stage(enrichment_service::STAGE, found.digest(Set::Enriched).count),
                stage(bigquery_service::STAGE, stored.count),
                stage(icestore_service::STAGE, archived.count),
            ],
            warehouse: WarehouseLine {
                path: rows.place.clone(),
                table: self.table.1.clone(),
                rows: stored.count,
                digest: stored.to_string(),
                copies: rows.copies,
                removed: 0,
            },
            archive: ArchiveLine {
                path: lines.place.clone(),
                objects: lines.objects,
                lines: archived.count,
                digest: archived.to_string(),
                copies: lines.copies,
                removed_objects: 0,
                removed_lines: 0,
            },
            dead_letters: lines_of_letters.collect(),
            pending,
            pending_messages: found.pending,
            disagreements: found.disagreements,
            unaccounted: found.unaccounted,
            unaccounted_count: found.unaccounted_count,
        }
    }
}

fn of(set: Set, ids: Vec<MessageId>) -> Source<'static, Infallible> {
    Source { set, ids: Box::new(ids.into_iter().map(Ok)) }
}

/// The time in an id of ours.
fn received(id: MessageId) -> Option<Timestamp> {
    let uuid = id.uuid();
    let (seconds, nanos) = uuid.get_timestamp().filter(|_| uuid.get_version_num() == 7)?.to_unix();
    let micros = seconds.checked_mul(1_000_000)?.checked_add(u64::from(nanos) / 1_000)?;
    i64::try_from(micros).ok().map(Timestamp::from_micros)
}

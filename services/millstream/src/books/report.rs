//! The report: what `books --json` prints and `up --report` writes.

use super::reconcile::Unaccounted;
use messagepipeline::{Digest, Timestamp};
use serde::Serialize;

/// Everything that came in and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether every id has one final outcome in every destination. What is pending keeps it true only while the
    /// system runs.
    pub balanced: bool,
    /// Messages whose ids retention has forgotten, when there are any.
    pub folded: Option<FoldedLine>,
    /// The topics, `raw` first; forgotten ids included.
    pub topics: Vec<TopicLine>,
    /// What ingestion has taken on by its own ledger, where the bus keeps no history.
    pub ledger: Option<LedgerLine>,
    /// The stages in the order of the path.
    pub stages: Vec<StageLine>,
    /// The warehouse.
    pub warehouse: WarehouseLine,
    /// The archive.
    pub archive: ArchiveLine,
    /// Dead letters by stage and reason.
    pub dead_letters: Vec<DeadLetterLine>,
    /// Messages still on their way, by where they are. One message may be in several places.
    pub pending: Vec<PendingLine>,
    /// Distinct messages still on their way, parked ones included.
    pub pending_messages: u64,
    /// Places that do not hold what they should of the messages whose ids are forgotten, for people.
    pub disagreements: Vec<String>,
    /// Ids without a final outcome; at most 100,000 are named.
    pub unaccounted: Vec<Unaccounted>,
    /// How many ids are unaccounted for, named or not.
    pub unaccounted_count: u64,
}

/// Messages whose ids are forgotten: they count in sums.
#[derive(Debug, Clone, Serialize)]
pub struct FoldedLine {
    /// They were settled before.
    pub before: String,
    /// How many of topic `raw`.
    pub messages: u64,
    /// Digest over their ids.
    pub digest: String,
}

impl FoldedLine {
    pub(super) fn new(horizon: Timestamp, raw: Digest) -> Self {
        Self { before: horizon.to_string(), messages: raw.count, digest: raw.to_string() }
    }
}

/// One topic.
#[derive(Debug, Clone, Serialize)]
pub struct TopicLine {
    /// Its name.
    pub name: String,
    /// Distinct messages published; `null` where the bus keeps no history.
    pub published: Option<u64>,
    /// Digest over their ids: count and sum of fingerprints.
    pub digest: Option<String>,
}

impl TopicLine {
    /// A topic whose bus keeps no history.
    #[cfg(feature = "google")]
    pub(super) fn unknown(name: &str) -> Self {
        Self { name: name.to_owned(), published: None, digest: None }
    }
}

/// The ledger of ids that ingestion writes.
#[derive(Debug, Clone, Serialize)]
pub struct LedgerLine {
    /// Distinct ids in it.
    pub ids: u64,
    /// Digest over them.
    pub digest: String,
    /// It is whole since then: what is older is deleted. Nothing where it is empty.
    pub since: Option<String>,
    /// Ids that a sink holds and the ledger does not: published by a process that died before it noted them, so that
    /// their devices have no acknowledgement.
    pub beyond: u64,
    /// Ids that a sink holds and the ledger does not, received before `since` or, a device's own, at a time that
    /// nothing tells.
    pub before: u64,
}

/// One stage.
#[derive(Debug, Clone, Serialize)]
pub struct StageLine {
    /// Its name.
    pub name: String,
    /// Messages that reached it.
    #[serde(rename = "in")]
    pub input: u64,
    /// Messages it handed on or stored.
    pub out: u64,
    /// Messages a rule ended there.
    pub skipped: u64,
    /// Messages it gave up on.
    pub dead_lettered: u64,
    /// Deliveries beyond the first, as far as they are recorded.
    pub redelivered: u64,
}

/// The warehouse.
#[derive(Debug, Clone, Serialize)]
pub struct WarehouseLine {
    /// Its file.
    pub path: String,
    /// Its table.
    pub table: String,
    /// Rows, one per message id.
    pub rows: u64,
    /// Digest over their ids.
    pub digest: String,
    /// Further rows with an id that has one already.
    pub copies: u64,
    /// Rows that retention has removed.
    pub removed: u64,
}

/// The archive.
#[derive(Debug, Clone, Serialize)]
pub struct ArchiveLine {
    /// Its folder.
    pub path: String,
    /// Finished objects.
    pub objects: u64,
    /// Lines in them, one per message id.
    pub lines: u64,
    /// Digest over their ids.
    pub digest: String,
    /// Further lines with an id that has one already.
    pub copies: u64,
    /// Objects that retention has removed.
    pub removed_objects: u64,
    /// Lines in those.
    pub removed_lines: u64,
}

/// Dead letters of one stage with one reason.
#[derive(Debug, Clone, Serialize)]
pub struct DeadLetterLine {
    /// The stage that gave up.
    pub stage: String,
    /// Its reason.
    pub reason: String,
    /// How many.
    pub count: u64,
    /// How many of them a person has dropped.
    pub dropped: u64,
}

/// Messages that are still on their way.
#[derive(Debug, Clone, Serialize)]
pub struct PendingLine {
    /// Where: `subscription enrichment`, `parked`.
    pub place: String,
    /// How many.
    pub count: u64,
}

impl Report {
    /// The report for people.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let mut line = |parts: &[&str]| {
            text.push_str(parts.concat().trim_end());
            text.push('\n');
        };
        for topic in &self.topics {
            let (Some(published), Some(digest)) = (topic.published, &topic.digest) else { continue };
            line(&[&format!("topic      {:<12}{published:>12} messages   {digest}", topic.name)]);
        }
        if let Some(ledger) = &self.ledger {
            let beyond = match ledger.beyond {
                0 => String::new(),
                count => format!("; {count} more were published and not acknowledged"),
            };
            let since = ledger.since.as_ref().map_or_else(String::new, |since| format!(" since {since}"));
            let before = match ledger.before {
                0 => String::new(),
                count => {
                    format!("; {count} more in the sinks are from before, or of a time that nothing tells")
                }
            };
            let (ids, digest) = (ledger.ids, &ledger.digest);
            line(&[&format!("ledger     {:<12}{ids:>12} messages   {digest}{since}{beyond}{before}", "")]);
        }
        let warehouse = &self.warehouse;
        line(&[&format!(
            "warehouse  {:<12}{:>12} rows       {}",
            warehouse.table, warehouse.rows, warehouse.digest
        )]);
        let archive = &self.archive;
        let objects = format!("{} objects", archive.objects);
        line(&[&format!("archive    {objects:<12}{:>12} lines      {}", archive.lines, archive.digest)]);
        for (place, copies, what) in
            [("warehouse", warehouse.copies, "rows"), ("archive", archive.copies, "lines")]
        {
            if copies > 0 {
                line(&[&format!(
                    "copies     {place:<12}{copies:>12} {what} of messages that have one already"
                )]);
            }
        }
        if let Some(folded) = &self.folded {
            line(&[&format!(
                "forgotten  {:<12}{:>12} messages   {} settled before {}",
                "ids of", folded.messages, folded.digest, folded.before
            )]);
        }
        if warehouse.removed > 0 {
            line(&[&format!("removed    {:<12}{:>12} rows", warehouse.table, warehouse.removed)]);
        }
        if archive.removed_objects > 0 {
            let objects = format!("{} objects", archive.removed_objects);
            line(&[&format!("removed    {objects:<12}{:>12} lines", archive.removed_lines)]);
        }
        for letters in &self.dead_letters {
            let dropped = match letters.dropped {
                0 => String::new(),
                count => format!("; {count} of them dropped by an operator"),
            };
            line(&[&format!(
                "dead       {:<12}{:>12} {}{dropped}",
                letters.stage, letters.count, letters.reason
            )]);
        }
        for pending in self.pending.iter().filter(|pending| pending.count > 0) {
            line(&[&format!("pending    {:<24}{:>12}", pending.place, pending.count)]);
        }
        for lost in self.unaccounted.iter().take(20) {
            line(&[
                "MISSING    ",
                &lost.message_id,
                " from ",
                &lost.missing_from.join(", "),
                "; last seen: ",
                &lost.last_seen,
            ]);
        }
        if self.unaccounted_count > 20 {
            line(&[&format!("MISSING    … {} in all; --json names them", self.unaccounted_count)]);
        }
        for disagreement in &self.disagreements {
            line(&["DISAGREES  ", disagreement]);
        }
        line(&[&self.verdict()]);
        text
    }

    /// The last line: what it means.
    #[must_use]
    pub fn verdict(&self) -> String {
        match (self.balanced, self.unaccounted_count, self.pending_messages) {
            (true, _, 0) => "The books balance: every message that came in is accounted for.".to_owned(),
            (true, _, pending) => format!("The books balance; {pending} messages are still on their way."),
            (false, 0, pending) => format!(
                "{pending} messages are still on their way, and nothing is running: `millstream up --until-drained` \
                 finishes them."
            ),
            (false, lost, _) => format!("The books do NOT balance: {lost} messages are unaccounted for."),
        }
    }
}

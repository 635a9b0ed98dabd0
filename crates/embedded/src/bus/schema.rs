//! The tables of `bus.db`.

use crate::Error;
use crate::sqlite::Schema;
use messagepipeline::ErrorClass;

/// The kind of file and its formats.
///
/// `auto_vacuum=INCREMENTAL`: pages that trimming frees are used again, so the file stays as large as the largest
/// backlog was; after a long outage of a sink they are given back to the file system in small steps.
pub(super) const SCHEMA: Schema = Schema {
    kind: "bus",
    application_id: 0x4d53_4255,
    shrinks: true,
    migrations: &[FORMAT_1, FORMAT_2, FORMAT_3, FORMAT_4, FORMAT_5],
};

const FORMAT_1: &str = "
CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    last_seq INTEGER NOT NULL DEFAULT 0,   -- highest sequence number given
    trimmed INTEGER NOT NULL DEFAULT 0,    -- the log begins after this number
    published INTEGER NOT NULL DEFAULT 0,  -- distinct message ids
    digest INTEGER NOT NULL DEFAULT 0,     -- sum of the ids' fingerprints modulo 2^64, as a signed number
    duplicates INTEGER NOT NULL DEFAULT 0, -- publishes of an id that was there already
    bytes INTEGER NOT NULL DEFAULT 0       -- payloads and attributes in the log
) STRICT;
CREATE TABLE subscriptions (
    id INTEGER PRIMARY KEY,
    topic INTEGER NOT NULL REFERENCES topics(id),
    name TEXT NOT NULL,
    cursor INTEGER NOT NULL,               -- every message up to this number is settled
    delivered INTEGER NOT NULL DEFAULT 0,  -- no message above this number was handed out
    probation TEXT,                        -- suspects after unclean starts, as JSON
    UNIQUE (topic, name)
) STRICT;
CREATE TABLE settled (                     -- settled above the cursor, both ends included
    subscription INTEGER NOT NULL REFERENCES subscriptions(id),
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (subscription, first)
) STRICT, WITHOUT ROWID;
CREATE TABLE attempts (                    -- counted failures of messages that come again
    subscription INTEGER NOT NULL REFERENCES subscriptions(id),
    seq INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    PRIMARY KEY (subscription, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE dead_letters (
    stage TEXT NOT NULL,
    id TEXT NOT NULL,
    subscription TEXT,
    topic TEXT,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    dead_at TEXT NOT NULL,
    publish_time TEXT NOT NULL,
    device_id TEXT,
    attributes TEXT NOT NULL,              -- JSON object
    enrichment TEXT,                       -- JSON object
    payload ANY NOT NULL,                  -- TEXT when it is UTF-8 without NUL
    state TEXT NOT NULL DEFAULT 'dead' CHECK (state IN ('dead', 'retried', 'dropped')),
    PRIMARY KEY (stage, id)
) STRICT;
CREATE TABLE skips (
    stage TEXT NOT NULL,
    id BLOB NOT NULL,
    rule TEXT NOT NULL,
    PRIMARY KEY (stage, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE parked (
    id BLOB PRIMARY KEY,
    key TEXT NOT NULL,
    since INTEGER NOT NULL,                -- microseconds since 1970
    publish_time INTEGER NOT NULL,
    attributes BLOB NOT NULL,
    enrichment TEXT,
    payload BLOB NOT NULL
) STRICT;
CREATE INDEX parked_by_key ON parked (key, since);
CREATE INDEX parked_by_age ON parked (since);
CREATE TABLE starts (                      -- one row: how the process before this one ended
    one INTEGER PRIMARY KEY CHECK (one = 1),
    running INTEGER NOT NULL,              -- 1 while a process has the bus open
    unclean INTEGER NOT NULL               -- unclean starts in a row
) STRICT;
INSERT INTO starts VALUES (1, 0, 0);
";

/// Dead letters as a queue of work: what became of each, and how much there is. Only `dead` ones keep their payload.
const FORMAT_2: &str = "
ALTER TABLE dead_letters ADD COLUMN first_dead_at TEXT;                -- when it was given up the first time
ALTER TABLE dead_letters ADD COLUMN retries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE dead_letters ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;  -- payload, attributes, enrichment and detail
ALTER TABLE dead_letters ADD COLUMN ended_at TEXT;                     -- when a person retried or dropped it
ALTER TABLE dead_letters ADD COLUMN ended_by TEXT;
ALTER TABLE dead_letters ADD COLUMN ended_why TEXT;
UPDATE dead_letters SET first_dead_at = dead_at, bytes = octet_length(payload) + octet_length(attributes)
    + coalesce(octet_length(enrichment), 0) + octet_length(detail);
CREATE INDEX dead_letters_by_id ON dead_letters (id);
CREATE TABLE dead_letter_totals (          -- one row: the letters in state 'dead', kept by the triggers below
    one INTEGER PRIMARY KEY CHECK (one = 1),
    letters INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;
INSERT INTO dead_letter_totals SELECT 1, count(*), coalesce(sum(bytes), 0) FROM dead_letters WHERE state = 'dead';
CREATE TRIGGER dead_letter_added AFTER INSERT ON dead_letters WHEN new.state = 'dead' BEGIN
    UPDATE dead_letter_totals SET letters = letters + 1, bytes = bytes + new.bytes;
END;
CREATE TRIGGER dead_letter_changed AFTER UPDATE OF state, bytes ON dead_letters BEGIN
    UPDATE dead_letter_totals SET
        letters = letters + (new.state = 'dead') - (old.state = 'dead'),
        bytes = bytes + iif(new.state = 'dead', new.bytes, 0) - iif(old.state = 'dead', old.bytes, 0);
END;
CREATE TRIGGER dead_letter_removed AFTER DELETE ON dead_letters WHEN old.state = 'dead' BEGIN
    UPDATE dead_letter_totals SET letters = letters - 1, bytes = bytes - old.bytes;
END;
";

const FORMAT_3: &str = "
CREATE TABLE floors (                      -- how far a topic's messages were settled, noted from time to time
    topic INTEGER NOT NULL REFERENCES topics(id),
    at INTEGER NOT NULL,                   -- microseconds since 1970
    floor INTEGER NOT NULL,                -- every message up to this number was settled by then
    PRIMARY KEY (topic, at)
) STRICT, WITHOUT ROWID;
CREATE TABLE folded (                      -- ids that are not kept one by one any more
    place TEXT PRIMARY KEY,                -- 'topic:raw', 'stored:warehouse', 'skipped:enrichment'
    count INTEGER NOT NULL,
    digest INTEGER NOT NULL                -- sum of the ids' fingerprints modulo 2^64, as a signed number
) STRICT, WITHOUT ROWID;
CREATE TABLE folding (                     -- one row: the last fold, until every store has heard of it
    one INTEGER PRIMARY KEY CHECK (one = 1),
    horizon INTEGER NOT NULL,              -- microseconds since 1970: what is folded was settled before
    ids BLOB NOT NULL                      -- 16 bytes each
) STRICT;
";

/// Sessions of the MQTT endpoint.
const FORMAT_4: &str = "
CREATE TABLE mqtt_sessions (               -- sessions that outlive their connection
    key INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice: a session started anew has another
    client_id TEXT NOT NULL UNIQUE,
    expiry INTEGER NOT NULL                -- seconds after the end of the connection
) STRICT;
CREATE TABLE mqtt_held (                   -- publishes at QoS 2 whose PUBREL has not come
    session INTEGER NOT NULL REFERENCES mqtt_sessions(key) ON DELETE CASCADE,
    packet_id INTEGER NOT NULL,
    message_id BLOB NOT NULL,
    fingerprint INTEGER NOT NULL,          -- of topic, payload and properties
    PRIMARY KEY (session, packet_id)
) STRICT, WITHOUT ROWID;
";

/// Retention asks of each id whether a packet identifier holds it.
const FORMAT_5: &str = "CREATE INDEX mqtt_held_by_message ON mqtt_held (message_id)";

/// The statements of one topic, whose tables carry its name.
#[derive(Debug)]
pub(super) struct TopicSql {
    pub(super) create: String,
    pub(super) insert_id: String,
    pub(super) find_id: String,
    pub(super) insert_message: String,
    pub(super) read_from: String,
    pub(super) read_one: String,
    pub(super) weigh: String,
    pub(super) trim: String,
    pub(super) moved: String,
    pub(super) forget: String,
}

/// The columns of a log table in the order in which rows are read.
const COLUMNS: &str = "seq, id, publish_time, attributes, enrichment, payload";

impl TopicSql {
    /// # Errors
    /// When `topic` is not a topic name.
    pub(super) fn new(topic: &str) -> Result<Self, Error> {
        check_name("topic", topic)?;
        let (log, ids) = (format!("\"log_{topic}\""), format!("\"ids_{topic}\""));
        Ok(Self {
            create: format!(
                "CREATE TABLE IF NOT EXISTS {log} (
                    seq INTEGER PRIMARY KEY, id BLOB NOT NULL, publish_time INTEGER NOT NULL,
                    attributes BLOB NOT NULL, enrichment TEXT, payload BLOB NOT NULL) STRICT;
                CREATE TABLE IF NOT EXISTS {ids} (
                    id BLOB PRIMARY KEY, seq INTEGER NOT NULL, fingerprint INTEGER NOT NULL) STRICT, WITHOUT ROWID;"
            ),
            insert_id: format!("INSERT INTO {ids} VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING"),
            find_id: format!("SELECT seq, fingerprint FROM {ids} WHERE id = ?1"),
            insert_message: format!("INSERT INTO {log} ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6)"),
            read_from: format!("SELECT {COLUMNS} FROM {log} WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq"),
            read_one: format!("SELECT {COLUMNS} FROM {log} WHERE seq = ?1"),
            weigh: format!(
                "SELECT coalesce(sum(length(payload) + length(attributes)), 0) FROM {log} WHERE seq <= ?1"
            ),
            trim: format!("DELETE FROM {log} WHERE seq <= ?1"),
            moved: format!("UPDATE {ids} SET seq = ?2 WHERE id = ?1"),
            forget: format!("DELETE FROM {ids} WHERE id = ?1"),
        })
    }
}

/// Checks the name of a topic or subscription, which becomes part of table names and metric labels.
///
/// # Errors
/// When it is not 1 to 64 characters of `a-z`, `0-9`, `-` and `_`, the first a letter.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase());
    if starts_well && name.len() <= 64 && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::refused(
        ErrorClass::Configuration,
        "invalid-name",
        format!(
            "{name:?} is not a {what} name: use 1 to 64 characters of a-z, 0-9, `-` and `_`, a letter first"
        ),
    ))
}

//! What a person types: commands, flags and the help that teaches them.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

const ABOUT: &str = "Moves device messages from MQTT to a warehouse and an archive, and loses none.";

const LONG_ABOUT: &str = "\
Moves device messages from MQTT to a warehouse and an archive, and loses none.

  device ─MQTT─► ingestion ─► topic raw ─► enrichment ─► topic enriched ─┬─► warehouse (rows)
                                                                         └─► archive (objects by day and place)

Everything runs in this one process on embedded stores: nothing to install, nothing in the cloud. A device's message
is acknowledged (PUBACK) only once it is on disk; killing the process at any instant loses nothing acknowledged.";

const EXAMPLES: &str = "\
Start here:
  millstream demo                         a simulated fleet through the whole path
  millstream up                           the whole path, until stopped; point devices at 127.0.0.1:1883
  millstream feed recording.ndjson.gz     plays a recording into it, from a second terminal
  millstream query 'SELECT device_id, count(*) FROM messages GROUP BY 1'
  millstream books                        proves that all that came in is accounted for

Exit codes: 0 done and accounted for, 1 failed, 2 wrong usage or configuration, 3 the books do not balance.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "millstream", version, about = ABOUT, long_about = LONG_ABOUT, after_help = EXAMPLES)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
pub struct Cli {
    /// Flags every command takes.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Configuration file [default: ./millstream.yaml if it is there, else built-in defaults]
    #[arg(long, global = true, value_name = "FILE", env = "MILLSTREAM_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    /// Data folder: bus, warehouse, device registry and archive [default: millstream-data, or `data` of the file]
    #[arg(long, global = true, value_name = "DIR", env = "MILLSTREAM_DATA", hide_env_values = true)]
    pub data: Option<PathBuf>,
    /// Log lines as text or JSON [default: text on a terminal, json elsewhere]
    #[arg(long, global = true, value_name = "FORMAT", env = "MILLSTREAM_LOG_FORMAT", hide_env_values = true)]
    pub log_format: Option<LogFormat>,
    /// More log lines; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Errors only, no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print the configuration as it takes effect (file, environment and flags together; secrets masked) and stop
    #[arg(long, global = true)]
    pub print_config: bool,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON document a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show it working: a simulated fleet through the whole path, then what arrived and what to try next
    Demo(DemoArgs),
    /// Run the whole path in this process, until stopped
    Up(UpArgs),
    /// Play recordings into an MQTT broker, as devices would
    Feed(FeedArgs),
    /// Publish archived messages again, in order, to a topic of the bus or to an MQTT broker
    Replay(ReplayArgs),
    /// Read the configuration and say all that is wrong with it; opens nothing
    Check(CheckArgs),
    /// Prove from the stored data that all that came in is accounted for
    Books(BooksArgs),
    /// Messages that were given up on: look at them, retry them, drop them
    DeadLetters {
        /// What to do with them.
        #[command(subcommand)]
        command: DeadLettersCommand,
    },
    /// The device registry: what enrichment adds to a device's messages
    Devices {
        /// What to do with it.
        #[command(subcommand)]
        command: DevicesCommand,
    },
    /// Ask the warehouse with SQL and print a table
    Query(QueryArgs),
    /// Print the JSON Schema of the configuration file, for editors
    Schema,
    /// Turn a password (one line on standard input) into the hash that `ingestion.mqtt.users` takes
    HashPassword,
}

/// `millstream demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// How many messages the simulated fleet sends
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub messages: u64,
    /// How many devices it has
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub devices: u32,
    /// Messages per second, or `max`
    #[arg(long, value_name = "RATE", default_value = "1000/s")]
    pub rate: String,
    /// Seed of the simulation; the same seed gives the same messages
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// `millstream up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millstream up
  millstream up --mqtt-listen 127.0.0.1:0 --http-listen 127.0.0.1:0      free ports; both are printed when ready
  millstream up --feed day1.ndjson.gz --until-drained --report r.json    feed, drain, prove, stop
  millstream up --until-drained                                          finish what an earlier run left, then stop

SIGTERM and Ctrl-C take nothing more, finish what the stages have in their hands, then stop; a second one stops at once.
What lies on the bus by then goes on at the next start. Nothing acknowledged is lost either way. To back up, stop it and
copy the data folder.")]
pub struct UpArgs {
    /// Where devices connect; port 0 picks a free one [default: 127.0.0.1:1883]
    #[arg(long, value_name = "ADDR", value_parser = address, env = "MILLSTREAM_MQTT_LISTEN", hide_env_values = true)]
    pub mqtt_listen: Option<SocketAddr>,
    /// Where /healthz, /readyz and /metrics answer; port 0 picks a free one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR", value_parser = address, env = "MILLSTREAM_HTTP_LISTEN", hide_env_values = true)]
    pub http_listen: Option<SocketAddr>,
    /// Stop by itself once every stage is drained (after the feed, if there is one)
    #[arg(long)]
    pub until_drained: bool,
    /// Begin stores anew that were in the data folder and are not there any more; what they held is lost
    #[arg(long)]
    pub accept_missing_stores: bool,
    /// Write the books to this file at the end, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Play these recordings through the MQTT endpoint
    #[arg(long, value_name = "FILE", num_args = 1.., action = clap::ArgAction::Append)]
    pub feed: Vec<PathBuf>,
    /// How to play them.
    #[command(flatten)]
    pub play: PlayArgs,
}

/// How recordings are played.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Playing recordings")]
pub struct PlayArgs {
    /// Topic of each line: text with JSON Pointers into the line, alternatives separated by commas
    #[arg(long, value_name = "TEMPLATE", default_value = crate::template::DEFAULT_TOPIC)]
    pub topic: String,
    /// How fast: `max`, `500/s`, or `1x`, `60x` by the records' own times
    #[arg(long, value_name = "RATE", default_value = "max")]
    pub rate: String,
    /// Where a record's own time stands, for rates in `x`
    #[arg(long, value_name = "POINTERS", default_value = crate::rate::DEFAULT_TIME_POINTERS)]
    pub time_pointer: String,
    /// How many MQTT connections; all messages of one topic go through one of them
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub connections: u16,
    /// Quality of service: 1 waits for a PUBACK per message, 0 does not
    #[arg(long, value_name = "QOS", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub qos: u8,
}

/// `millstream feed`.
#[derive(Debug, Args)]
#[command(after_help = "\
A recording is NDJSON, plain or gzip (told by its content): one line is one payload, byte for byte, without the line
end; empty lines are passed over. A FILE of - is standard input.

Examples:
  millstream feed day1.ndjson.gz day2.ndjson.gz
  millstream feed --rate 60x day1.ndjson.gz                       an hour in a minute
  millstream feed --topic 'plant/{/site}/{/device_id}' a.ndjson   topics from the records")]
pub struct FeedArgs {
    /// Recordings to play
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// How to play them.
    #[command(flatten)]
    pub play: PlayArgs,
    /// Broker to publish to: mqtt://HOST:PORT or mqtts://HOST:PORT
    #[arg(long, value_name = "URL", default_value = "mqtt://127.0.0.1:1883")]
    pub broker: String,
    /// How to connect.
    #[command(flatten)]
    pub connection: ConnectionArgs,
    /// Prefix of the MQTT client ids
    #[arg(long, value_name = "TEXT", default_value = "millstream-feed")]
    pub client_id: String,
    /// Write the number of each line that had its PUBACK to this file (counted over all files, from 1)
    #[arg(long, value_name = "FILE")]
    pub acked: Option<PathBuf>,
}

/// How to connect to an MQTT broker.
#[derive(Debug, Clone, Args)]
pub struct ConnectionArgs {
    /// MQTT protocol version
    #[arg(long, value_name = "VERSION", default_value = "5", value_parser = ["5", "3.1.1"])]
    pub protocol: String,
    /// User name
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// File that holds the password (one line)
    #[arg(long, value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
    /// PEM file with the certificate authorities to trust, for mqtts://
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// PEM file with the client certificate's key
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    /// Most messages in flight per connection
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub window: u16,
}

/// `millstream replay`.
#[derive(Debug, Args)]
#[command(after_help = "\
Messages come in the order of their first receipt, with payload, attributes and times as they were archived. They keep
their ids, so what is stored already is not stored twice; with --new-ids they are new messages. A broker sees MQTT
messages, each on the topic it first came on, which get new ids where they are taken in; with MQTT 5 what the device had
set is set again, and time of receipt (received_at) and other attributes are user properties.

--topic writes to the bus of the data folder, which no running `up` may have open: stop it, replay, start it again. With
`bus.kind: pubsub` it publishes to the topic on Pub/Sub, beside the running services.
Into `raw` messages come without what enrichment had added, and get it anew.

Examples:
  millstream replay --topic raw --data fresh /backup/millstream-data/archive      fill a new data folder from an archive
  millstream replay --topic raw --from 2026-11-01 --until 2026-11-03 --new-ids
  millstream replay --broker mqtt://127.0.0.1:1883 --device meter-007 --rate 60x   an hour in a minute
  millstream replay --topic raw gs://my-bucket/site-a                              with Google Cloud built in")]
#[command(group(clap::ArgGroup::new("destination").required(true).args(["topic", "broker"])))]
pub struct ReplayArgs {
    /// Archive to replay: a folder, or gs://BUCKET[/PREFIX] [default: the archive that the configuration names]
    #[arg(value_name = "ARCHIVE")]
    pub source: Option<String>,
    /// Topic of the bus to publish to, such as raw or enriched
    #[arg(long, value_name = "TOPIC")]
    pub topic: Option<String>,
    /// Broker to publish to: mqtt://HOST:PORT or mqtts://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// The first day to replay, in UTC
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub from: Option<icestore::replay::Day>,
    /// The last day to replay, in UTC
    #[arg(long, value_name = "YYYY-MM-DD")]
    pub until: Option<icestore::replay::Day>,
    /// Only messages archived under this location; may be given more than once
    #[arg(long, value_name = "ID")]
    pub location: Vec<String>,
    /// Only messages of this device; may be given more than once
    #[arg(long, value_name = "ID")]
    pub device: Vec<String>,
    /// How fast: `max`, `500/s`, or `1x`, `60x` by the messages' own times
    #[arg(long, value_name = "RATE", default_value = "max")]
    pub rate: String,
    /// Give every message a new id
    #[arg(long, conflicts_with = "broker")]
    pub new_ids: bool,
    /// Most memory, in MiB, for messages of objects whose times overlap
    #[arg(long, value_name = "MIB", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub memory: u32,
    /// How many MQTT connections; all messages of one device go through one of them
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub connections: u16,
    /// Prefix of the MQTT client ids
    #[arg(long, value_name = "TEXT", default_value = "millstream-replay")]
    pub client_id: String,
    /// How to connect.
    #[command(flatten)]
    pub connection: ConnectionArgs,
}

/// `millstream check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Treat warnings as mistakes
    #[arg(long)]
    pub strict: bool,
}

/// `millstream books`.
#[derive(Debug, Args)]
#[command(after_help = "\
Compares, by message id, what each topic took with what warehouse, archive and dead letters hold. Works while
`millstream up` runs (what is still on its way counts as pending) and after it has stopped or crashed.
Exit code 3 when an id is missing somewhere; every such id is named.")]
pub struct BooksArgs {
    /// One JSON document
    #[arg(long)]
    pub json: bool,
    /// Also read every archive object and compare its lines with the index
    #[arg(long)]
    pub deep: bool,
    /// With `bus.kind: pubsub`: a folder with ledgers of ingestion, once for each replica [default: ledger below the data
    /// folder]
    #[arg(long, value_name = "DIR")]
    pub ledger: Vec<PathBuf>,
    /// With `bus.kind: pubsub`: younger messages that a sink has not yet are on their way and not missing
    #[arg(long, value_name = "AGE", default_value = "10m")]
    pub pending_age: String,
}

/// `millstream dead-letters …`.
#[derive(Debug, Subcommand)]
pub enum DeadLettersCommand {
    /// One line per dead letter: when, stage, reason, state, id, device
    List {
        /// Which.
        #[command(flatten)]
        selection: LetterSelection,
        /// Only those in this state; `retried` and `dropped` ones have no payload any more
        #[arg(long, value_name = "STATE", default_value = "dead", value_parser = ["dead", "retried", "dropped", "all"])]
        state: String,
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        /// One JSON document a line
        #[arg(long)]
        json: bool,
    },
    /// All about one: reason, attempts, times, attributes and the beginning of the payload
    Show {
        /// Message id
        id: String,
        /// Only the letter of this stage, where several gave the message up
        #[arg(long, value_name = "STAGE")]
        stage: Option<String>,
        /// Print the payload's bytes and nothing else
        #[arg(long)]
        payload: bool,
        /// One JSON document a letter, with the whole payload
        #[arg(long, conflicts_with = "payload")]
        json: bool,
    },
    /// Bring messages back to the stage that gave them up, once what was wrong is mended
    #[command(after_help = "\
A message comes back with its original bytes, attributes and id, and its attempts begin anew; the stages that have it
already do not store it twice. One that fails again is a dead letter again. Works beside a running `millstream up` and
without one. Exit code 1 when a letter is not there or cannot be retried.

Examples:
  millstream dead-letters retry 01a1fcb3-0833-7702-92ff-493c8485d8bc
  millstream dead-letters retry --stage bigquery --since 2h --dry-run
  millstream dead-letters retry --all")]
    Retry(LetterWork),
    /// Give messages up for good; who, when and why stay in the books
    #[command(after_help = "\
Payload and attributes are deleted. The record that a person dropped the message stays, and is its outcome in the books.

Example:
  millstream dead-letters drop --device test-07 --why 'test device'")]
    Drop {
        /// Which.
        #[command(flatten)]
        letters: LetterWork,
        /// Why they are not wanted any more
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// Also letters on Pub/Sub of which parts are missing: what has come of them is deleted, the rest stays
        #[arg(long)]
        torn: bool,
    },
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let example =
        "an IP address and a port are needed, such as 127.0.0.1:1883, or 0.0.0.0:1883 for all interfaces";
    text.parse().map_err(|_| example.to_owned())
}

/// Which dead letters.
#[derive(Debug, Clone, Default, Args)]
pub struct LetterSelection {
    /// Only those of this stage: ingestion, enrichment, bigquery, icestore; on Pub/Sub also forward and pubsub
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<String>,
    /// Only those with this reason
    #[arg(long, value_name = "REASON")]
    pub reason: Option<String>,
    /// Only those of this device
    #[arg(long, value_name = "ID")]
    pub device: Option<String>,
    /// Only those given up since then: a time, or how long ago (2h)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only those given up before: a time, or how long ago (7d)
    #[arg(long, value_name = "TIME")]
    pub before: Option<String>,
}

/// Dead letters to work on.
#[derive(Debug, Clone, Args)]
pub struct LetterWork {
    /// Message ids
    #[arg(value_name = "ID")]
    pub ids: Vec<String>,
    /// Which.
    #[command(flatten)]
    pub selection: LetterSelection,
    /// All there are
    #[arg(long, conflicts_with = "ids")]
    pub all: bool,
    /// Only say how many
    #[arg(long)]
    pub dry_run: bool,
}

/// `millstream devices …`.
#[derive(Debug, Subcommand)]
pub enum DevicesCommand {
    /// Add or change devices from CSV (with a header) or NDJSON
    #[command(after_help = "\
Columns: device_id (required), client_id, location_id, category and any further ones; all of them are added to the
device's messages. Lines that are refused are named with their number and reason; the good ones are kept and the exit
code is 1. A running `millstream up` on the same data folder sees the change within seconds.

Example:
  device_id,client_id,location_id,category
  A81758FFFE04B1C1,acme,grenoble,climate")]
    Import {
        /// CSV or NDJSON file; - is standard input
        file: PathBuf,
    },
    /// One line per device
    List {
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        /// Start after this device id
        #[arg(long, value_name = "ID")]
        after: Option<String>,
        /// One JSON document a line
        #[arg(long)]
        json: bool,
    },
    /// All about one device
    Show {
        /// Device id
        id: String,
    },
}

/// `millstream query`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millstream query 'SELECT device_id, count(*) AS n, max(received_at) FROM messages GROUP BY device_id ORDER BY n DESC'
  millstream query --format csv 'SELECT received_at, value FROM messages' > values.csv")]
pub struct QueryArgs {
    /// One SELECT statement (SQLite's SQL); the table is called `messages`
    pub sql: String,
    /// How to print the rows
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: QueryFormat,
}

/// How `query` prints rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QueryFormat {
    /// Aligned columns for people.
    Table,
    /// One JSON array of objects.
    Json,
    /// Comma-separated values with a header.
    Csv,
}

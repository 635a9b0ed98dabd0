//! The crash campaign: devices publish, the program is killed again and again, and in the end every message with an
//! acknowledgement is in warehouse and archive exactly once.
//!
//! What a seed decides: how the program is killed each time, when, what is torn afterwards, and the devices' windows.
//! It does not decide how the machine schedules; a seed that failed finds the defect again, not at the same byte.
//!
//! `MILLSTREAM_CAMPAIGN_SEED` repeats a seed, `MILLSTREAM_CAMPAIGN_KILLS` sets the number of kills.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../devices/mod.rs"]
mod devices;
mod process;
mod random;
mod torn;
mod verify;

use devices::{DEVICES, Devices, Line, Payloads, Version, device_id};
use process::Installation;
use random::Random;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// Longest time any one step may take; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(180);
/// Kills without `MILLSTREAM_CAMPAIGN_KILLS`.
const KILLS: usize = 30;
/// Small groups and short ages, so that every kill finds all stages in the middle of something.
const SETTINGS: &str = "
bigquery:
  batch: {count: 100, age: 20ms}
icestore:
  batch: {count: 300, age: 150ms}
";

/// How the program is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kill {
    /// While devices publish.
    Publishing,
    /// Before it is ready.
    StartUp,
    /// After SIGTERM, while it finishes what is in flight.
    Drain,
    /// While `up --until-drained` works the backlog off.
    UntilDrained,
}

/// One campaign.
struct Campaign {
    name: &'static str,
    seed: u64,
    kills: usize,
    qos: u8,
    settings: String,
    /// Whether a message that was sent again may be there twice.
    doubles: bool,
}

/// What was done, for the report.
#[derive(Default)]
struct Tally {
    kills: BTreeMap<Kill, usize>,
    /// The process had ended by itself before the kill came.
    missed: usize,
    torn_logs: usize,
    torn_objects: usize,
    lines: Vec<Line>,
}

impl Campaign {
    fn new(name: &'static str, share: usize, settings: &str) -> Self {
        let kills = number("MILLSTREAM_CAMPAIGN_KILLS").map_or(KILLS, |kills| usize::try_from(kills).unwrap());
        Self {
            name,
            seed: number("MILLSTREAM_CAMPAIGN_SEED").unwrap_or_else(another_seed),
            kills: (kills / share).max(4),
            qos: 1,
            settings: format!("{SETTINGS}{settings}"),
            doubles: true,
        }
    }

    /// Runs it; a failure names the seed and leaves the data folder.
    fn prove(self) {
        let seed = self.seed;
        say(&format!("{}: MILLSTREAM_CAMPAIGN_SEED={seed}, {} kills", self.name, self.kills));
        let installation = Installation::new(&self.settings);
        let result = catch_unwind(AssertUnwindSafe(|| self.run(&installation)));
        let failure = match result {
            Ok(Ok(report)) => return say(&report),
            Ok(Err(failure)) => failure,
            Err(panic) => panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_default(),
        };
        let log = installation.log_tail();
        let folder = installation.keep();
        panic!("MILLSTREAM_CAMPAIGN_SEED={seed}: {failure}\nfolder: {}\n{log}", folder.display());
    }

    fn run(&self, installation: &Installation) -> Result<String, String> {
        register_devices(installation)?;
        let mut random = Random::new(self.seed);
        let mut tally = Tally::default();
        let versions = [Version::V311, Version::V5, Version::V311, Version::V5, Version::V5];
        tally.lines.extend(versions.map(|version| Line { version, window: 20 + random.below(81) }));
        let payloads = Arc::new(Payloads::new(self.name));
        let devices = Devices::start(&payloads, installation.port, self.qos, &tally.lines);
        let mut start_up = Duration::from_millis(300);
        while tally.kills.values().sum::<usize>() < self.kills {
            self.kill(installation, &devices, &mut random, &mut start_up, &mut tally)?;
            if random.below(3) == 0 {
                tally.torn_logs += torn::tear_logs(&installation.data(), &mut random);
            }
            if random.below(3) == 0 {
                tally.torn_objects += torn::tear_objects(&installation.data(), &mut random);
            }
        }
        let mut last = installation.up(&[]);
        last.ready(PATIENCE)?;
        let record = devices.finish(PATIENCE)?;
        last.terminate();
        expect_success("up", last.end(PATIENCE)?)?;
        drain_and_balance(installation)?;
        let counts = verify::compare(&installation.data(), &payloads, &record)?;
        let windows: usize = tally.lines.iter().map(|line| line.window).sum();
        let bound = if self.doubles { tally.kills.values().sum::<usize>() * windows } else { 0 };
        if counts.doubles > bound {
            return Err(format!("{} doubles where at most {bound} may be: {counts:?}", counts.doubles));
        }
        Ok(self.report(&tally, &counts, record.breaks))
    }

    /// One start and its kill.
    fn kill(
        &self,
        installation: &Installation,
        devices: &Devices,
        random: &mut Random,
        start_up: &mut Duration,
        tally: &mut Tally,
    ) -> Result<(), String> {
        let kill = match random.below(10) {
            0..5 => Kill::Publishing,
            5..7 => Kill::StartUp,
            7..9 => Kill::Drain,
            _ => Kill::UntilDrained,
        };
        let times = if kill == Kill::StartUp { 1 + random.below(5) } else { 1 };
        for _ in 0..times {
            // A backlog that grows without end would make the last drain the longest part.
            devices.allow((1_500 + random.below(1_500)).saturating_sub(devices.open()));
            let arguments: &[&str] = if kill == Kill::UntilDrained { &["--until-drained"] } else { &[] };
            let mut process = installation.up(arguments);
            if kill == Kill::StartUp {
                std::thread::sleep(start_up.mul_f64(random.below(1_100) as f64 / 1_000.0));
            } else {
                *start_up = process.ready(PATIENCE)?;
                std::thread::sleep(Duration::from_millis(random.below(400) as u64));
            }
            if kill == Kill::Drain {
                process.terminate();
                std::thread::sleep(Duration::from_millis(random.below(60) as u64));
            }
            tally.missed += usize::from(!process.kill());
            *tally.kills.entry(kill).or_default() += 1;
        }
        Ok(())
    }

    fn report(&self, tally: &Tally, counts: &verify::Counts, breaks: usize) -> String {
        let mut text = format!("{} (seed {}):", self.name, self.seed);
        for (kill, count) in &tally.kills {
            write!(text, " {kill:?} {count},").unwrap();
        }
        let windows: Vec<_> = tally.lines.iter().map(|line| line.window).collect();
        write!(
            text,
            " ended before the kill {}; torn logs {}, torn objects {}; windows {windows:?}, connections broken {breaks}; \
             sent {}, acknowledged {}, sent again {}, rows {}, doubles {}",
            tally.missed,
            tally.torn_logs,
            tally.torn_objects,
            counts.sent,
            counts.acked,
            counts.resent,
            counts.rows,
            counts.doubles
        )
        .unwrap();
        text
    }
}

fn register_devices(installation: &Installation) -> Result<(), String> {
    let mut csv = "device_id,client_id,location_id,category\n".to_owned();
    for device in (0..DEVICES).map(device_id) {
        writeln!(csv, "{device},client-of-{device},location-{},meter", device.len() + csv.len() % 3).unwrap();
    }
    std::fs::write(installation.folder().join("devices.csv"), csv).unwrap();
    let output = installation.run(&["devices", "import", "devices.csv"]);
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn expect_success(what: &str, status: std::process::ExitStatus) -> Result<(), String> {
    if status.success() { Ok(()) } else { Err(format!("{what} ended with {status}")) }
}

/// Works everything off, then asks the books, also with every object read again.
fn drain_and_balance(installation: &Installation) -> Result<(), String> {
    let mut up = installation.up(&["--until-drained"]);
    expect_success("up --until-drained", up.end(PATIENCE)?)?;
    let books = installation.run(&["books", "--deep", "--json"]);
    let text = String::from_utf8_lossy(&books.stdout);
    let report: serde_json::Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
    if report["balanced"] != true || !books.status.success() {
        return Err(format!("books: {}\n{report:#}\n{}", books.status, String::from_utf8_lossy(&books.stderr)));
    }
    Ok(())
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Another one each time.
fn another_seed() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_nanos() as u64 % 1_000_000_007
}

/// Past the harness, which shows the output of failed tests only.
fn say(text: &str) {
    // A test that cannot say it still proves it.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn kills_lose_nothing_acknowledged_and_double_only_what_was_sent_again() {
    Campaign::new("crash campaign at QoS 1", 1, "").prove();
}

#[test]
fn kills_double_nothing_when_the_devices_number_their_messages() {
    let settings = "ingestion:\n  message_id: {pointer: /number}\n";
    let campaign = Campaign::new("crash campaign with trusted ids", 2, settings);
    Campaign { doubles: false, ..campaign }.prove();
}

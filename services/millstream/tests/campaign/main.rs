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
#[path = "../rig/mod.rs"]
mod rig;
mod torn;

use rig::devices::{self, Client, Devices, Line, Payloads, Record, Version};
use rig::installation::Installation;
use rig::random::Random;
use rig::stored::{self, Counts};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    clients: [Client; 5],
    settings: String,
    /// Whether a message that was sent again may be there twice.
    doubles: bool,
}

/// What was done, for the report.
#[derive(Default)]
struct Tally {
    kills: Vec<Kill>,
    /// The process had ended by itself before the kill came, which is none.
    missed: usize,
    torn_logs: usize,
    torn_objects: usize,
    lines: Vec<Line>,
}

impl Campaign {
    fn new(name: &'static str, share: usize, settings: &str) -> Self {
        let kills =
            number("MILLSTREAM_CAMPAIGN_KILLS").map_or(KILLS, |kills| usize::try_from(kills).unwrap());
        Self {
            name,
            seed: number("MILLSTREAM_CAMPAIGN_SEED").unwrap_or_else(another_seed),
            kills: (kills / share).max(4),
            clients: [Client::Rumqttc; 5],
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
        installation.register(&devices::registry());
        let mut random = Random::new(self.seed);
        let mut tally = Tally::default();
        let versions = [Version::V311, Version::V5, Version::V311, Version::V5, Version::V5];
        for (client, version) in self.clients.into_iter().zip(versions) {
            tally.lines.push(Line { client, version, window: 20 + random.below(81) });
        }
        let payloads = Arc::new(Payloads::new(self.name));
        let devices = Devices::start(&payloads, installation.port, &tally.lines);
        let mut start_up = Duration::from_millis(300);
        while tally.kills.len() < self.kills {
            if 2 * tally.kills.len() >= self.kills {
                devices.switch_off();
            }
            self.kill(installation, &devices, &mut random, &mut start_up, &mut tally)?;
            devices.sound()?;
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
        last.end_well(PATIENCE)?;
        installation.drain_and_balance(PATIENCE)?;
        let counts = stored::compare(&installation.data(), &payloads, &record)?;
        let windows: usize = tally.lines.iter().map(|line| line.window).sum();
        // A process that ends by itself breaks its connections, too.
        let bound = if self.doubles { (tally.kills.len() + tally.missed) * windows } else { 0 };
        if counts.doubles.len() > bound {
            return Err(format!("{} doubles where at most {bound} may be: {counts:?}", counts.doubles.len()));
        }
        Ok(self.report(&tally, &counts, &record))
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
            match kill {
                Kill::StartUp => std::thread::sleep(start_up.mul_f64(random.below(1_100) as f64 / 1_000.0)),
                // It may have ended by itself before it says that it is ready.
                Kill::UntilDrained => std::thread::sleep(*start_up),
                Kill::Publishing | Kill::Drain => *start_up = process.ready(PATIENCE)?,
            }
            if kill != Kill::StartUp {
                std::thread::sleep(Duration::from_millis(random.below(400) as u64));
            }
            if kill == Kill::Drain {
                process.terminate();
                std::thread::sleep(Duration::from_millis(random.below(60) as u64));
            }
            let is_killed = process.kill();
            devices.wait_disconnected();
            if is_killed {
                tally.kills.push(kill);
            } else {
                tally.missed += 1;
            }
            devices.next_kill(tally.kills.len());
        }
        Ok(())
    }

    fn report(&self, tally: &Tally, counts: &Counts, record: &Record) -> String {
        let windows: Vec<_> = tally.lines.iter().map(|line| line.window).collect();
        let mut text = format!(
            "{} (seed {}): sent {}, acknowledged {}, sent again {}, rows {}, doubles {}\n",
            self.name,
            self.seed,
            counts.sent,
            counts.acked,
            counts.resent,
            counts.rows,
            counts.doubles.len()
        );
        for kind in [Kill::Publishing, Kill::StartUp, Kill::Drain, Kill::UntilDrained] {
            let kills = tally.kills.iter().filter(|kill| **kill == kind).count();
            // What was sent again after the last kill is charged to none.
            let doubles = counts.doubles.iter().filter(|kill| tally.kills.get(**kill) == Some(&kind)).count();
            text.push_str(&format!("  {kind:?}: kills {kills}, doubles {doubles}\n"));
        }
        let Tally { missed, torn_logs, torn_objects, .. } = tally;
        text.push_str(&format!(
            "  ended before the kill {missed}; torn logs {torn_logs}, torn objects {torn_objects}; \
             windows {windows:?}, connections broken {}, gone with a device {}",
            record.breaks,
            record.gone.len()
        ));
        text
    }
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

#[test]
fn kills_lose_nothing_and_double_nothing_at_qos_2() {
    // More than MQTT 5 clients may have in flight, so that their receive maximum is used up all the time.
    let settings = "ingestion:\n  mqtt: {receive_maximum: 40}\n";
    let campaign = Campaign::new("crash campaign at QoS 2", 2, settings);
    let clients = [Client::Strict, Client::Strict, Client::Strict, Client::Strict, Client::Mortal];
    Campaign { clients, doubles: false, ..campaign }.prove();
}

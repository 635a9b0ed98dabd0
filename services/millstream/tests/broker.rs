//! mosquitto between the devices and the program, with sessions on disk and no limit to its queues: what it
//! acknowledged arrives, whatever happens to the broker, to the bus or to the program in between.
//!
//! mosquitto acknowledges a device from memory and writes its sessions when it ends, so it is stopped as an operator
//! would and not killed.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "helpers of tests are tests"
)]

mod common;
mod rig;

use rig::devices::{self, Client, Devices, Line, Payloads, Record, Version};
use rig::installation::{Installation, Process};
use rig::proxy::{Proxy, Seen};
use rig::stored;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use testkit::servers::Mosquitto;

/// Longest time any one step may take; only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(180);
const MESSAGES: usize = 20_000;
/// What the broker may send without a PUBACK.
const RECEIVE_MAXIMUM: usize = 200;
const LINES: [Line; 4] = [
    Line { client: Client::Rumqttc, version: Version::V5, window: 20 },
    Line { client: Client::Rumqttc, version: Version::V311, window: 50 },
    Line { client: Client::Rumqttc, version: Version::V5, window: 100 },
    Line { client: Client::Rumqttc, version: Version::V311, window: 100 },
];

/// Devices → mosquitto → proxy → `millstream up`.
struct Path {
    messages: usize,
    broker: Mosquitto,
    proxy: Proxy,
    payloads: Arc<Payloads>,
    devices: Devices,
    installation: Installation,
}

impl Path {
    fn new(test: &str, version: &str, messages: usize) -> Option<Self> {
        let broker = Mosquitto::start(test, &["max_queued_messages 0"])?;
        let payloads = Arc::new(Payloads::new(test));
        let proxy = Proxy::start(broker.port(), &payloads);
        let settings = format!(
            "ingestion:
  broker:
    url: mqtt://127.0.0.1:{}
    client_id: millstream-campaign
    version: {version:?}
    allow_anonymous: true
    keep_alive: 4s
    reconnect_min: 50ms
    reconnect_max: 500ms
    receive_maximum: {RECEIVE_MAXIMUM}
    topics:
      - filter: devices/#
",
            proxy.port
        );
        let installation = Installation::new(&settings);
        installation.register(&devices::registry());
        let devices = Devices::start(&payloads, broker.port(), &LINES);
        Some(Self { messages, broker, proxy, payloads, devices, installation })
    }

    /// Waits until what passed by is as wanted.
    fn wait(&self, what: &str, is: impl Fn(&Seen) -> bool) {
        let start = Instant::now();
        while !is(&self.proxy.seen()) {
            assert!(start.elapsed() < PATIENCE, "{what}\n{}", self.installation.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Lets everything arrive and compares.
    fn finish(self, test: &str, mut up: Process) {
        let start = Instant::now();
        while self.devices.open() > 0 {
            assert!(start.elapsed() < PATIENCE, "{} messages are not acknowledged", self.devices.open());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.wait("not all messages reach the program", |seen| {
            seen.deliveries.len() == self.messages && seen.is_settled()
        });
        up.terminate();
        up.end_well(PATIENCE).unwrap();
        let Self { messages, broker, proxy, payloads, devices, installation } = self;
        drop(broker);
        let mut record = devices.finish(PATIENCE).unwrap();
        let resent = record.resent.values().map(Vec::len).sum::<usize>();
        let seen = proxy.seen();
        allow_redeliveries(&mut record, &seen);
        std::fs::remove_file(installation.folder().join("millstream.yaml")).unwrap();
        installation.drain_and_balance(PATIENCE).unwrap();
        let counts = stored::compare(&installation.data(), &payloads, &record).unwrap();
        let line = format!(
            "{test}: sent {}, acknowledged {}, sent again by devices {resent}, sent again by mosquitto {}, rows {}, \
             doubles {}, connections {}, pings {}",
            counts.sent,
            counts.acked,
            seen.redelivered(),
            counts.rows,
            counts.doubles.len(),
            seen.connections.len(),
            seen.pings()
        );
        // Past the harness, which shows the output of failed tests only.
        let _ = writeln!(std::io::stderr(), "{line}");
        seen.acknowledged_in_order().unwrap();
        assert_eq!(counts.acked, messages);
    }
}

/// A message may be there as often as the broker sent it, and no oftener.
fn allow_redeliveries(record: &mut Record, seen: &Seen) {
    for (number, count) in &seen.deliveries {
        record.resent.insert(*number, vec![0; count - 1]);
    }
}

#[test]
fn mosquitto_restarts_while_the_bus_stalls_longer_than_the_keep_alive_and_nothing_is_lost() {
    let test = "mosquitto restart with a stalled bus";
    let Some(mut path) = Path::new(test, "5", MESSAGES) else { return };
    let mut up = path.installation.up(&[]);
    up.ready(PATIENCE).unwrap();
    path.devices.allow(MESSAGES / 2);
    path.wait("the first messages do not arrive", |seen| seen.acknowledged() > MESSAGES / 10);

    // Who holds the write lock stops every commit; the network task must go on all the same.
    let bus = rusqlite::Connection::open(path.installation.data().join("bus.db")).unwrap();
    bus.busy_timeout(PATIENCE).unwrap();
    bus.execute_batch("BEGIN IMMEDIATE").unwrap();
    let stalled = path.proxy.seen();
    let pings = stalled.pings();
    path.devices.allow(MESSAGES / 4);
    // mosquitto breaks a connection off after 6 s of silence: three pings 4 s apart outlive that.
    path.wait("no pings while the bus stalls", |seen| seen.pings() >= pings + 3);
    assert_eq!(
        path.proxy.seen().connections.len(),
        stalled.connections.len(),
        "the stall broke the connection"
    );

    path.devices.allow(MESSAGES / 4);
    path.broker.restart();
    path.wait("no new connection", |seen| seen.connections.len() > stalled.connections.len());
    path.wait("no pings after the restart", |seen| {
        seen.connections.last().is_some_and(|last| last.pings >= 2)
    });
    bus.execute_batch("COMMIT").unwrap();
    drop(bus);
    path.finish(test, up);
}

#[test]
fn kills_of_the_program_behind_mosquitto_lose_nothing_and_double_only_what_it_sends_again() {
    for (version, messages) in [("5", MESSAGES), ("3.1.1", MESSAGES / 4)] {
        let test = format!("kills behind mosquitto, MQTT {version}");
        let Some(path) = Path::new(&test, version, messages) else { return };
        let mut up = path.installation.up(&[]);
        up.ready(PATIENCE).unwrap();
        path.devices.allow(messages);
        for kill in 1..=4 {
            path.wait("messages do not arrive", |seen| seen.acknowledged() > kill * messages / 6);
            up.kill();
            up = path.installation.up(&[]);
            up.ready(PATIENCE).unwrap();
        }
        path.finish(&test, up);
    }
}

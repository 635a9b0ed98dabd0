//! Devices that publish, with clients that share no line with the product's feed.
//!
//! Every message carries a number of its own in its payload, so that what arrives can be compared with what was sent
//! without trusting an id of the product's. A device keeps a window of messages in flight, reconnects for ever, and
//! sends again what has no acknowledgement when its connection broke.

use super::{rumqttc, strict};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Between two attempts to connect.
pub(super) const RECONNECT: Duration = Duration::from_millis(10);
/// Between two looks at what the test wants.
pub(super) const LOOK: Duration = Duration::from_millis(5);

/// The texts that messages are made of.
pub(crate) struct Payloads(Vec<Vec<u8>>);

impl Payloads {
    /// Lines of the recordings where they are, else generated ones of the same shape and size.
    pub(crate) fn new(test: &str) -> Self {
        let lines = match crate::common::recordings(test) {
            Some(files) => crate::common::lines_of(&files),
            None => (0..1_000).map(generated).collect(),
        };
        assert!(lines.iter().all(|line| line.starts_with(b"{\"")), "every line is a JSON object with fields");
        Self(lines)
    }

    /// The payload of message `number`: a line with the number as its first field.
    pub(crate) fn payload(&self, number: usize) -> Vec<u8> {
        let mut payload = format!("{{\"number\":{number},").into_bytes();
        payload.extend_from_slice(&self.0[number % self.0.len()][1..]);
        payload
    }

    /// The number in a payload, which must be what was sent under it byte for byte.
    pub(crate) fn number(&self, payload: &[u8]) -> usize {
        let digits = payload.strip_prefix(b"{\"number\":").and_then(|rest| rest.split(|b| *b == b',').next());
        let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        let number = number.unwrap_or_else(|| panic!("not sent: {}", String::from_utf8_lossy(payload)));
        assert!(self.payload(number) == payload, "message {number} was changed on the way");
        number
    }
}

fn generated(n: usize) -> Vec<u8> {
    let stamp = 1_630_589_706_147 + n * 1_000;
    let hotspot = format!(
        r#"{{"channel":{},"frequency":867.9000244140625,"id":"111KEcyjmMxhvUK85fP3","rssi":-{},"snr":-20,"spreading":"SF11BW125"}}"#,
        n % 8,
        60 + n % 60
    );
    let hotspots = vec![hotspot; 1 + n % 6].join(",");
    format!(
        r#"{{"name":"größe {n}","dev_eui":"0018B2000002{:04X}","fcnt":{n},"hotspots":[{hotspots}],"_timestamp":{stamp},"decoded":{{"payload":{{"temperature":{}.5,"batteryVoltage":4087}}}}}}"#,
        n % 50,
        n % 40
    )
    .into_bytes()
}

/// The identifier of the device that sends message `number`.
pub(crate) fn device_id(number: usize) -> String {
    format!("dev-{:02}", number % DEVICES)
}

/// Devices behind the connections.
const DEVICES: usize = 24;

/// The registry of all devices, as `millstream devices import` reads it.
pub(crate) fn registry() -> String {
    let mut csv = "device_id,client_id,location_id,category\n".to_owned();
    for number in 0..DEVICES {
        let (device, location) = (device_id(number), number % 3);
        csv.push_str(&format!("{device},client-of-{device},location-{location},meter\n"));
    }
    csv
}

/// MQTT's version of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V311,
    V5,
}

/// What speaks MQTT on a connection.
///
/// At QoS 2 no library does so well enough to be a judge. rumqttc 0.34 repeats nothing any more, on no later connection,
/// when one breaks while it still repeats what the one before left; it must [MQTT-4.4.0-1]. paho-mqtt 2.1 then sends a
/// PUBLISH after the PUBREL of the same message, which it must not [MQTT-4.3.3-1], and so doubles it itself.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Client {
    /// rumqttc at QoS 1.
    Rumqttc,
    /// The letter of the specification at QoS 2.
    Strict,
    /// The same, in a device that ends for good where [`Devices::switch_off`] finds it.
    Mortal,
}

/// One connection and how many messages it keeps in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) client: Client,
    pub(crate) version: Version,
    pub(crate) window: usize,
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) payloads: Arc<Payloads>,
    pub(super) port: u16,
    /// The next message nobody has sent yet.
    next: AtomicUsize,
    /// Messages up to here may be sent.
    allowed: AtomicUsize,
    pub(super) stop: AtomicBool,
    pub(super) switched_off: AtomicBool,
    /// Connections that are there.
    connected: AtomicUsize,
    /// Which kill the test is at; a connection that breaks is charged to it.
    pub(super) kill: AtomicUsize,
    pub(super) record: Mutex<Record>,
}

impl Shared {
    /// The next message to be sent, if one may be.
    pub(super) fn take(&self) -> Option<usize> {
        let allowed = self.allowed.load(Ordering::Relaxed);
        let taken = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| (next < allowed).then_some(next + 1));
        let number = taken.ok()?;
        self.record.lock().sent += 1;
        Some(number)
    }

    /// Notes a connection that came about.
    pub(super) fn connected(&self) {
        self.connected.fetch_add(1, Ordering::Release);
    }

    /// Notes that it is gone. What was to be written into the record for it is there.
    pub(super) fn disconnected(&self) {
        self.connected.fetch_sub(1, Ordering::Release);
    }
}

/// What became of the messages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// Messages that were handed to a connection.
    pub(crate) sent: usize,
    /// Messages that the program has answered for, by number: with PUBACK, or at QoS 2 with PUBCOMP, and from devices
    /// that were switched off also those with PUBREC.
    pub(crate) acked: BTreeSet<usize>,
    /// The kills at which a message had no acknowledgement when its connection broke, so that it was sent again.
    pub(crate) resent: BTreeMap<usize, Vec<usize>>,
    /// Messages that went with the device that was switched off, unanswered. They may have arrived.
    pub(crate) gone: BTreeSet<usize>,
    /// Times that a connection broke.
    pub(crate) breaks: usize,
    /// What was refused for good, or answered against the specification; nothing should be.
    pub(crate) refused: Vec<String>,
    /// Why a connection ended or did not come about, the last time, by the name of its client.
    pub(crate) trouble: BTreeMap<String, String>,
}

/// All devices, on threads of their own.
pub(crate) struct Devices {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Runtime,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Devices {
    /// Starts one task per line against `port`. They send nothing before [`Devices::allow`].
    pub(crate) fn start(payloads: &Arc<Payloads>, port: u16, lines: &[Line]) -> Self {
        let shared = Arc::new(Shared {
            payloads: Arc::clone(payloads),
            port,
            next: AtomicUsize::new(0),
            allowed: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            switched_off: AtomicBool::new(false),
            connected: AtomicUsize::new(0),
            kill: AtomicUsize::new(0),
            record: Mutex::default(),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let start = |(index, line): (usize, &Line)| {
            let (shared, name, line) = (Arc::clone(&shared), format!("line-{index}"), *line);
            match line.client {
                Client::Rumqttc => runtime.spawn(rumqttc::publish(shared, name, line)),
                Client::Strict | Client::Mortal => {
                    on_thread(&runtime, move || strict::publish(&shared, name, &line))
                }
            }
        };
        let tasks = lines.iter().enumerate().map(start).collect();
        Self { shared, runtime, tasks }
    }

    /// Lets the devices send `more` messages than they were allowed so far.
    pub(crate) fn allow(&self, more: usize) {
        self.shared.allowed.fetch_add(more, Ordering::Relaxed);
    }

    /// Says which kill comes next.
    pub(crate) fn next_kill(&self, kill: usize) {
        self.shared.kill.store(kill, Ordering::Relaxed);
    }

    /// Ends the devices that are mortal, as soon as their connection breaks.
    pub(crate) fn switch_off(&self) {
        self.shared.switched_off.store(true, Ordering::Relaxed);
    }

    /// What was refused so far, as an error.
    pub(crate) fn sound(&self) -> Result<(), String> {
        self.shared.record.lock().refused.first().map_or(Ok(()), |refused| Err(refused.clone()))
    }

    /// Waits until every connection has seen its end.
    pub(crate) fn wait_disconnected(&self) {
        while self.shared.connected.load(Ordering::Acquire) > 0 {
            std::thread::sleep(LOOK);
        }
    }

    /// Messages acknowledged so far.
    pub(crate) fn acked(&self) -> usize {
        self.shared.record.lock().acked.len()
    }

    /// Messages that may be sent and are not acknowledged yet.
    pub(crate) fn open(&self) -> usize {
        let record = self.shared.record.lock();
        self.shared.allowed.load(Ordering::Relaxed) - record.acked.len() - record.gone.len()
    }

    /// Waits until everything that was allowed has its acknowledgement, and stops.
    pub(crate) fn finish(self, patience: Duration) -> Result<Record, String> {
        let start = Instant::now();
        while self.open() > 0 {
            self.sound()?;
            if start.elapsed() > patience {
                let trouble = self.shared.record.lock().trouble.clone();
                let open = self.open();
                return Err(format!("{open} messages have no acknowledgement; last trouble: {trouble:?}"));
            }
            std::thread::sleep(LOOK);
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            self.runtime.block_on(task).map_err(|error| error.to_string())?;
        }
        Ok(self.shared.record.lock().clone())
    }
}

/// A thread as a task. The thread itself may outlive the runtime, which would wait for a blocking task for ever.
fn on_thread(
    runtime: &tokio::runtime::Runtime,
    work: impl FnOnce() + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        work();
        // Nobody waits for the devices of a test that has failed.
        let _ = done.send(());
    });
    runtime.spawn(async { ended.await.unwrap() })
}

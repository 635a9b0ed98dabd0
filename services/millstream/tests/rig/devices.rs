//! Devices that publish: rumqttc's own event loops and sessions, which share no line with the product's feed.
//!
//! Every message carries a number of its own in its payload, so that what arrives can be compared with what was sent
//! without trusting an id of the product's. A device keeps a window of messages in flight, reconnects for ever, and
//! sends again what has no acknowledgement when its connection broke.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Between two attempts to connect.
const RECONNECT: Duration = Duration::from_millis(10);
/// Between two looks at what the test wants.
const LOOK: Duration = Duration::from_millis(5);
/// Longest packet either way.
const PACKET: usize = 4 << 20;

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

/// One connection and how many messages it keeps in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) version: Version,
    pub(crate) window: usize,
}

/// What all connections share.
struct Shared {
    payloads: Arc<Payloads>,
    port: u16,
    qos: u8,
    /// The next message nobody has sent yet.
    next: AtomicUsize,
    /// Messages up to here may be sent.
    allowed: AtomicUsize,
    stop: AtomicBool,
    /// Connections that are there.
    connected: AtomicUsize,
    /// Which kill the test is at; a connection that breaks is charged to it.
    kill: AtomicUsize,
    record: Mutex<Record>,
}

/// What became of the messages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    /// Messages that were handed to a connection.
    pub(crate) sent: usize,
    /// Messages with their acknowledgement, by number.
    pub(crate) acked: BTreeSet<usize>,
    /// The kills at which a message had no acknowledgement when its connection broke, so that it was sent again.
    pub(crate) resent: BTreeMap<usize, Vec<usize>>,
    /// Messages that the client library itself gave up without an answer. rumqttc does so at QoS 2 when a connection
    /// breaks again while it still repeats what the one before left. Whether they arrive, nobody promised.
    pub(crate) abandoned: BTreeSet<usize>,
    /// Times that a connection broke.
    pub(crate) breaks: usize,
    /// What was refused for good; nothing should be.
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
    /// Starts one task per line against `port` at `qos` 1 or 2. They send nothing before [`Devices::allow`].
    pub(crate) fn start(payloads: &Arc<Payloads>, port: u16, qos: u8, lines: &[Line]) -> Self {
        let shared = Arc::new(Shared {
            payloads: Arc::clone(payloads),
            port,
            qos,
            next: AtomicUsize::new(0),
            allowed: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            connected: AtomicUsize::new(0),
            kill: AtomicUsize::new(0),
            record: Mutex::default(),
        });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let start = |(index, line): (usize, &Line)| {
            runtime.spawn(publish(Arc::clone(&shared), format!("line-{index}"), *line))
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
        self.shared.allowed.load(Ordering::Relaxed) - record.acked.len() - record.abandoned.len()
    }

    /// Waits until everything that was allowed has its acknowledgement, and stops.
    pub(crate) fn finish(self, patience: Duration) -> Result<Record, String> {
        let start = Instant::now();
        while self.open() > 0 {
            let refused = self.shared.record.lock().refused.first().cloned();
            if start.elapsed() > patience || refused.is_some() {
                let trouble = self.shared.record.lock().trouble.clone();
                let open = self.open();
                return Err(format!(
                    "{open} messages have no acknowledgement; refused: {refused:?}, last trouble: {trouble:?}"
                ));
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

/// One connection's work: fills its window, waits for acknowledgements, sends again what was lost.
async fn publish(shared: Arc<Shared>, client_id: String, line: Line) {
    let (client, events) = Client::new(&client_id, shared.port, line);
    let breaks = Arc::new(Mutex::new(Vec::new()));
    let poller = tokio::spawn(poll(client_id, events, Arc::clone(&shared), Arc::clone(&breaks)));
    let (mut waiting, mut again) = (BTreeSet::new(), VecDeque::new());
    let mut answers = FuturesUnordered::new();
    loop {
        while answers.len() < line.window
            && let Some(number) = again.pop_front().or_else(|| take(&shared))
        {
            let answer = client.publish(shared.qos, number, shared.payloads.payload(number)).await;
            waiting.insert(number);
            answers.push(async move { (number, answer.await) });
        }
        let next = if answers.is_empty() {
            tokio::time::sleep(LOOK).await;
            None
        } else {
            tokio::time::timeout(LOOK, answers.next()).await.ok().flatten()
        };
        // All that is known of by now, before a break is charged to what is left.
        let ready = std::iter::from_fn(|| answers.next().now_or_never().flatten());
        let answered: Vec<(usize, Answer)> = next.into_iter().chain(ready).collect();
        let mut record = shared.record.lock();
        for (number, answer) in answered {
            match answer {
                Answer::Acknowledged => {
                    waiting.remove(&number);
                    record.acked.insert(number);
                }
                Answer::Lost => again.push_back(number),
                Answer::Abandoned => {
                    waiting.remove(&number);
                    record.abandoned.insert(number);
                }
                Answer::Refused(reason) => record.refused.push(format!("message {number}: {reason}")),
            }
        }
        for kill in breaks.lock().drain(..) {
            record.breaks += 1;
            waiting.iter().for_each(|number| record.resent.entry(*number).or_default().push(kill));
        }
        if shared.stop.load(Ordering::Relaxed) && waiting.is_empty() {
            break;
        }
    }
    poller.abort();
}

fn take(shared: &Shared) -> Option<usize> {
    let allowed = shared.allowed.load(Ordering::Relaxed);
    let taken = shared
        .next
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| (next < allowed).then_some(next + 1));
    let number = taken.ok()?;
    shared.record.lock().sent += 1;
    Some(number)
}

/// Drives the event loop; a connection that was there and is gone counts as a break.
async fn poll(client_id: String, mut events: Events, shared: Arc<Shared>, breaks: Arc<Mutex<Vec<usize>>>) {
    let mut connected = false;
    loop {
        match events.poll().await {
            Ok(()) if connected => {}
            Ok(()) => {
                connected = true;
                shared.connected.fetch_add(1, Ordering::Release);
            }
            Err(error) => {
                shared.record.lock().trouble.insert(client_id.clone(), error);
                if std::mem::take(&mut connected) {
                    breaks.lock().push(shared.kill.load(Ordering::Relaxed));
                    shared.connected.fetch_sub(1, Ordering::Release);
                }
                tokio::time::sleep(RECONNECT).await;
            }
        }
    }
}

/// How a publish ended.
enum Answer {
    Acknowledged,
    /// The session is gone with it; the device sends it again.
    Lost,
    Abandoned,
    Refused(String),
}

enum Client {
    V311(rumqttc_v4::AsyncClient),
    V5(rumqttc_v5::AsyncClient),
}

enum Events {
    V311(Box<rumqttc_v4::EventLoop>),
    V5(Box<rumqttc_v5::EventLoop>),
}

impl Events {
    async fn poll(&mut self) -> Result<(), String> {
        match self {
            Self::V311(events) => events.poll().await.map(drop).map_err(|error| error.to_string()),
            Self::V5(events) => events.poll().await.map(drop).map_err(|error| error.to_string()),
        }
    }
}

impl Client {
    fn new(client_id: &str, port: u16, line: Line) -> (Self, Events) {
        let window = u16::try_from(line.window).unwrap();
        match line.version {
            Version::V311 => {
                let mut options = rumqttc_v4::MqttOptions::new(client_id, ("127.0.0.1", port));
                options.set_session_mode(rumqttc_v4::SessionMode::Persistent);
                options.set_inflight(window).set_max_packet_size(PACKET, PACKET).set_keep_alive(30);
                let (client, events) =
                    rumqttc_v4::AsyncClient::builder(options).capacity(line.window).build();
                (Self::V311(client), Events::V311(Box::new(events)))
            }
            Version::V5 => {
                let mut options = rumqttc_v5::MqttOptions::new(client_id, ("127.0.0.1", port));
                options.set_session_mode(rumqttc_v5::SessionMode::Persistent);
                options.set_outgoing_inflight_upper_limit(window).set_keep_alive(30);
                let (client, events) =
                    rumqttc_v5::AsyncClient::builder(options).capacity(line.window).build();
                (Self::V5(client), Events::V5(Box::new(events)))
            }
        }
    }

    /// Queues a message; answers with how it will have ended.
    async fn publish(&self, qos: u8, number: usize, payload: Vec<u8>) -> BoxFuture<'static, Answer> {
        let topic = format!("devices/{}/up", device_id(number));
        match self {
            Self::V311(client) => {
                use rumqttc_v4::{PublishNoticeError, PublishOptions, QoS};
                let qos = if qos == 2 { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
                let notice = client.publish_tracked(topic, payload, PublishOptions::new(qos)).await.unwrap();
                Box::pin(async {
                    match notice.wait_completion_async().await {
                        Ok(()) => Answer::Acknowledged,
                        Err(PublishNoticeError::SessionReset) => Answer::Lost,
                        Err(PublishNoticeError::Recv) => Answer::Abandoned,
                        Err(error) => Answer::Refused(error.to_string()),
                    }
                })
            }
            Self::V5(client) => {
                use rumqttc_v5::mqttbytes::QoS;
                use rumqttc_v5::{PublishNoticeError, PublishOptions};
                let qos = if qos == 2 { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
                let notice = client.publish_tracked(topic, payload, PublishOptions::new(qos)).await.unwrap();
                Box::pin(async {
                    match notice.wait_completion_async().await {
                        Ok(()) => Answer::Acknowledged,
                        Err(PublishNoticeError::SessionReset) => Answer::Lost,
                        Err(PublishNoticeError::Recv) => Answer::Abandoned,
                        Err(error) => Answer::Refused(error.to_string()),
                    }
                })
            }
        }
    }
}

//! A rig with the services on it.

use crate::common::{Bag, bag, run, texts};
use crate::service::{SERVICES, Service};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use testkit::proxy::Proxy;
use testkit::rig::{BUCKET, Configuration, DATASET, Rig, RigOptions};

/// How long arriving may stand still, on emulators that share two cores with everything else.
const STANDSTILL: Duration = Duration::from_secs(90);
/// Rows read at a time.
const PAGE: usize = 2_000;
/// How often it is looked at: every look at the warehouse costs its emulator a whole table.
const LOOK: Duration = Duration::from_secs(1);

/// One rig at a time: two of them leave too little of a small machine to each.
static TURN: Mutex<()> = Mutex::new(());

/// The rig, and the replicas on it by service and number.
pub(crate) struct Installation {
    pub(crate) rig: Rig,
    /// The Cloud Storage fake and proxies run in it.
    runtime: tokio::runtime::Runtime,
    _turn: MutexGuard<'static, ()>,
    pub(crate) running: BTreeMap<(&'static str, usize), Service>,
    /// What every service takes from its environment; a test puts a proxy in.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Further settings of a section, indented below its name.
    pub(crate) settings: BTreeMap<&'static str, String>,
    /// `bus.pubsub.lease_extension`.
    pub(crate) lease: &'static str,
    /// `bigquery.google.mode`.
    pub(crate) bigquery_mode: &'static str,
    pub(crate) mqtt_url: String,
    pub(crate) redis_url: String,
}

impl Installation {
    /// A rig without services; `None` when a server is missing, which has been said.
    pub(crate) fn new(test: &str, options: RigOptions) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let rig = runtime.block_on(Rig::start(test, options))?;
        let environment = rig.environment();
        let Configuration { mqtt_url, redis_url, .. } = rig.configuration();
        Some(Self {
            rig,
            runtime,
            _turn: turn,
            running: BTreeMap::new(),
            environment,
            // Nobody waits a minute for the last object.
            settings: BTreeMap::from([("icestore", "  batch: {age: 5s}\n".to_owned())]),
            lease: "10s",
            bigquery_mode: "append",
            mqtt_url,
            redis_url,
        })
    }

    /// The same where no service dies and none is without Pub/Sub: leases last as long as in an ordinary installation, so
    /// that a machine with too much to do causes no redelivery.
    pub(crate) fn with_long_leases(test: &str) -> Option<Self> {
        let options = RigOptions { ack_deadline: Duration::from_secs(60), ..RigOptions::default() };
        Self::new(test, options).map(|installation| Self { lease: "60s", ..installation })
    }

    /// The configuration of replica `replica`, as a file. Replicas of ingestion share one subscription of the broker.
    fn configuration(&self, replica: usize) -> PathBuf {
        let data = self.data(replica);
        let configuration = Configuration {
            mqtt_url: self.mqtt_url.clone(),
            redis_url: self.redis_url.clone(),
            data,
            extra: String::new(),
        };
        let mut text = configuration
            .to_string()
            .replace("    dataset:", &format!("    mode: {}\n    dataset:", self.bigquery_mode))
            .replace("lease_extension: 10s", &format!("lease_extension: {}", self.lease))
            .replace("client_id: rig", &format!("client_id: rig-{replica}"))
            .replace("filter: \"#\"", "filter: \"$share/millstream/#\"");
        for (section, settings) in &self.settings {
            text = text.replace(&format!("\n{section}:\n"), &format!("\n{section}:\n{settings}"));
        }
        let path = self.rig.folder().join(format!("cloud-{replica}.yaml"));
        // A service that has just been started may be reading it.
        if std::fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            std::fs::write(&path, text).unwrap();
        }
        path
    }

    /// Data folder of replica `replica`.
    pub(crate) fn data(&self, replica: usize) -> PathBuf {
        self.rig.folder().join(format!("data-{replica}"))
    }

    /// Puts a proxy before the emulator whose address is in `variable`; services started from now on go through it.
    pub(crate) fn lead_through_proxy(&mut self, variable: &str) -> Proxy {
        let entry = self.environment.iter_mut().find(|(name, _)| *name == variable).unwrap();
        let is_url = entry.1.starts_with("http://");
        let proxy = self.runtime.block_on(Proxy::start(entry.1.trim_start_matches("http://")));
        entry.1 = if is_url { proxy.endpoint() } else { proxy.address() };
        proxy
    }

    /// Runs `future` beside the servers.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Starts a replica of `service`.
    pub(crate) fn start(&mut self, service: &'static str, replica: usize) {
        let configuration = self.configuration(replica);
        let folder = self.rig.folder().join(format!("{service}-{replica}"));
        let started = Service::start(service, &folder, &configuration, &self.environment);
        self.running.insert((service, replica), started);
    }

    /// A process of `service` has ended: Pub/Sub's emulator would go on delivering to its streams for a minute and a half.
    pub(crate) fn forget_reader(&self, service: &str) {
        if service != "ingestion" {
            self.rig.bus().end_streams(service);
        }
    }

    /// Starts `replicas` of every service and waits until all are ready.
    pub(crate) fn start_all(&mut self, replicas: usize) {
        self.start_each(SERVICES.map(|_| replicas));
    }

    /// The same with a number for each service, in the order of the path.
    pub(crate) fn start_each(&mut self, replicas: [usize; SERVICES.len()]) {
        for (service, replicas) in SERVICES.into_iter().zip(replicas) {
            for replica in 0..replicas {
                self.start(service, replica);
            }
        }
        self.running.values_mut().for_each(Service::ready);
    }

    /// SIGTERM to every service, in the order of the path; each must end well.
    pub(crate) fn stop_all(&mut self) {
        for service in SERVICES {
            let replicas: Vec<_> =
                self.running.keys().filter(|(name, _)| *name == service).copied().collect();
            for replica in replicas {
                let (status, log) = self.running.remove(&replica).unwrap().stop();
                assert_eq!(status.code(), Some(0), "{replica:?}:\n{log}");
            }
        }
    }

    /// Does `what` while `file` is played into the broker, all of which must be acknowledged.
    pub(crate) fn during_feed<T>(
        &mut self,
        file: &Path,
        rate: &str,
        what: impl FnOnce(&mut Self, &dyn Fn() -> bool) -> T,
    ) -> T {
        let (mqtt, folder) = (self.mqtt_url.clone(), self.rig.folder().to_owned());
        std::thread::scope(|scope| {
            let feed = scope.spawn(move || {
                run(&folder, &["feed", "--broker", &mqtt, "--rate", rate, file.to_str().unwrap()])
            });
            let done = what(self, &|| feed.is_finished());
            let output = feed.join().unwrap();
            let (stdout, stderr) = texts(&output);
            assert!(output.status.success(), "{stdout}\n{stderr}");
            done
        })
    }

    /// Plays `files` into the broker; all of it must be acknowledged.
    pub(crate) fn feed(&self, files: &[PathBuf], rate: &str) {
        let mut arguments = vec!["feed", "--broker", self.mqtt_url.as_str(), "--rate", rate];
        arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
        let output = run(self.rig.folder(), &arguments);
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    }

    /// Waits until both sinks have `count` distinct messages; while there are more every now and then, it waits on.
    pub(crate) fn wait_for(&self, count: usize) {
        self.wait("message_id", count, || self.lines().into_iter().map(|line| line.id.to_string()).collect());
    }

    /// The same by the messages' own numbers (`value`), where a message may have come in twice under two ids.
    pub(crate) fn wait_for_values(&self, count: usize) {
        let value = |line: icestore::ArchivedMessage| {
            serde_json::from_slice::<Value>(&line.payload).unwrap()["value"].to_string()
        };
        self.wait("value", count, || self.lines().into_iter().map(value).collect());
    }

    /// What the running consumers were delivered more than once, and how many leases ran out meanwhile.
    pub(crate) fn redeliveries(&self) -> String {
        let counts = self.running.iter().filter(|((name, _), _)| *name != "ingestion").map(
            |((name, replica), service)| {
                let count = |what: &str| service.counter(&format!("millstream_bus_{what}_total"), name);
                format!(
                    "{name} {replica}: {} delivered again, {} leases ran out",
                    count("redelivered"),
                    count("leases_expired")
                )
            },
        );
        counts.collect::<Vec<_>>().join("; ")
    }

    fn wait(&self, column: &str, count: usize, lines: impl Fn() -> BTreeSet<String>) {
        let (mut moved, mut before) = (Instant::now(), (0, 0));
        loop {
            let now = (self.rows_so_far(column).unwrap_or(before.0), lines().len());
            if now.0 >= count && now.1 >= count {
                return;
            }
            if now != before {
                (before, moved) = (now, Instant::now());
            }
            if moved.elapsed() > STANDSTILL {
                let states = self.running.iter().map(|((name, replica), service)| {
                    let count =
                        |what: &str| service.counter(&format!("millstream_messages_{what}_total"), name);
                    let (came, went) = (count("in"), count("out"));
                    format!("{name} {replica}: {came} in, {went} out\n{}", service.log_tail())
                });
                let states: Vec<_> = states.collect();
                panic!("{now:?} rows and lines of {count} arrived, and no more come:\n{}", states.join("\n"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Distinct values of a column of the warehouse; `None` when the emulator would not say just now.
    fn rows_so_far(&self, column: &str) -> Option<usize> {
        self.rig.bigquery.try_table(DATASET, "messages").ok()??;
        let sql = format!("SELECT COUNT(DISTINCT {column}) AS n FROM `{DATASET}.messages`");
        text(&self.rig.bigquery.try_query(&sql).ok()?.first()?["n"]).parse().ok()
    }

    /// Payloads of all rows. The emulator has not the memory for all of them in one answer.
    pub(crate) fn row_payloads(&self) -> Bag {
        let query = |sql: String| self.rig.bigquery.query(&sql);
        let ids = query(format!("SELECT DISTINCT message_id FROM `{DATASET}.messages` ORDER BY message_id"));
        let ids: Vec<_> = ids.into_iter().map(|row| text(&row["message_id"])).collect();
        let mut payloads = Vec::new();
        for page in ids.chunks(PAGE) {
            let (first, last) = (&page[0], &page[page.len() - 1]);
            let sql = format!(
                "SELECT payload FROM `{DATASET}.messages` WHERE message_id >= '{first}' AND message_id <= '{last}'"
            );
            let decode = |row: Value| base64_simd::STANDARD.decode_to_vec(text(&row["payload"])).unwrap();
            payloads.extend(query(sql).into_iter().map(decode));
        }
        bag(payloads)
    }

    /// All lines of the archive.
    pub(crate) fn lines(&self) -> Vec<icestore::ArchivedMessage> {
        let mut lines = Vec::new();
        for (name, bytes) in self.rig.storage.objects(BUCKET) {
            let mut text = Vec::new();
            icestore::decompress(&name, &bytes[..]).unwrap().read_to_end(&mut text).unwrap();
            let object = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.extend(object.map(|line| icestore::decode_line(line).unwrap()));
        }
        lines
    }

    /// Payloads of all lines.
    pub(crate) fn line_payloads(&self) -> Bag {
        bag(self.lines().into_iter().map(|line| line.payload.to_vec()))
    }

    /// `millstream books --json` over the ledgers of `replicas` replicas, when nothing is on its way.
    pub(crate) fn books(&self, replicas: usize) -> Value {
        let configuration = self.configuration(0);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_millstream"));
        command.arg("--config").arg(configuration).args(["books", "--json", "--pending-age", "0s"]);
        for replica in 0..replicas {
            command.arg("--ledger").arg(self.data(replica).join("ledger"));
        }
        let output =
            command.envs(self.environment.iter().map(|(name, value)| (name, value))).output().unwrap();
        let (stdout, stderr) = texts(&output);
        let report: Value =
            serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}\n{stderr}"));
        assert_eq!(report["balanced"], true, "{report:#}");
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert_eq!(report["dead_letters"], serde_json::json!([]), "{report:#}");
        report
    }

    /// Devices as `millstream devices import` takes them, into Firestore.
    pub(crate) fn import_devices(&self, csv: &str) {
        let file = self.rig.folder().join("devices.csv");
        std::fs::write(&file, csv).unwrap();
        self.rig.import_devices(Path::new(&file)).unwrap();
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a text and not {value}")).to_owned()
}

//! What happens in one seed: traffic, crashes, stops, outages, devices that appear; then the faults end, everything
//! drains, and the books are read.

use crate::books;
use crate::stores::{POISON_DEVICE, Stores};
use crate::system::{Config, Process};
use crate::world::{BEGIN, Event, Fault, Kind, Op, Random, Rates, VirtualClock, World};
use enrichment_service::UnknownDevicePolicy;
use messagepipeline::{Clock, ErrorClass, Message, MessageId, Timestamp, names};
use service_kit::config::{ByteSize, Duration as Setting};
use std::sync::Arc;
use std::time::Duration;
use testkit::memory::{Delays, MemoryBus, MemoryPublisher};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Virtual time after the faults within which everything must have drained.
const PATIENCE: Duration = Duration::from_secs(4 * 3_600);
/// How often the books are looked at while everything drains.
const LOOK: Duration = Duration::from_secs(15);
/// A second start within the same moment would spin when the service ends at once.
const RESTART: Duration = Duration::from_secs(1);
/// Longer than any call is waited for.
const LAST_CALLS: Duration = Duration::from_secs(700);
/// Time for a stop when nothing fails.
const LAST_STOP: Duration = Duration::from_secs(120);

/// What came of a seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) messages: usize,
    pub(crate) lives: u32,
    pub(crate) trace: Vec<Event>,
    pub(crate) violations: Vec<String>,
}

impl Report {
    pub(crate) fn faults(&self) -> usize {
        self.trace.iter().filter(|event| event.fault.is_some()).count()
    }
}

/// Runs `seed` to its end.
pub(crate) fn run(seed: u64) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut scenario = Scenario::new(seed);
        scenario.play().await;
        scenario.report()
    })
}

#[derive(Clone, Debug)]
enum Act {
    Publish(usize),
    Kill,
    Stop,
    Appear(u64),
    Outage(Op, Duration, ErrorClass),
}

struct Scenario {
    random: Random,
    config: Config,
    world: World,
    stores: Stores,
    clock: Arc<dyn Clock>,
    source: MemoryPublisher,
    drain: Duration,
    acts: Vec<(Duration, Act)>,
    /// A favoured kind of bad message, and one of how many messages is bad.
    bad: (Option<Kind>, u64),
    devices: u64,
    published: u64,
}

impl Scenario {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let fault = random.pick(&[6, 12, 25, 60, 200]);
        let rates =
            Rates { fault, receive: random.pick(&[15, 60, 300]), settle: random.pick(&[10, 60, 300]) };
        let world = World::new(Random::new(seed ^ 0x5EED), rates);
        let config = config(&mut random);
        let delays = Delays {
            lease: Some(Duration::from_secs(random.pick(&[120, 300, 600]))),
            nack: Duration::from_millis(random.pick(&[0, 500, 10_000])),
        };
        let bus = MemoryBus::with_delays(delays);
        for (topic, subscription) in
            [("mqtt", "ingestion"), ("raw", "enrichment"), ("enriched", "bigquery"), ("enriched", "icestore")]
        {
            bus.subscribe(topic, subscription);
        }
        let unknown_may_end = config.enrichment.unknown_device == UnknownDevicePolicy::DeadLetter;
        let stores = Stores::new(bus.clone(), random.pick(&[3, 1_000]), unknown_may_end);
        let devices = random.within(2, 6);
        let bad = (random.one_in(3).then(|| random.pick(&Kind::BAD)), random.pick(&[4, 10, 1_000]));
        let drain = Duration::from_secs(random.pick(&[0, 1, 10, 60]));
        let acts = acts(&mut random);
        let clock = Arc::new(VirtualClock(Instant::now()));
        let source = bus.publisher("mqtt");
        Self { random, config, world, stores, clock, source, drain, acts, bad, devices, published: 0 }
    }

    async fn play(&mut self) {
        for device in (0..self.devices).filter(|device| is_known(*device)) {
            self.stores.registry.add(&format!("d{device}"));
        }
        let mut process = self.start();
        let begun = Instant::now();
        for (at, act) in std::mem::take(&mut self.acts) {
            while timeout_until(begun + at, &mut process).await {
                sleep(RESTART).await;
                process = self.start();
            }
            process = self.act(act, process).await;
        }
        self.world.heal();
        self.settle_down(process).await;
        // What a start does: an object whose rename failed gets its name.
        self.stores.archive.lock().open();
        books::read(&self.world, &self.stores, self.config.enrichment.unknown_device);
    }

    fn start(&self) -> Process {
        Process::start(&self.world, &self.stores, &self.config, &self.clock, self.drain)
    }

    async fn act(&mut self, act: Act, process: Process) -> Process {
        match act {
            Act::Publish(count) => (0..count).for_each(|_| self.publish(None)),
            Act::Appear(device) => self.stores.registry.add(&format!("d{device}")),
            Act::Outage(op, time, class) => self.world.fails(op, time, class),
            Act::Kill => {
                process.kill();
                sleep(RESTART).await;
                return self.start();
            }
            Act::Stop => {
                self.world.note(Op::Process, 0, Some(Fault::Stop));
                process.shutdown.begin();
                if timeout(self.drain + Duration::from_secs(30), process.ended).await.is_err() {
                    self.world.violation("a stop takes longer than its deadline");
                }
                return self.start();
            }
        }
        process
    }

    /// Waits until every message has its ending, then stops.
    async fn settle_down(&mut self, mut process: Process) {
        let until = Instant::now() + PATIENCE;
        while !self.is_settled() {
            if Instant::now() >= until || !self.world.violations().is_empty() {
                self.tell_what_is_stuck();
                return process.kill();
            }
            if self.waits_for_neighbours() {
                // Whether a row is at fault shows only beside others that work.
                self.publish(Some(Kind::Good));
            }
            if timeout_until(Instant::now() + LOOK, &mut process).await {
                self.start_again(&mut process).await;
            }
        }
        // Calls that were never answered before the faults ended are given up on by then.
        sleep(LAST_CALLS).await;
        process.shutdown.begin();
        match timeout(LAST_STOP, &mut process.ended).await {
            Ok(Ok(outcome)) if outcome.failures.is_empty() && outcome.cut_short.is_none() => {}
            // With nothing in flight a drain of no time is cut short all the same.
            Ok(Ok(outcome)) if outcome.failures.is_empty() && self.drain.is_zero() => {}
            other => self.world.violation(format!("the last stop did not end well: {other:?}")),
        }
    }

    /// Whether a row at fault has no letter yet, or has one and came again because its settlement was lost.
    fn waits_for_neighbours(&self) -> bool {
        let flaky = self.world.kinds().into_iter().any(|(_, kind)| kind == Kind::FlakyRow);
        let misses = self.stores.endings.misses(&self.world, Kind::FlakyRow, "bigquery");
        flaky && (misses || self.stores.bus.unsettled("bigquery") > 0)
    }

    async fn start_again(&self, process: &mut Process) {
        sleep(RESTART).await;
        *process = self.start();
    }

    fn is_settled(&self) -> bool {
        let bus = &self.stores.bus;
        let open = ["ingestion", "enrichment", "bigquery", "icestore"].map(|stage| bus.unsettled(stage));
        open == [0; 4] && self.stores.lot.lock().is_empty()
    }

    fn tell_what_is_stuck(&self) {
        let bus = &self.stores.bus;
        for stage in ["ingestion", "enrichment", "bigquery", "icestore"] {
            if bus.unsettled(stage) > 0 {
                self.world.violation(format!("{stage} is stuck with {} messages", bus.unsettled(stage)));
            }
        }
        let parked = self.stores.lot.lock().len();
        if parked > 0 {
            self.world.violation(format!("{parked} messages stay parked"));
        }
    }

    fn publish(&mut self, kind: Option<Kind>) {
        let kind = kind.unwrap_or_else(|| match (self.random.one_in(self.bad.1), self.bad.0) {
            (true, Some(kind)) => kind,
            (true, None) => self.random.pick(&Kind::BAD),
            (false, _) => Kind::Good,
        });
        let device = format!("d{}", self.random.within(0, self.devices - 1));
        self.published += 1;
        let message = message(self.published, kind, &device, self.random.within(0, 300) as usize);
        self.world.add(message.id, kind);
        self.source.put(message).expect("ids are new");
    }

    fn report(&self) -> Report {
        Report {
            messages: self.world.kinds().len(),
            lives: self.world.life(),
            trace: self.world.take_trace(),
            violations: self.world.violations(),
        }
    }
}

/// Devices d0, d3, d6 … are registered from the beginning; d1, d4 … may appear; d2, d5 … never do.
pub(crate) fn is_known(device: u64) -> bool {
    device.is_multiple_of(3)
}

/// Waits until `at`; `true` when the process has ended before.
async fn timeout_until(at: Instant, process: &mut Process) -> bool {
    if process.ended.is_finished() {
        sleep_until(at).await;
        return true;
    }
    tokio::time::timeout_at(at, &mut process.ended).await.is_ok()
}

fn message(number: u64, kind: Kind, device: &str, padding: usize) -> Message {
    let mut id = [0; 16];
    id[..6].copy_from_slice(&(BEGIN as u64 / 1_000 + number).to_be_bytes()[2..]);
    (id[6], id[8]) = (0x70, 0x80);
    id[12..].copy_from_slice(&(number as u32).to_be_bytes());
    let payload = match kind {
        Kind::Small => "{}".to_owned(),
        _ => format!("{{\"value\":{number},\"padding\":\"{}\"}}", "x".repeat(padding)),
    };
    let topic = match kind {
        Kind::NoRoute => "gateways/all".to_owned(),
        Kind::PoisonDevice => format!("devices/{POISON_DEVICE}/up"),
        _ => format!("devices/{device}/up"),
    };
    // Received half a minute apart, so that they fill objects of two days.
    let received = Timestamp::from_micros(BEGIN).plus(Duration::from_secs(number * 30));
    let mut message = Message::new(MessageId::from_bytes(id), payload, received);
    message.attributes = [(names::TOPIC, topic.as_str())].into_iter().collect();
    message
}

fn config(random: &mut Random) -> Config {
    let mut config =
        Config { window: random.pick(&[20, 60, 300]), chunk: random.pick(&[1, 8, 64]), ..Config::default() };
    let mut budget = || ByteSize::from_bytes(random.pick(&[1_000, 6_000, 1_000_000]));
    config.enrichment.max_in_flight_bytes = budget();
    // With room for only a few rows, those at fault leave none for others that would show it.
    config.warehouse.max_in_flight_bytes = ByteSize::from_bytes(8_000).max(budget());
    config.archive.memory = budget();
    config.ingestion.min_payload = ByteSize::from_bytes(8);
    config.ingestion.routes[0].filter = "devices/#".to_owned();
    config.enrichment.unknown_device = random.pick(&[
        UnknownDevicePolicy::Pass,
        UnknownDevicePolicy::DeadLetter,
        UnknownDevicePolicy::Park,
        UnknownDevicePolicy::Park,
    ]);
    config.enrichment.park.max_age = Setting::from_secs(random.pick(&[30, 600]));
    config.enrichment.cache.size = random.pick(&[0, 1, 3, 100]);
    config.warehouse.batch.count = random.pick(&[1, 7, 100]);
    config.warehouse.batch.age = Setting::from_millis(random.pick(&[0, 100, 5_000]));
    // What is larger is compressed on a thread, whose wake-ups have no order.
    config.archive.batch.count = random.pick(&[1, 7, 60]);
    config.archive.batch.age = Setting::from_secs(random.pick(&[1, 60]));
    config
}

/// Traffic in bursts over some minutes, with what happens beside it.
fn acts(random: &mut Random) -> Vec<(Duration, Act)> {
    let span = random.pick(&[20_000, 120_000, 600_000]);
    let mut acts = Vec::new();
    let mut at = |random: &mut Random, act| acts.push((Duration::from_millis(random.within(0, span)), act));
    for _ in 0..random.within(3, 8) {
        let count = random.within(1, 12) as usize;
        at(random, Act::Publish(count));
    }
    for _ in 0..random.pick(&[0, 0, 1, 3]) {
        at(random, Act::Kill);
    }
    for _ in 0..random.pick(&[0, 0, 1, 2]) {
        at(random, Act::Stop);
    }
    for _ in 0..random.pick(&[0, 1, 3]) {
        let class = random.pick(&[ErrorClass::Transient, ErrorClass::Configuration]);
        let (op, time) = (random.pick(&Op::OUTSIDE), Duration::from_secs(random.pick(&[5, 60, 1_200])));
        at(random, Act::Outage(op, time, class));
    }
    if random.one_in(2) {
        at(random, Act::Appear(1));
    }
    acts.push((Duration::from_millis(span), Act::Publish(1)));
    acts.sort_by_key(|(at, _)| *at);
    acts
}

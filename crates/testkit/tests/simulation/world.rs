//! One seed's world: its chance, its faults, its trace and what went against a promise.

use messagepipeline::{Clock, ErrorClass, MessageId, StageError, Timestamp};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Side effects of one seed beyond which something spins. A seed has a few thousand.
const MOST_CALLS: usize = 200_000;
/// Violations kept; the first ones tell what happened.
const MOST_VIOLATIONS: usize = 20;

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// From `least` to `most`, both included.
    pub(crate) fn within(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }

    pub(crate) fn one_in(&mut self, count: u64) -> bool {
        self.next().is_multiple_of(count)
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.within(0, choices.len() as u64 - 1) as usize]
    }
}

/// A side effect, or the answer to a question, of something outside the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Op {
    Receive,
    Settle,
    PublishRaw,
    PublishEnriched,
    LayerGet,
    LayerRemove,
    Registry,
    Insert,
    Known,
    WriteObject,
    ListObject,
    RenameObject,
    DeadLetter,
    Skip,
    Park,
    LotRead,
    LotRemove,
    Process,
}

impl Op {
    /// What an outage may strike.
    pub(crate) const OUTSIDE: [Self; 12] = [
        Self::PublishRaw,
        Self::PublishEnriched,
        Self::LayerGet,
        Self::Registry,
        Self::Insert,
        Self::Known,
        Self::WriteObject,
        Self::ListObject,
        Self::RenameObject,
        Self::DeadLetter,
        Self::Park,
        Self::LotRead,
    ];
}

/// What goes wrong in one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// No effect, an error.
    Before(ErrorClass),
    /// The effect, and an error all the same.
    After(ErrorClass),
    /// The effect, and its answer only then.
    Late(Duration),
    /// No effect, no answer.
    Never,
    /// The effect, no answer.
    NeverAfter,
    /// No effect, a panic.
    Panic,
    /// The effect, then a panic.
    PanicAfter,
    /// Some items fail, some of them with their effect.
    Partly,
    /// All effects, and answers for fewer items than were given.
    Short,
    /// The process died here.
    Crash,
    /// The process was asked to stop.
    Stop,
    /// It runs, for the first time or again.
    Start,
}

/// One call with what struck it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    at: u64,
    op: Op,
    size: usize,
    pub(crate) fault: Option<Fault>,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, op, size, fault } = self;
        write!(f, "{:>9}.{:03} s  {op:?} of {size}", at / 1_000, at % 1_000)?;
        if let Some(fault) = fault { write!(f, "  {fault:?}") } else { Ok(()) }
    }
}

/// What a message is, by which its ending is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Good,
    /// No route takes its topic.
    NoRoute,
    /// Its payload is too small.
    Small,
    /// The raw topic refuses it for good.
    RefusedRaw,
    /// The enriched topic refuses it for good.
    RefusedEnriched,
    /// Whoever looks its device up panics.
    PoisonDevice,
    /// The table refuses its row for good.
    BadRow,
    /// Its row fails each time for a passing reason.
    FlakyRow,
    /// The table panics over its row.
    PoisonRow,
    /// No object with its line is taken.
    BadLine,
    /// The archive panics over its line.
    PoisonLine,
}

impl Kind {
    pub(crate) const BAD: [Self; 10] = [
        Self::NoRoute,
        Self::Small,
        Self::RefusedRaw,
        Self::RefusedEnriched,
        Self::PoisonDevice,
        Self::BadRow,
        Self::FlakyRow,
        Self::PoisonRow,
        Self::BadLine,
        Self::PoisonLine,
    ];
}

/// How often what happens. One of so many calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    pub(crate) fault: u64,
    pub(crate) receive: u64,
    pub(crate) settle: u64,
}

#[derive(Debug)]
struct Inner {
    random: Random,
    rates: Rates,
    faulty: bool,
    life: u32,
    calls: usize,
    trace: Vec<Event>,
    outages: BTreeMap<Op, (Instant, ErrorClass)>,
    kinds: BTreeMap<MessageId, Kind>,
    violations: Vec<String>,
}

/// Cloning shares it.
#[derive(Clone, Debug)]
pub(crate) struct World {
    inner: Arc<Mutex<Inner>>,
    begun: Instant,
}

impl World {
    pub(crate) fn new(random: Random, rates: Rates) -> Self {
        let inner = Inner {
            random,
            rates,
            faulty: true,
            life: 0,
            calls: 0,
            trace: Vec::new(),
            outages: BTreeMap::new(),
            kinds: BTreeMap::new(),
            violations: Vec::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), begun: Instant::now() }
    }

    pub(crate) fn violation(&self, text: impl Into<String>) {
        let mut inner = self.inner.lock();
        if inner.violations.len() < MOST_VIOLATIONS {
            let at = self.begun.elapsed();
            inner.violations.push(format!("{at:?}: {}", text.into()));
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.inner.lock().violations.clone()
    }

    pub(crate) fn add(&self, id: MessageId, kind: Kind) {
        self.inner.lock().kinds.insert(id, kind);
    }

    pub(crate) fn kind(&self, id: MessageId) -> Kind {
        self.inner.lock().kinds.get(&id).copied().unwrap_or(Kind::Good)
    }

    pub(crate) fn kinds(&self) -> BTreeMap<MessageId, Kind> {
        self.inner.lock().kinds.clone()
    }

    pub(crate) fn fails(&self, op: Op, until: Duration, class: ErrorClass) {
        self.inner.lock().outages.insert(op, (Instant::now() + until, class));
    }

    /// From now on nothing fails but what is bad by itself.
    pub(crate) fn heal(&self) {
        let mut inner = self.inner.lock();
        inner.faulty = false;
        inner.outages.clear();
    }

    pub(crate) fn life(&self) -> u32 {
        self.inner.lock().life
    }

    /// The process is another one from now on: what the earlier one still does has no effect.
    pub(crate) fn next_life(&self) {
        self.inner.lock().life += 1;
    }

    pub(crate) fn note(&self, op: Op, size: usize, fault: Option<Fault>) {
        let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.inner.lock().trace.push(Event { at, op, size, fault });
    }

    /// All calls and faults in order.
    pub(crate) fn take_trace(&self) -> Vec<Event> {
        std::mem::take(&mut self.inner.lock().trace)
    }

    pub(crate) fn error(class: ErrorClass) -> StageError {
        StageError::new(class, "simulated", "made to fail by the simulation")
    }

    /// Whether, and how, receiving fails now.
    pub(crate) fn receive_fault(&self) -> Option<Fault> {
        let mut inner = self.inner.lock();
        let one_in = inner.rates.receive;
        if !inner.faulty || !inner.random.one_in(one_in) {
            return None;
        }
        let fault = match inner.random.within(0, 19) {
            0 => Fault::Before(ErrorClass::Permanent),
            1 => Fault::Panic,
            2..=7 => Fault::Before(ErrorClass::Configuration),
            _ => Fault::Before(ErrorClass::Transient),
        };
        drop(inner);
        self.note(Op::Receive, 0, Some(fault));
        Some(fault)
    }

    /// Whether verdicts are lost or late.
    pub(crate) fn settle_fault(&self, size: usize) -> Option<Fault> {
        let mut inner = self.inner.lock();
        let one_in = inner.rates.settle;
        let strikes = inner.faulty && inner.random.one_in(one_in);
        let lost = strikes && inner.random.one_in(2);
        let late = Duration::from_millis(inner.random.within(1, 200_000));
        drop(inner);
        let fault = strikes.then_some(if lost { Fault::Never } else { Fault::Late(late) });
        self.note(Op::Settle, size, fault);
        fault
    }

    fn draw(&self, op: Op, size: usize) -> (Option<Fault>, Duration) {
        let mut inner = self.inner.lock();
        let latency =
            Duration::from_millis(if inner.random.one_in(2) { 0 } else { inner.random.within(1, 40) });
        let now = Instant::now();
        let one_in = inner.rates.fault;
        let outage = inner.outages.get(&op).filter(|(until, _)| now < *until).map(|(_, class)| *class);
        let fault = match outage {
            _ if !inner.faulty => None,
            Some(class) => Some(Fault::Before(class)),
            None if inner.random.one_in(one_in) => Some(any_fault(&mut inner.random)),
            None => None,
        };
        inner.calls += 1;
        let spins = inner.calls == MOST_CALLS;
        drop(inner);
        self.note(op, size, fault);
        if spins {
            self.violation(format!("{MOST_CALLS} calls: something spins"));
        }
        (fault, latency)
    }

    /// Waits for ever when the process `life` has died, or when so many calls came that something spins.
    async fn alive(&self, life: u32) {
        let dead = {
            let inner = self.inner.lock();
            inner.life != life || inner.calls >= MOST_CALLS
        };
        if dead {
            std::future::pending::<()>().await;
        }
    }

    /// The side effect `effect` of process `life`, under whatever fault strikes.
    pub(crate) async fn call<A>(
        &self,
        life: u32,
        op: Op,
        size: usize,
        effect: impl FnOnce() -> Result<A, StageError>,
    ) -> Result<A, StageError> {
        let fault = self.enter(life, op, size).await;
        self.answer(life, fault, effect).await
    }

    /// As [`World::call`], with an effect and an answer for each of `items`.
    pub(crate) async fn call_each<T, A>(
        &self,
        life: u32,
        op: Op,
        items: Vec<T>,
        mut effect: impl FnMut(T) -> Result<A, StageError>,
    ) -> Result<Vec<Result<A, StageError>>, StageError> {
        let fault = self.enter(life, op, items.len()).await;
        let partly = fault == Some(Fault::Partly);
        let all = || {
            let each = |item| match if partly { self.chance(4) } else { 3 } {
                0 => Err(Self::error(ErrorClass::Transient)),
                1 => effect(item).and(Err(Self::error(ErrorClass::Transient))),
                _ => effect(item),
            };
            Ok(items.into_iter().map(each).collect::<Vec<_>>())
        };
        let mut results = self.answer(life, fault, all).await?;
        if fault == Some(Fault::Short) {
            results.pop();
        }
        Ok(results)
    }

    fn chance(&self, of: u64) -> u64 {
        self.inner.lock().random.within(0, of - 1)
    }

    async fn enter(&self, life: u32, op: Op, size: usize) -> Option<Fault> {
        self.alive(life).await;
        let (fault, latency) = self.draw(op, size);
        if latency.is_zero() {
            tokio::task::yield_now().await;
        } else {
            sleep(latency).await;
        }
        self.alive(life).await;
        fault
    }

    async fn answer<A>(
        &self,
        life: u32,
        fault: Option<Fault>,
        effect: impl FnOnce() -> Result<A, StageError>,
    ) -> Result<A, StageError> {
        match fault {
            Some(Fault::Before(class)) => Err(Self::error(class)),
            Some(Fault::After(class)) => effect().and(Err(Self::error(class))),
            Some(Fault::Late(by)) => {
                let answer = effect();
                sleep(by).await;
                self.alive(life).await;
                answer
            }
            Some(Fault::Never) => std::future::pending().await,
            Some(Fault::NeverAfter) => {
                drop(effect());
                std::future::pending().await
            }
            Some(Fault::Panic) => simulated_panic(),
            Some(Fault::PanicAfter) => {
                drop(effect());
                simulated_panic()
            }
            _ => effect(),
        }
    }
}

fn any_fault(random: &mut Random) -> Fault {
    let class = random.pick(&[ErrorClass::Transient, ErrorClass::Transient, ErrorClass::Configuration]);
    match random.within(0, 15) {
        0..=3 => Fault::Before(class),
        4..=6 => Fault::After(class),
        7 => Fault::Late(Duration::from_millis(random.within(100, 5_000))),
        8 => Fault::Late(Duration::from_secs(random.within(5, 900))),
        9 => Fault::Never,
        10 => Fault::NeverAfter,
        // Rare: a message that panics alone five times is at fault by rule.
        11 if random.one_in(4) => Fault::Panic,
        12 if random.one_in(4) => Fault::PanicAfter,
        11..=14 => Fault::Partly,
        _ => Fault::Short,
    }
}

/// The payload of panics that the simulation means.
pub(crate) struct Simulated;

pub(crate) fn simulated_panic() -> ! {
    std::panic::panic_any(Simulated)
}

/// The time of day, moved by tokio's clock.
#[derive(Debug)]
pub(crate) struct VirtualClock(pub(crate) Instant);

/// An hour before a UTC midnight, so that longer seeds fill two days.
pub(crate) const BEGIN: i64 = 1_750_028_400_000_000;

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(BEGIN).plus(self.0.elapsed())
    }
}

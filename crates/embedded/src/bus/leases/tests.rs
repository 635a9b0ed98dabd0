use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const LIMITS: LeaseLimits = LeaseLimits {
    max_messages: 8,
    max_bytes: 1_000,
    lease: Duration::from_secs(60),
    nack_delay: Duration::from_millis(100),
    nack_delay_max: Duration::from_secs(1),
};
const WEIGHT: u32 = 160;

/// The subscription beside what a naive observer knows of it: what is stored, what is out.
struct Model {
    leases: Leases,
    now: Instant,
    head: u64,
    /// Numbers that the log does not hold.
    holes: BTreeSet<u64>,
    /// Deliveries without a verdict: token to number, attempt, end of the lease.
    out: BTreeMap<Token, (u64, u32, Instant)>,
    /// Tokens whose lease ran out.
    stale: Vec<Token>,
    acked: BTreeSet<u64>,
    nacks: BTreeMap<u64, u32>,
    stored_cursor: u64,
    stored_runs: Runs,
    stored_nacks: HashMap<u64, u32>,
}

impl Model {
    fn new() -> Self {
        Self {
            leases: Leases::new(LIMITS, 0, Runs::default(), HashMap::new()),
            now: Instant::now(),
            head: 0,
            holes: BTreeSet::new(),
            out: BTreeMap::new(),
            stale: Vec::new(),
            acked: BTreeSet::new(),
            nacks: BTreeMap::new(),
            stored_cursor: 0,
            stored_runs: Runs::default(),
            stored_nacks: HashMap::new(),
        }
    }

    /// Plans, reads and leases once; how many messages came.
    fn fetch(&mut self, most: usize, fails: bool) -> usize {
        let ended: Vec<_> =
            self.out.iter().filter(|(_, out)| out.2 <= self.now).map(|(token, _)| *token).collect();
        self.out.retain(|token, _| !ended.contains(token));
        self.stale.extend(ended);
        let plan = self.leases.plan(self.now, self.head, most);
        let (wanted, found_to) = match &plan {
            Plan::Idle(_) => return 0,
            Plan::Again(seqs) => (seqs.clone(), 0),
            Plan::Fresh { from, to, .. } => {
                ((*from..=*to).filter(|seq| !self.holes.contains(seq)).collect(), *to)
            }
        };
        if fails {
            self.leases.give_up_reading(self.now, plan);
            return 0;
        }
        let read: Vec<_> = wanted.iter().map(|seq| (*seq, WEIGHT)).collect();
        let granted = self.leases.grant(self.now, 1, &read, found_to);
        for (seq, granted) in wanted.iter().zip(&granted) {
            let Some(granted) = granted else { continue };
            assert!(!self.acked.contains(seq), "{seq} was settled and came again");
            assert!(self.out.values().all(|(other, ..)| other != seq), "{seq} is out twice");
            assert_eq!(granted.attempt, self.nacks.get(seq).copied().unwrap_or(0) + 1);
            assert!(!self.stale.contains(&granted.token), "a token was used again");
            self.out.insert(granted.token, (*seq, granted.attempt, self.now + LIMITS.lease));
        }
        let oldest = (1..=self.head).find(|seq| !self.acked.contains(seq) && !self.holes.contains(seq));
        let newest = self.out.values().map(|(seq, ..)| *seq).max();
        if let (Some(oldest), Some(newest)) = (oldest, newest) {
            assert!(newest < oldest + LIMITS.max_messages as u64, "{newest} is out, {oldest} is unsettled");
        }
        granted.iter().flatten().count()
    }

    fn settle(&mut self, nth: usize, verdict: Verdict) {
        let late: Vec<_> = self.stale.iter().map(|token| Settlement { token: *token, verdict }).collect();
        self.leases.settle(self.now, &late);
        let Some((&token, &(seq, attempt, _))) = self.out.iter().nth(nth % self.out.len().max(1)) else {
            return;
        };
        self.out.remove(&token);
        self.leases.settle(self.now, &[Settlement { token, verdict }]);
        match verdict {
            Verdict::Ack => drop(self.acked.insert(seq)),
            Verdict::Nack if !self.acked.contains(&seq) => drop(self.nacks.insert(seq, attempt)),
            _ => {}
        }
    }

    fn save(&mut self, works: bool) {
        let Some(changes) = self.leases.take_changes() else { return };
        if !works {
            return self.leases.restore(changes);
        }
        self.stored_cursor = changes.cursor;
        for &(first, last) in &changes.runs {
            self.stored_runs.insert(first, last);
        }
        self.stored_nacks.extend(changes.attempts.iter().map(|(seq, attempt)| (*seq, attempt - 1)));
        self.leases.saved(changes.version);
    }

    fn crash(&mut self) {
        let mut settled = Runs::default();
        for seq in (self.stored_cursor + 1..=self.head).filter(|seq| self.stored_runs.contains(*seq)) {
            settled.insert(seq, seq);
        }
        let stored = |seq: &u64| *seq <= self.stored_cursor || settled.contains(*seq);
        self.acked.retain(stored);
        self.nacks = self.stored_nacks.iter().map(|(seq, count)| (*seq, *count)).collect();
        self.out.clear();
        self.stale.clear();
        self.leases = Leases::new(LIMITS, self.stored_cursor, settled, self.stored_nacks.clone());
    }

    fn release(&mut self) {
        self.leases.release(self.now, 1);
        self.stale.extend(std::mem::take(&mut self.out).into_keys());
    }

    fn drain(&mut self) {
        self.release();
        for _ in 0..10_000 {
            self.now += Duration::from_secs(2);
            if self.fetch(4, false) == 0 && self.leases.unsettled(self.head) == 0 {
                return;
            }
            while !self.out.is_empty() {
                self.settle(0, Verdict::Ack);
            }
        }
        panic!("not drained: {:?}", self.leases);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish(u64),
    Hole,
    Fetch(usize, bool),
    Settle(usize, Verdict),
    Elsewhere(u64),
    Pass(u64),
    Release,
    Save(bool),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let verdict = prop_oneof![4 => Just(Verdict::Ack), 1 => Just(Verdict::Nack), 1 => Just(Verdict::Return)];
    prop_oneof![
        3 => (1_u64..6).prop_map(Step::Publish),
        1 => Just(Step::Hole),
        6 => (1_usize..5, prop::bool::weighted(0.1)).prop_map(|(most, fails)| Step::Fetch(most, fails)),
        8 => (0_usize..8, verdict).prop_map(|(nth, verdict)| Step::Settle(nth, verdict)),
        1 => (0_u64..12).prop_map(Step::Elsewhere),
        2 => (0_u64..70_000).prop_map(Step::Pass),
        1 => Just(Step::Release),
        3 => prop::bool::weighted(0.8).prop_map(Step::Save),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #[test]
    fn nothing_is_lost_doubled_or_beyond_the_bound_whatever_happens(steps in prop::collection::vec(step(), 0..120)) {
        let mut model = Model::new();
        for step in steps {
            match step {
                Step::Publish(count) => model.head += count,
                Step::Hole => {
                    model.head += 1;
                    model.holes.insert(model.head);
                }
                Step::Fetch(most, fails) => { model.fetch(most, fails); }
                Step::Settle(nth, verdict) => model.settle(nth, verdict),
                Step::Elsewhere(back) => {
                    let seq = model.head.saturating_sub(back).max(1);
                    if seq <= model.head {
                        model.leases.settle_elsewhere(seq);
                        model.acked.insert(seq);
                    }
                }
                Step::Pass(millis) => model.now += Duration::from_millis(millis),
                Step::Release => model.release(),
                Step::Save(works) => model.save(works),
                Step::Crash => model.crash(),
            }
        }
        model.drain();
        prop_assert!((1..=model.head).all(|seq| model.acked.contains(&seq) || model.holes.contains(&seq)));
        model.save(true);
        prop_assert_eq!(model.stored_cursor, model.head);
    }
}

fn one_out(verdicts: usize) -> (Leases, Instant, Token) {
    let now = Instant::now();
    let mut leases = Leases::new(LIMITS, 0, Runs::default(), HashMap::new());
    for _ in 0..verdicts {
        leases.plan(now, 1, 1);
        let token = leases.grant(now, 1, &[(1, WEIGHT)], 1)[0].unwrap().token;
        leases.settle(now, &[Settlement { token, verdict: Verdict::Return }]);
    }
    leases.plan(now, 1, 1);
    let token = leases.grant(now, 1, &[(1, WEIGHT)], 1)[0].unwrap().token;
    (leases, now, token)
}

#[test]
fn a_message_without_a_verdict_comes_again_when_its_lease_ends_and_the_late_verdict_is_ignored() {
    let (mut leases, now, token) = one_out(0);
    assert_eq!(leases.plan(now, 1, 1), Plan::Idle(Some(now + LIMITS.lease)));
    let late = now + LIMITS.lease;
    assert_eq!(leases.plan(late, 1, 1), Plan::Again(vec![1]));
    let again = leases.grant(late, 1, &[(1, WEIGHT)], 0)[0].unwrap();
    assert_eq!(again.attempt, 1, "a lease that ran out is not counted");
    leases.settle(late, &[Settlement { token, verdict: Verdict::Ack }]);
    assert_eq!(leases.unsettled(1), 1);
    leases.settle(late, &[Settlement { token: again.token, verdict: Verdict::Ack }]);
    assert_eq!(leases.unsettled(1), 0);
}

#[test]
fn a_message_that_fails_waits_twice_as_long_each_time() {
    let (mut leases, mut now, mut token) = one_out(0);
    for delay in [100, 200, 400, 800, 1_000, 1_000] {
        leases.settle(now, &[Settlement { token, verdict: Verdict::Nack }]);
        let due = now + Duration::from_millis(delay);
        assert_eq!(leases.plan(now, 1, 1), Plan::Idle(Some(due)));
        now = due;
        assert_eq!(leases.plan(now, 1, 1), Plan::Again(vec![1]));
        token = leases.grant(now, 1, &[(1, WEIGHT)], 0)[0].unwrap().token;
    }
}

#[test]
fn only_a_message_that_nobody_takes_waits_after_a_return() {
    let (mut leases, now, token) = one_out(usize::from(FREE_RETURNS));
    leases.settle(now, &[Settlement { token, verdict: Verdict::Return }]);
    assert_eq!(leases.plan(now, 1, 1), Plan::Idle(Some(now + RETURN_DELAY)));
}

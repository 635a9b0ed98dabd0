use super::*;
use messagepipeline::{IdGenerator, ManualClock, StageError, SystemClock};

const NOON: i64 = 1_772_366_400_000_000;

fn options(folder: &Path, keep: Duration) -> LedgerOptions {
    LedgerOptions { folder: folder.to_owned(), name: IdGenerator::default().next_id(), keep }
}

/// Of a device's own: it tells no time.
fn id(number: u8) -> MessageId {
    MessageId::from_bytes([number, 0, 0, 0, 0, 0, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, number])
}

fn read(folder: &Path, recent_since: Timestamp) -> Ledgers {
    Ledgers::read([folder], recent_since).unwrap()
}

fn files(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Refuses every second message.
struct Half;

impl Publisher for Half {
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, BatchOutcome> {
        let refused = || Err(StageError::permanent("refused", "for the test"));
        let results = (0..messages.len()).map(|at| if at % 2 == 0 { Ok(()) } else { refused() });
        std::future::ready(BatchOutcome::Each(results.collect())).boxed()
    }
}

#[tokio::test]
async fn the_ledger_has_what_was_published_over_all_processes_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let ids = IdGenerator::default();
    let mut expected = Vec::new();
    for _ in 0..2 {
        let options = options(folder.path(), Duration::from_hours(24));
        let ledger = Ledger::create(options, Reached::Bus, Arc::new(SystemClock)).unwrap();
        let publisher = ledger.record(Arc::new(Half));
        let messages: Vec<_> =
            (0..10).map(|_| Message::new(ids.next_id(), "x", Timestamp::default())).collect();
        expected.extend(messages.iter().step_by(2).map(|message| message.id));
        // What is published again is one id.
        publisher.publish(messages.clone()).await;
        publisher.publish(messages).await;
    }
    let torn = folder.path().join("torn.ids");
    std::fs::write(torn, [1; 7]).unwrap();
    expected.sort_unstable();
    let ledgers = read(folder.path(), Timestamp::default());
    assert_eq!((ledgers.ids, ledgers.recent, ledgers.spooled), (expected.clone(), expected, Vec::new()));
}

#[test]
fn the_ledger_knows_what_was_published_lately_whatever_the_ids_tell() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp::from_micros(1_000_000_000));
    let options = options(folder.path(), Duration::from_hours(24));
    let ledger = Ledger::create(options, Reached::Bus, Arc::new(clock.clone())).unwrap();
    for number in 1..=4 {
        ledger.add(&[id(number)]);
        clock.advance(Duration::from_millis(600));
    }
    let recent = |micros| {
        let ledgers = read(folder.path(), Timestamp::from_micros(micros));
        assert_eq!(ledgers.ids, [1, 2, 3, 4].map(id));
        assert_eq!(ledgers.since, Some(Timestamp::from_micros(1_000_000_000)));
        ledgers.recent
    };
    assert_eq!(recent(1_000_000_000), [1, 2, 3, 4].map(id));
    assert_eq!(
        recent(1_001_100_000),
        [3, 4].map(id),
        "of what stands behind one mark all counts as its youngest"
    );
    assert_eq!(recent(1_900_000_000), []);
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().metadata().unwrap().len(),
        6 * 16
    );
}

#[test]
fn ids_are_forgotten_by_whole_days_and_never_those_of_a_day_that_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp::from_micros(NOON));
    let begin = || {
        let options = options(folder.path(), Duration::from_hours(48));
        Ledger::create(options, Reached::Bus, Arc::new(clock.clone())).unwrap()
    };
    let foreign = folder.path().join("2026-01-01_notes.txt");
    std::fs::write(&foreign, "of somebody else").unwrap();
    let ledger = begin();
    for number in 1..=4 {
        ledger.add(&[id(number)]);
        ledger.forget();
        clock.advance(Duration::from_hours(24));
    }
    let days = |names: Vec<String>| names.into_iter().map(|name| name[..10].to_owned()).collect::<Vec<_>>();
    // On the 4th at noon everything since the 2nd at noon is kept, and with it the rest of that day.
    assert_eq!(days(files(folder.path())), ["2026-01-01", "2026-03-02", "2026-03-03", "2026-03-04"]);
    assert_eq!(read(folder.path(), Timestamp::default()).ids, [2, 3, 4].map(id));
    assert_eq!(
        read(folder.path(), Timestamp::default()).since,
        Some(Timestamp::from_micros(NOON + DAY)),
        "books know since when they are whole"
    );
    clock.advance(Duration::from_hours(24 * 10));
    let ledger = begin();
    assert_eq!(
        days(files(folder.path())),
        ["2026-01-01", "2026-03-03", "2026-03-04", "2026-03-15"],
        "a start forgets too, but may be by a clock that is wrong"
    );
    clock.advance(Duration::from_hours(24));
    ledger.forget();
    assert_eq!(days(files(folder.path())), ["2026-01-01", "2026-03-15"]);
}

#[test]
fn ids_that_were_written_before_the_clock_was_set_are_kept_like_those_of_that_day() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp::from_micros(10_000_000));
    let options = options(folder.path(), Duration::from_hours(48));
    let ledger = Ledger::create(options, Reached::Bus, Arc::new(clock.clone())).unwrap();
    ledger.add(&[id(1)]);
    clock.advance(Duration::from_micros(NOON as u64));
    ledger.forget();
    ledger.add(&[id(2)]);
    clock.advance(Duration::from_hours(24));
    ledger.add(&[id(3)]);
    ledger.forget();
    let kept = read(folder.path(), Timestamp::default());
    assert_eq!(kept.ids, [1, 2, 3].map(id));
    assert_eq!(kept.since, Some(Timestamp::from_micros(NOON / DAY * DAY)), "whole since that day");
    clock.advance(Duration::from_hours(72));
    ledger.add(&[id(4)]);
    clock.advance(Duration::from_hours(24));
    ledger.forget();
    assert_eq!(read(folder.path(), Timestamp::default()).ids, [3, 4].map(id));
}

/// A clock that a person sets.
#[derive(Debug)]
struct SetClock(Mutex<Timestamp>);

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        *self.0.lock()
    }
}

#[test]
fn a_clock_that_was_set_back_for_a_while_costs_no_id_of_the_days_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let day = |days: i64| Timestamp::from_micros(NOON + days * DAY);
    let clock = Arc::new(SetClock(Mutex::new(day(0))));
    let options = options(folder.path(), Duration::from_hours(48));
    let ledger = Ledger::create(options, Reached::Bus, Arc::clone(&clock) as _).unwrap();
    ledger.add(&[id(1)]);
    *clock.0.lock() = day(-3);
    ledger.add(&[id(2)]);
    *clock.0.lock() = day(0);
    ledger.add(&[id(3)]);
    ledger.forget();
    assert_eq!(read(folder.path(), Timestamp::default()).ids, [1, 2, 3].map(id));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "one file");
}

#[cfg(unix)]
#[test]
fn a_file_that_cannot_be_deleted_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp::from_micros(NOON));
    let options = options(folder.path(), Duration::from_hours(24));
    // What is no file cannot be deleted like one.
    std::fs::create_dir(folder.path().join("2026-01-01_a.ids")).unwrap();
    for name in ["2026-01-01_b.ids", "2026-01-01_b.spooled", "2026-01-02_b.ids", "2026-02-28_b.ids"] {
        std::fs::write(folder.path().join(name), "").unwrap();
    }
    let old: Vec<_> = options.old(clock.now()).unwrap();
    assert!(old[0].ends_with("2026-01-01_b.spooled"), "{old:?}");
    options.forget(clock.now());
    assert_eq!(files(folder.path()), ["2026-01-01_a.ids", "2026-02-28_b.ids"]);
}

#[test]
fn a_file_that_is_opened_again_goes_on_behind_its_last_whole_id() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Timestamp::from_micros(NOON));
    let options = options(folder.path(), Duration::ZERO);
    let mut first = options.open(Reached::Bus, clock.now()).unwrap();
    first.add(&[id(1)], clock.now()).unwrap();
    first.file.write_all(&[7; 5]).unwrap();
    let mut again = options.open(Reached::Bus, clock.now()).unwrap();
    again.add(&[id(2)], clock.now()).unwrap();
    options.forget(clock.now());
    assert_eq!(read(folder.path(), Timestamp::default()).ids, [1, 2].map(id));
}

#[test]
fn a_torn_write_that_cannot_be_cut_off_at_once_shifts_no_later_id() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path(), Duration::from_hours(24));
    let mut open = options.open(Reached::Bus, Timestamp::default()).unwrap();
    open.add(&[id(1)], Timestamp::default()).unwrap();
    open.file.write_all(&[7; 5]).unwrap();
    open.is_torn = true;
    let path = folder.path().join(&files(folder.path())[0]);
    let whole = std::mem::replace(&mut open.file, File::open(&path).unwrap());
    open.add(&[id(2)], Timestamp::default()).unwrap_err();
    assert!(open.is_torn, "nothing is written behind a part that could not be cut off");
    open.file = whole;
    open.add(&[id(3)], Timestamp::default()).unwrap();
    assert_eq!(read(folder.path(), Timestamp::default()).ids, [1, 3].map(id));
}

#[test]
fn what_the_spool_has_and_the_bus_has_not_is_told_apart_over_all_processes() {
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    for (reached, numbers) in [(Reached::Spool, 1..=4), (Reached::Bus, 1..=2), (Reached::Bus, 4..=5)] {
        let options = options(folder.path(), Duration::from_hours(24));
        let ledger = Ledger::create(options, reached, Arc::clone(&clock)).unwrap();
        ledger.add(&numbers.map(id).collect::<Vec<_>>());
    }
    let ledgers = read(folder.path(), Timestamp::default());
    assert_eq!(ledgers.ids, [1, 2, 3, 4, 5].map(id));
    assert_eq!(ledgers.spooled, [id(3)]);
}

//! The batching service's promises.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::*;
use messagepipeline::{
    BatchLimits, BatchOutcome, BatchProcessor, BatchingService, Consumer, ErrorClass, Item, Message, Outcome,
    PublishProcessor, Publisher, RetryPolicy, Running, ServiceError, ServiceOptions, Shutdown, SourceWindow,
    TransformFn, Verdict, transform_fn,
};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use testkit::faults::{Fault, Faults, Faulty};
use testkit::memory::{ConsumerLimits, MemoryBus, MemoryDeadLetters};
use testkit::processors::{Act, ScriptedProcessor};
use testkit::scripted_consumer::{ScriptedConsumer, Step};

const MINUTE: Duration = Duration::from_secs(60);

fn limits(count: usize, age: Duration) -> BatchLimits {
    BatchLimits { count, age, ..BatchLimits::default() }
}

fn by_word() -> ScriptedProcessor {
    ScriptedProcessor::new(|message, _| match word(message) {
        "panic" => Act::Panic,
        "permanent" => Act::Fail(permanent()),
        "transient" => Act::Fail(transient()),
        text if text.starts_with("wait") => Act::Wait,
        _ => Act::Done,
    })
}

async fn start<P: BatchProcessor<()> + 'static>(
    limits: BatchLimits,
    consumer: impl Consumer + 'static,
    processor: P,
) -> Running {
    let options = ServiceOptions::new("test");
    BatchingService::new(options, limits, consumer, as_it_is(), processor).start().await.unwrap()
}

async fn start_keyed(
    limits: BatchLimits,
    consumer: impl Consumer + 'static,
    processor: ScriptedProcessor,
) -> Running {
    let service = BatchingService::new(ServiceOptions::new("test"), limits, consumer, as_it_is(), processor);
    service.keyed(|item: &Item<()>| item.message.payload.clone()).start().await.unwrap()
}

fn sizes(processor: &ScriptedProcessor) -> Vec<usize> {
    processor.batches().iter().map(Vec::len).collect()
}

fn words(processor: &ScriptedProcessor) -> Vec<String> {
    processor.done().iter().map(|message| word(message).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_group_is_flushed_when_full_when_old_and_at_stop() {
    let bus = MemoryBus::new();
    bus.subscribe("in", "s");
    let (publisher, processor) = (bus.publisher("in"), ScriptedProcessor::willing());
    let running =
        start(limits(100, MINUTE), bus.consumer("s", ConsumerLimits::default()), processor.clone()).await;
    publisher.publish(messages("x", 250)).await;
    pass(Duration::from_secs(59)).await;
    assert_eq!(sizes(&processor), [100, 100]);
    pass(Duration::from_secs(2)).await;
    assert_eq!(sizes(&processor), [100, 100, 50]);
    publisher.publish(messages("x", 7)).await;
    pass(Duration::from_secs(1)).await;
    let asked = tokio::time::Instant::now();
    let summary = running.stop(DEADLINE).await.unwrap();
    assert_eq!((sizes(&processor), summary.done), (vec![100, 100, 50, 7], 257));
    assert!(asked.elapsed() < Duration::from_secs(1), "a stop does not wait for the age");
}

#[tokio::test(start_paused = true)]
async fn without_lingering_what_is_there_goes_at_once_and_what_comes_meanwhile_goes_together() {
    let bus = MemoryBus::new();
    bus.subscribe("in", "s");
    let (publisher, processor) = (bus.publisher("in"), by_word());
    let options = ServiceOptions { workers: 1, ..ServiceOptions::new("test") };
    let consumer = bus.consumer("s", ConsumerLimits::default());
    let limits = limits(1_000, Duration::ZERO);
    let service = BatchingService::new(options, limits, consumer, as_it_is(), processor.clone());
    let running = service.start().await.unwrap();
    publisher.publish(messages("wait", 3)).await;
    pass(Duration::from_millis(1)).await;
    assert_eq!(sizes(&processor), [3]);
    for _ in 0..10 {
        publisher.publish(messages("x", 2)).await;
        pass(Duration::from_millis(1)).await;
    }
    processor.release(1);
    pass(Duration::from_millis(1)).await;
    assert_eq!(sizes(&processor), [3, 20]);
    running.stop(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_group_of_a_key_is_flushed_at_its_size_and_every_group_at_its_age_and_at_stop() {
    let consumer = ScriptedConsumer::of(["a", "b", "a", "c"].map(message).into());
    let processor = ScriptedProcessor::willing();
    let running = start_keyed(limits(2, Duration::from_millis(100)), consumer, processor.clone()).await;
    pass(Duration::from_millis(99)).await;
    assert_eq!(words(&processor), ["a", "a"]);
    pass(Duration::from_millis(2)).await;
    assert_eq!(
        (words(&processor), sizes(&processor)),
        (["a", "a", "b", "c"].map(str::to_owned).into(), vec![2, 1, 1])
    );
    running.stop(DEADLINE).await.unwrap();

    let consumer = ScriptedConsumer::of(["a", "b", "a"].map(message).into());
    let processor = ScriptedProcessor::willing();
    let running = start_keyed(limits(2, MINUTE), consumer, processor.clone()).await;
    pass(Duration::from_secs(1)).await;
    running.stop(DEADLINE).await.unwrap();
    assert_eq!(words(&processor), ["a", "a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_busy_key_does_not_delay_a_quiet_one() {
    let bus = MemoryBus::new();
    bus.subscribe("in", "s");
    let (publisher, processor) = (bus.publisher("in"), ScriptedProcessor::willing());
    let consumer = bus.consumer("s", ConsumerLimits::default());
    let running = start_keyed(limits(5, Duration::from_millis(100)), consumer, processor.clone()).await;
    publisher.publish(vec![message("quiet")]).await;
    for _ in 0..10 {
        publisher.publish(messages("busy", 5)).await;
        pass(Duration::from_millis(10)).await;
    }
    pass(Duration::from_millis(1)).await;
    assert!(words(&processor).contains(&"quiet".to_owned()));
    running.stop(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_quiet_key_does_not_hold_up_a_busy_one_at_the_end_of_the_window() {
    let bus = MemoryBus::new();
    bus.subscribe("in", "s");
    let (publisher, processor) = (bus.publisher("in"), ScriptedProcessor::willing());
    let outstanding = 40;
    let limits_of_source = ConsumerLimits { chunk: 10, outstanding, ..ConsumerLimits::default() };
    let window = SourceWindow { messages: outstanding, bytes: limits_of_source.outstanding_bytes };
    let options = ServiceOptions { window: Some(window), ..ServiceOptions::new("test") };
    let consumer = bus.consumer("s", limits_of_source);
    let service = BatchingService::new(options, limits(5, MINUTE), consumer, as_it_is(), processor.clone());
    let running = service.keyed(|item: &Item<()>| item.message.payload.clone()).start().await.unwrap();
    publisher.publish(vec![message("quiet")]).await;
    publisher.publish(messages("busy", 1_000)).await;
    pass(Duration::from_secs(1)).await;
    // The last few make no full group.
    let done = words(&processor);
    assert!(done.len() > 995 && done.contains(&"quiet".to_owned()), "{}", done.len());
    running.stop(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_for_one_key_holds_up_no_other_key_and_calls_are_bounded() {
    let chunk: Vec<_> = (0..8).map(|n| message(&format!("wait{n}"))).chain([message("b")]).collect();
    let consumer =
        ScriptedConsumer::new([Step::Chunk(vec![message("wait"), message("b")]), Step::Chunk(chunk)]);
    let (verdicts, processor) = (consumer.verdicts(), by_word());
    let running = start_keyed(limits(1, MINUTE), consumer, processor.clone()).await;
    pass(Duration::from_secs(1)).await;
    assert_eq!((words(&processor), processor.in_flight()), (vec!["b".to_owned()], 5));
    processor.release(9);
    verdicts.settled(11).await;
    assert_eq!(processor.most_in_flight(), 5);
    running.stop(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn at_the_byte_budget_the_oldest_group_goes_first_and_receiving_waits() {
    let words: Vec<_> = (0..40).map(|n| format!("wait{n:02}{}", "x".repeat(840 - 6))).collect();
    let steps = words.iter().map(|word| Step::Chunk(vec![message(word)]));
    let consumer = ScriptedConsumer::new(steps);
    let (verdicts, processor) = (consumer.verdicts(), by_word());
    let limits = BatchLimits { budget: 10_000, ..limits(100, MINUTE) };
    let running = start_keyed(limits, consumer, processor.clone()).await;
    pass(Duration::from_secs(1)).await;
    assert_eq!((verdicts.delivered(), processor.in_flight()), (10, 5));
    processor.release(1);
    pass(Duration::from_secs(1)).await;
    assert_eq!((verdicts.delivered(), processor.in_flight()), (11, 5));
    processor.release(100);
    pass(Duration::from_secs(1)).await;
    let order: Vec<_> = processor.done().iter().map(|m| word(m)[..6].to_owned()).collect();
    assert!(order.is_sorted(), "{order:?}");
    running.stop(DEADLINE).await.unwrap();
    assert_eq!(verdicts.count(Verdict::Ack), 40);
}

#[tokio::test(start_paused = true)]
async fn each_item_has_its_own_verdict_through_the_chunk_it_came_with() {
    let chunks = [["good", "permanent", "good"], ["transient", "good", "permanent"]].map(|c| c.map(message));
    let consumer = ScriptedConsumer::new(
        chunks
            .clone()
            .map(|chunk| Step::Chunk(chunk.into()))
            .into_iter()
            .chain([Step::Chunk(messages("good", 1))]),
    );
    let verdicts = consumer.verdicts();
    let (options, dead_letters, _) = options();
    let limits = limits(7, MINUTE);
    let service = BatchingService::new(options, limits, consumer, as_it_is(), by_word());
    let running = service.start().await.unwrap();
    verdicts.settled(6).await;
    assert_eq!(verdicts.count(Verdict::Ack), 6);
    assert_eq!(verdicts.of(&chunks[1][0]), None, "it alone is tried again");
    let dead: HashSet<_> = dead_letters.letters().iter().map(|letter| letter.message.id).collect();
    assert_eq!(dead, HashSet::from([chunks[0][1].id, chunks[1][2].id]));
    running.stop(DEADLINE).await.unwrap();
    assert_eq!(verdicts.of(&chunks[1][0]), Some(Verdict::Return));
}

/// Refuses a whole batch for good if one message in it is `bad`; forgets to answer for `forgotten` ones.
#[derive(Clone)]
struct AllOrNothing;

impl BatchProcessor<()> for AllOrNothing {
    async fn process(&self, batch: &[Item<()>]) -> BatchOutcome {
        let has = |wanted: &str| batch.iter().any(|item| word(&item.message) == wanted);
        if has("bad") {
            return BatchOutcome::Failed(permanent());
        }
        let answered = batch.iter().take_while(|item| word(&item.message) != "forgotten");
        BatchOutcome::Each(answered.map(|_| Ok(())).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn one_bad_item_of_a_refused_batch_is_found_and_the_others_are_stored() {
    let mut chunk = messages("good", 64);
    chunk[5] = message("bad");
    chunk[63] = message("bad");
    let consumer = ScriptedConsumer::new([Step::Chunk(chunk.clone()), Step::End]);
    let verdicts = consumer.verdicts();
    let (options, dead_letters, _) = options();
    let service = BatchingService::new(options, limits(64, MINUTE), consumer, as_it_is(), AllOrNothing);
    let summary = service.run(Shutdown::new()).await.unwrap();
    let dead: Vec<_> = dead_letters.letters().iter().map(|letter| letter.message.id).collect();
    assert_eq!(dead, [chunk[5].id, chunk[63].id]);
    assert_eq!((verdicts.count(Verdict::Ack), summary.done), (64, 62));
}

#[tokio::test(start_paused = true)]
async fn an_item_without_an_answer_is_nacked() {
    let chunk: Vec<_> = ["good", "forgotten"].map(message).into();
    let consumer = ScriptedConsumer::new([Step::Chunk(chunk.clone()), Step::End]);
    let verdicts = consumer.verdicts();
    let service = BatchingService::new(
        ServiceOptions::new("test"),
        limits(9, MINUTE),
        consumer,
        as_it_is(),
        AllOrNothing,
    );
    service.run(Shutdown::new()).await.unwrap();
    assert_eq!((verdicts.of(&chunk[0]), verdicts.of(&chunk[1])), (Some(Verdict::Ack), Some(Verdict::Nack)));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_panics_costs_only_the_item_at_fault() {
    let bus = MemoryBus::new();
    bus.subscribe("in", "s");
    let mut all = messages("good", 200);
    all[123] = message("panic");
    bus.publisher("in").publish(all).await;
    let (options, dead_letters, _) = options();
    let (consumer, processor) = (bus.consumer("s", ConsumerLimits::default()), by_word());
    let limits = limits(200, Duration::ZERO);
    let service = BatchingService::new(options, limits, consumer, as_it_is(), processor.clone());
    let running = service.start().await.unwrap();
    pass(MINUTE).await;
    let letter = dead_letters.letters().remove(0);
    assert_eq!((&*letter.reason, letter.attempts), ("panic", 5));
    assert!(processor.done().iter().all(|message| message.attempt == 1));
    let summary = running.stop(DEADLINE).await.unwrap();
    assert_eq!((summary.done, summary.nacked, summary.dead_lettered), (199, 4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_key_function_that_panics_costs_only_the_message_at_fault() {
    let chunk: Vec<_> = ["good", "panic", "good"].map(message).into();
    let consumer = ScriptedConsumer::new([Step::Chunk(chunk.clone()), Step::End]);
    let verdicts = consumer.verdicts();
    let processor = ScriptedProcessor::willing();
    let service =
        BatchingService::new(ServiceOptions::new("test"), limits(9, MINUTE), consumer, as_it_is(), processor)
            .keyed(|item: &Item<()>| assert!(word(&item.message) != "panic", "as scripted"));
    service.run(Shutdown::new()).await.unwrap();
    assert_eq!((verdicts.count(Verdict::Ack), verdicts.of(&chunk[1])), (2, Some(Verdict::Nack)));
}

/// A sink that is down until told otherwise, and says so for the whole call.
#[derive(Clone)]
struct Down(Arc<AtomicBool>, ErrorClass);

impl BatchProcessor<()> for Down {
    async fn process(&self, _batch: &[Item<()>]) -> BatchOutcome {
        match (self.0.load(Ordering::SeqCst), self.1) {
            (true, _) => BatchOutcome::Done,
            (false, ErrorClass::Configuration) => BatchOutcome::Failed(configuration()),
            (false, _) => BatchOutcome::Failed(transient()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_drains_nothing_into_the_dead_letters_and_ends_with_the_first_success() {
    for class in [ErrorClass::Transient, ErrorClass::Configuration] {
        let works = Arc::new(AtomicBool::new(false));
        let mut chunk = messages("x", 30);
        chunk.iter_mut().for_each(|message| message.attempt = 5);
        let consumer = ScriptedConsumer::of(chunk);
        let verdicts = consumer.verdicts();
        let (options, dead_letters, health) = options();
        let sink = Down(Arc::clone(&works), class);
        let service = BatchingService::new(options, limits(10, MINUTE), consumer, as_it_is(), sink);
        let running = service.start().await.unwrap();
        pass(Duration::from_secs(36_000)).await;
        let reason = trouble(&health).unwrap();
        assert!(reason.contains("busy") || reason.contains("forbidden"), "{reason}");
        assert_eq!((verdicts.count(Verdict::Nack), dead_letters.letters().len()), (0, 0));
        works.store(true, Ordering::SeqCst);
        verdicts.settled(30).await;
        assert_eq!((verdicts.count(Verdict::Ack), trouble(&health)), (30, None));
        running.stop(DEADLINE).await.unwrap();
    }
}

/// As many messages at fault as there are workers, each alone in its batch: nothing else could ever succeed.
#[tokio::test(start_paused = true)]
async fn messages_that_fail_alone_do_not_hold_all_workers_for_good() {
    let (bus, letters) = (MemoryBus::new(), MemoryDeadLetters::new());
    bus.subscribe("in", "reader");
    let at_fault = messages("transient", ServiceOptions::new("test").workers);
    bus.publisher("in").publish([at_fault.clone(), messages("good", 50)].concat()).await;
    let options =
        ServiceOptions { dead_letters: Some(Arc::new(letters.clone())), ..ServiceOptions::new("test") };
    let consumer = bus.consumer("reader", ConsumerLimits::default());
    let limits = limits(1, Duration::ZERO);
    let service =
        BatchingService::new(options, limits, consumer, as_it_is(), by_word()).start().await.unwrap();
    let traffic = async {
        while bus.acked("reader").len() < bus.messages("in").len() {
            bus.publisher("in").publish(messages("good", 1)).await;
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, traffic).await.expect("everything ends");
    assert_eq!(letters.letters().len(), at_fault.len());
    service.stop(MINUTE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_answered_is_repeated_and_costs_no_attempt() {
    let bus = MemoryBus::new();
    bus.subscribe("in", "reader");
    bus.publisher("in").publish(messages("good", 3)).await;
    let faults = Faults::script([Some(Fault::Never), Some(Fault::Never)]);
    let processor = by_word();
    let consumer = bus.consumer("reader", ConsumerLimits::default());
    let service = start(limits(3, MINUTE), consumer, Faulty::new(processor.clone(), faults)).await;
    let ended = async {
        while bus.acked("reader").len() < 3 {
            tokio::time::sleep(MINUTE).await;
        }
    };
    tokio::time::timeout(DEADLINE, ended).await.expect("the third call works");
    assert!(processor.done().iter().all(|message| message.attempt == 1));
    assert_eq!(service.stop(MINUTE).await.unwrap().done, 3);
}

#[tokio::test(start_paused = true)]
async fn an_outage_does_not_keep_the_service_from_stopping_in_time() {
    let consumer = ScriptedConsumer::of(messages("x", 30));
    let verdicts = consumer.verdicts();
    let sink = Down(Arc::new(AtomicBool::new(false)), ErrorClass::Transient);
    let running = start(limits(10, MINUTE), consumer, sink).await;
    pass(MINUTE).await;
    let summary = running.stop(Duration::from_secs(5)).await.unwrap();
    assert_eq!((verdicts.count(Verdict::Return), summary.returned), (30, 30));
}

#[tokio::test(start_paused = true)]
async fn an_item_that_fails_while_others_succeed_is_counted_and_dead_lettered_at_the_limit() {
    let (mut worn, fresh) = (message("transient"), message("transient"));
    worn.attempt = 5;
    let bus = MemoryBus::new();
    bus.subscribe("in", "s");
    let first = ScriptedConsumer::new(
        std::iter::once(vec![worn.clone(), fresh.clone()])
            .chain((0..50).map(|_| vec![message("slow")]))
            .map(Step::Chunk),
    );
    let verdicts = first.verdicts();
    let processor = ScriptedProcessor::new(|message, tries| match word(message) {
        "slow" if tries >= 3 => Act::Done,
        _ => Act::Fail(transient()),
    });
    let (options, dead_letters, _) = options();
    let service = BatchingService::new(options, limits(2, Duration::ZERO), first, as_it_is(), processor);
    let running = service.start().await.unwrap();
    verdicts.settled(52).await;
    assert_eq!((verdicts.of(&worn), verdicts.of(&fresh)), (Some(Verdict::Ack), Some(Verdict::Nack)));
    let letters = dead_letters.letters();
    assert_eq!((letters.len(), letters[0].message.id, &*letters[0].reason), (1, worn.id, "busy"));
    running.stop(DEADLINE).await.unwrap();
}

/// A sink that needs time, as every real one does.
#[derive(Clone)]
struct Slow(Duration);

impl BatchProcessor<()> for Slow {
    async fn process(&self, _batch: &[Item<()>]) -> BatchOutcome {
        tokio::time::sleep(self.0).await;
        BatchOutcome::Done
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_flush_can_still_write() {
    let consumer = ScriptedConsumer::of(messages("x", 30));
    let verdicts = consumer.verdicts();
    let running = start(limits(100, MINUTE), consumer, Slow(Duration::from_secs(3))).await;
    pass(Duration::from_secs(1)).await;
    assert_eq!(verdicts.count(Verdict::Ack), 0);
    let summary = running.stop(Duration::from_secs(4)).await.unwrap();
    assert_eq!((verdicts.count(Verdict::Ack), summary.done, verdicts.is_closed()), (30, 30, true));
}

#[tokio::test(start_paused = true)]
async fn a_passed_deadline_gives_back_groups_and_calls_in_flight() {
    let consumer = ScriptedConsumer::of(messages("x", 30));
    let verdicts = consumer.verdicts();
    // The second group has no worker when the time is over.
    let options = ServiceOptions { workers: 1, ..ServiceOptions::new("test") };
    let slow = Slow(Duration::from_secs(600));
    let service = BatchingService::new(options, limits(20, MINUTE), consumer, as_it_is(), slow);
    let running = service.start().await.unwrap();
    pass(Duration::from_secs(1)).await;
    let error = running.stop(Duration::from_secs(5)).await.unwrap_err();
    let ServiceError::Timeout { summary } = error else { panic!("expected a timeout, got {error}") };
    assert_eq!((verdicts.count(Verdict::Return), summary.returned, summary.received), (30, 30, 30));
}

#[tokio::test(start_paused = true)]
async fn dropping_a_running_service_gives_everything_back() {
    let consumer = ScriptedConsumer::of(messages("x", 30));
    let verdicts = consumer.verdicts();
    let running = start(limits(20, MINUTE), consumer, Slow(Duration::from_secs(600))).await;
    pass(Duration::from_secs(1)).await;
    drop(running);
    verdicts.settled(30).await;
    assert_eq!(verdicts.count(Verdict::Return), 30);
}

/// The transformer of the enrichment and ingestion stages: the message itself goes on.
fn onward(message: &Message) -> Outcome<Message> {
    Outcome::Emit(message.clone())
}

/// Whatever fails, hangs for a while, answers late or panics: each message is in the target topic once, each delivery
/// has one verdict, and nothing is given up on.
#[tokio::test(start_paused = true)]
async fn nothing_is_lost_or_doubled_under_faults() {
    let faults = [
        Fault::FailBefore(ErrorClass::Transient),
        Fault::FailAfter(ErrorClass::Transient),
        Fault::FailBefore(ErrorClass::Configuration),
        Fault::Late(Duration::from_secs(2)),
        Fault::Panic,
    ];
    for seed in 1..=20 {
        let bus = MemoryBus::new();
        bus.subscribe("in", "s");
        let sent = messages("x", 500);
        bus.publisher("in").publish(sent.clone()).await;
        let publisher = Faulty::new(bus.publisher("out"), Faults::seeded(seed, 4, faults));
        let (mut options, dead_letters, _) = options();
        options.max_attempts = 0;
        options.retry = RetryPolicy { seed, max: Duration::from_secs(2), ..RetryPolicy::default() };
        let consumer = bus.consumer("s", ConsumerLimits { chunk: 17, ..ConsumerLimits::default() });
        let transformer: TransformFn<fn(&Message) -> Outcome<Message>> = transform_fn(onward);
        let processor = PublishProcessor::new(Arc::new(publisher));
        let limits = limits(40, Duration::ZERO);
        let service = BatchingService::new(options, limits, consumer, transformer, processor);
        let running = service.start().await.unwrap();
        pass(Duration::from_secs(600)).await;
        let summary = running.stop(DEADLINE).await.unwrap();
        let ids = |messages: &[Message]| messages.iter().map(|m| m.id).collect::<HashSet<_>>();
        let (arrived, acked) = (bus.messages("out"), bus.acked("s"));
        assert_eq!((arrived.len(), ids(&arrived)), (500, ids(&sent)), "seed {seed}");
        assert_eq!((acked.len(), summary.done), (500, 500), "seed {seed}: {summary}");
        assert_eq!(
            summary.received,
            summary.done + summary.nacked + summary.returned,
            "seed {seed}: {summary}"
        );
        assert_eq!(dead_letters.letters().len(), 0);
    }
}

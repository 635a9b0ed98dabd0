//! The streaming service's promises.

mod common;

use common::*;
use messagepipeline::{
    Delivery, ErrorClass, Message, Outcome, PayloadSize, RetryPolicy, ServiceError, ServiceOptions, Shutdown,
    StreamingService, Transformer, Verdict, transform_fn,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use testkit::faults::{Fault, Faults, Faulty};
use testkit::memory::{ConsumerLimits, MemoryBus, MemoryDeadLetters};
use testkit::processors::{Act, ScriptedProcessor};
use testkit::scripted_consumer::{ScriptedConsumer, Step};

fn by_word() -> ScriptedProcessor {
    ScriptedProcessor::new(|message, _| match word(message) {
        "wait" => Act::Wait,
        "panic" => Act::Panic,
        "permanent" => Act::Fail(permanent()),
        "transient" => Act::Fail(transient()),
        _ => Act::Done,
    })
}

#[tokio::test(start_paused = true)]
async fn success_and_skip_are_acknowledged_and_failures_are_nacked() {
    let chunk: Vec<_> = ["good", "skip", "bad-value", "permanent"].map(message).into();
    let consumer = ScriptedConsumer::new([Step::Chunk(chunk.clone()), Step::End]);
    let (verdicts, processor) = (consumer.verdicts(), by_word());
    let transformer = transform_fn(|message: &Message| match word(message) {
        "skip" => Outcome::Skip("rule".into()),
        "bad-value" => Outcome::Fail(permanent()),
        _ => Outcome::Emit(()),
    });
    let service =
        StreamingService::new(ServiceOptions::new("test"), consumer, transformer, processor.clone());
    let summary = service.run(Shutdown::new()).await.unwrap();
    let given: Vec<_> = chunk.iter().map(|message| verdicts.of(message).unwrap()).collect();
    assert_eq!(given, [Verdict::Ack, Verdict::Ack, Verdict::Nack, Verdict::Nack]);
    assert_eq!([processor.tries(chunk[1].id), processor.tries(chunk[2].id)], [0, 0]);
    assert_eq!((summary.received, summary.done, summary.skipped, summary.nacked), (4, 1, 1, 2));
}

#[tokio::test(start_paused = true)]
async fn five_blocked_messages_of_one_chunk_are_in_flight_when_workers_are_not_given() {
    let consumer = ScriptedConsumer::of(messages("wait", 20));
    let (verdicts, processor) = (consumer.verdicts(), by_word());
    let options = ServiceOptions { workers: 0, ..ServiceOptions::new("test") };
    let running =
        StreamingService::new(options, consumer, as_it_is(), processor.clone()).start().await.unwrap();
    pass(Duration::from_secs(1)).await;
    assert_eq!(processor.in_flight(), 5);
    processor.release(20);
    verdicts.settled(20).await;
    assert_eq!((processor.most_in_flight(), verdicts.count(Verdict::Ack)), (5, 20));
    running.stop(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_blocked_message_blocks_neither_its_chunk_nor_later_ones() {
    let mut first = messages("good", 100);
    first[0] = message("wait");
    let consumer = ScriptedConsumer::new([Step::Chunk(first), Step::Chunk(messages("good", 100))]);
    let (verdicts, processor) = (consumer.verdicts(), by_word());
    let options = ServiceOptions { workers: 2, ..ServiceOptions::new("test") };
    let running =
        StreamingService::new(options, consumer, as_it_is(), processor.clone()).start().await.unwrap();
    verdicts.settled(199).await;
    processor.release(1);
    verdicts.settled(200).await;
    running.stop(DEADLINE).await.unwrap();
}

#[tokio::test]
async fn start_fails_with_the_consumers_reason() {
    let consumer = ScriptedConsumer::that_does_not_open(configuration());
    let error = StreamingService::new(ServiceOptions::new("test"), consumer, as_it_is(), by_word())
        .start()
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "failed to start message consumer: forbidden: grant the role of a writer");
    assert_eq!(error.class(), ErrorClass::Configuration);
}

#[tokio::test(start_paused = true)]
async fn stop_finishes_what_is_in_flight_and_gives_back_what_is_not_begun() {
    let consumer =
        ScriptedConsumer::new([Step::Chunk(messages("wait", 60)), Step::Chunk(messages("wait", 40))]);
    let (verdicts, processor) = (consumer.verdicts(), by_word());
    let running = StreamingService::new(ServiceOptions::new("test"), consumer, as_it_is(), processor.clone())
        .start()
        .await;
    let running = running.unwrap();
    pass(Duration::from_secs(1)).await;
    let stopping = tokio::spawn(running.stop(DEADLINE));
    pass(Duration::from_secs(1)).await;
    assert!(!stopping.is_finished() && !verdicts.is_closed(), "work in flight was cut off");
    processor.release(5);
    let summary = stopping.await.unwrap().unwrap();
    assert_eq!((verdicts.count(Verdict::Ack), verdicts.count(Verdict::Return)), (5, 95));
    assert_eq!((summary.received, summary.done, summary.returned), (100, 5, 95));
    assert!(verdicts.is_closed());
}

#[tokio::test(start_paused = true)]
async fn stop_reports_a_passed_deadline_and_gives_back_everything() {
    let consumer = ScriptedConsumer::of(messages("wait", 30));
    let verdicts = consumer.verdicts();
    let running =
        StreamingService::new(ServiceOptions::new("test"), consumer, as_it_is(), by_word()).start().await;
    let running = running.unwrap();
    pass(Duration::from_secs(1)).await;
    let error = running.stop(Duration::from_secs(5)).await.unwrap_err();
    let ServiceError::Timeout { summary } = error else { panic!("expected a timeout, got {error}") };
    assert_eq!((verdicts.count(Verdict::Return), summary.returned), (30, 30));
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_goes_to_the_dead_letters_with_all_that_is_known_and_is_acknowledged() {
    let mut bad = message("permanent");
    bad.attempt = 3;
    bad.attributes = [("device_id", "d-1")].into_iter().collect();
    let consumer = ScriptedConsumer::new([Step::Chunk(vec![message("good"), bad.clone()]), Step::End]);
    let verdicts = consumer.verdicts();
    let (options, dead_letters, _) = options();
    let service = StreamingService::new(options, consumer, as_it_is(), by_word());
    let summary = service.run(Shutdown::new()).await.unwrap();
    let letter = dead_letters.letters().remove(0);
    assert_eq!(letter.message, bad);
    assert_eq!((&*letter.stage, &*letter.reason, letter.attempts), ("test", "broken", 3));
    assert_eq!(letter.detail, "the message is broken");
    assert_eq!((verdicts.of(&bad), summary.dead_lettered), (Some(Verdict::Ack), 1));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_panics_is_dead_lettered_in_the_end_and_its_neighbours_lose_no_attempt() {
    let bus = MemoryBus::new();
    bus.subscribe("in", "s");
    let mut all = messages("good", 50);
    all[20] = message("panic");
    messagepipeline::Publisher::publish(&bus.publisher("in"), all).await;
    let (options, dead_letters, _) = options();
    let processor = by_word();
    let consumer = bus.consumer("s", ConsumerLimits::default());
    let running =
        StreamingService::new(options, consumer, as_it_is(), processor.clone()).start().await.unwrap();
    pass(Duration::from_secs(60)).await;
    let letter = dead_letters.letters().remove(0);
    assert_eq!((&*letter.reason, letter.attempts), ("panic", 5));
    assert!(processor.done().iter().all(|message| message.attempt == 1));
    assert_eq!(bus.acked("s").len(), 50);
    let summary = running.stop(DEADLINE).await.unwrap();
    assert_eq!((summary.done, summary.nacked, summary.dead_lettered), (49, 4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_passing_failure_is_repeated_without_costing_an_attempt() {
    let chunk = messages("sometimes", 3);
    let consumer = ScriptedConsumer::of(chunk.clone());
    let verdicts = consumer.verdicts();
    let processor =
        ScriptedProcessor::new(|_, tries| if tries < 4 { Act::Fail(transient()) } else { Act::Done });
    let (options, dead_letters, health) = options();
    let running =
        StreamingService::new(options, consumer, as_it_is(), processor.clone()).start().await.unwrap();
    verdicts.settled(3).await;
    assert_eq!((verdicts.count(Verdict::Ack), processor.tries(chunk[0].id)), (3, 4));
    assert_eq!((trouble(&health), dead_letters.letters().len()), (None, 0));
    running.stop(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_nothing_succeeds_nothing_is_counted_and_the_service_says_why_it_is_not_ready() {
    for class in [ErrorClass::Transient, ErrorClass::Configuration] {
        let works = Arc::new(AtomicBool::new(false));
        let sink = Arc::clone(&works);
        let processor = ScriptedProcessor::new(move |_, _| match (sink.load(Ordering::SeqCst), class) {
            (true, _) => Act::Done,
            (false, ErrorClass::Configuration) => Act::Fail(configuration()),
            (false, _) => Act::Fail(transient()),
        });
        let mut chunk = messages("good", 10);
        chunk.iter_mut().for_each(|message| message.attempt = 5);
        let consumer = ScriptedConsumer::of(chunk);
        let verdicts = consumer.verdicts();
        let (options, dead_letters, health) = options();
        let running = StreamingService::new(options, consumer, as_it_is(), processor).start().await.unwrap();
        pass(Duration::from_secs(3_600)).await;
        let reason = trouble(&health).unwrap();
        assert!(reason.contains("busy") || reason.contains("forbidden"), "{reason}");
        assert_eq!((verdicts.count(Verdict::Nack), dead_letters.letters().len()), (0, 0));
        works.store(true, Ordering::SeqCst);
        verdicts.settled(10).await;
        assert_eq!((verdicts.count(Verdict::Ack), trouble(&health)), (10, None));
        running.stop(DEADLINE).await.unwrap();
    }
}

/// Good messages one by one, so that the service has successes again and again.
fn with_successes(first: Vec<Message>) -> Vec<Step> {
    std::iter::once(first).chain((0..50).map(|_| vec![message("slow")])).map(Step::Chunk).collect()
}

fn slow_or_transient() -> ScriptedProcessor {
    ScriptedProcessor::new(|message, tries| match word(message) {
        "slow" if tries < 4 => Act::Fail(transient()),
        "slow" => Act::Done,
        _ => Act::Fail(transient()),
    })
}

#[tokio::test(start_paused = true)]
async fn a_message_that_fails_while_others_succeed_is_counted_and_dead_lettered_at_the_limit() {
    let (mut worn, fresh) = (message("transient"), message("transient"));
    worn.attempt = 5;
    let consumer = ScriptedConsumer::new(with_successes(vec![worn.clone(), fresh.clone()]));
    let verdicts = consumer.verdicts();
    let (options, dead_letters, _) = options();
    let service = StreamingService::new(options, consumer, as_it_is(), slow_or_transient());
    let running = service.start().await.unwrap();
    verdicts.settled(52).await;
    assert_eq!((verdicts.of(&worn), verdicts.of(&fresh)), (Some(Verdict::Ack), Some(Verdict::Nack)));
    let letters = dead_letters.letters();
    assert_eq!((letters.len(), letters[0].message.id, &*letters[0].reason), (1, worn.id, "busy"));
    running.stop(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn receiving_that_fails_is_repeated_and_shown_and_a_permanent_error_ends_the_service() {
    let good = message("good");
    let consumer = ScriptedConsumer::new([
        Step::Fail(transient()),
        Step::Fail(configuration()),
        Step::Chunk(vec![good.clone()]),
        Step::Fail(permanent()),
    ]);
    let verdicts = consumer.verdicts();
    let (mut options, _, health) = options();
    options.retry = RetryPolicy { base: Duration::from_secs(10), ..RetryPolicy::default() };
    let running = StreamingService::new(options, consumer, as_it_is(), by_word()).start().await.unwrap();
    pass(Duration::from_secs(12)).await;
    assert_eq!(trouble(&health).unwrap(), "receiving fails: forbidden: grant the role of a writer");
    let error = running.wait().await.unwrap_err();
    assert!(matches!(error, ServiceError::Receive { .. }), "{error}");
    assert_eq!(verdicts.of(&good), Some(Verdict::Ack), "what was received is finished first");
    assert!(verdicts.is_closed());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_acknowledged_before_the_dead_letters_have_it() {
    let fail = Some(Fault::FailBefore(ErrorClass::Transient));
    for (faults, expected, kept) in [(3, Verdict::Ack, 1), (9, Verdict::Return, 0)] {
        let bad = message("permanent");
        let consumer = ScriptedConsumer::new([Step::Chunk(vec![bad.clone()]), Step::End]);
        let (verdicts, dead_letters) = (consumer.verdicts(), MemoryDeadLetters::new());
        let faulty = Faulty::new(dead_letters.clone(), Faults::script([fail; 9].into_iter().take(faults)));
        let options = ServiceOptions { dead_letters: Some(Arc::new(faulty)), ..ServiceOptions::new("test") };
        StreamingService::new(options, consumer, as_it_is(), by_word()).run(Shutdown::new()).await.unwrap();
        assert_eq!((verdicts.of(&bad), dead_letters.letters().len()), (Some(expected), kept));
    }
}

#[tokio::test(start_paused = true)]
async fn a_skip_is_recorded_before_it_is_acknowledged() {
    let fail = Some(Fault::FailBefore(ErrorClass::Transient));
    for (faults, expected, kept) in [(3, Verdict::Ack, 1), (9, Verdict::Return, 0)] {
        let skipped = message("any");
        let consumer = ScriptedConsumer::new([Step::Chunk(vec![skipped.clone()]), Step::End]);
        let (verdicts, dead_letters) = (consumer.verdicts(), MemoryDeadLetters::new());
        let faulty = Faulty::new(dead_letters.clone(), Faults::script([fail; 9].into_iter().take(faults)));
        let options = ServiceOptions { dead_letters: Some(Arc::new(faulty)), ..ServiceOptions::new("test") };
        let transformer = transform_fn(|_: &Message| Outcome::<()>::Skip("too-old".into()));
        StreamingService::new(options, consumer, transformer, by_word()).run(Shutdown::new()).await.unwrap();
        assert_eq!((verdicts.of(&skipped), dead_letters.skips().len()), (Some(expected), kept));
    }
}

#[tokio::test(start_paused = true)]
async fn a_transformer_that_panics_costs_only_the_message_at_fault() {
    let mut chunk = messages("good", 100);
    chunk[37] = message("panic");
    chunk[99] = message("panic");
    let consumer = ScriptedConsumer::new([Step::Chunk(chunk.clone()), Step::End]);
    let verdicts = consumer.verdicts();
    let transformer = transform_fn(|message: &Message| {
        assert!(word(message) != "panic", "as scripted");
        Outcome::Emit(())
    });
    let service = StreamingService::new(ServiceOptions::new("test"), consumer, transformer, by_word());
    service.run(Shutdown::new()).await.unwrap();
    assert_eq!((verdicts.count(Verdict::Ack), verdicts.count(Verdict::Nack)), (98, 2));
    assert_eq!(
        (verdicts.of(&chunk[37]), verdicts.of(&chunk[99])),
        (Some(Verdict::Nack), Some(Verdict::Nack))
    );
}

/// A look-up that does not answer for some messages until it works again, and forgets one for good.
struct LookUp(Arc<AtomicBool>);

impl Transformer for LookUp {
    type Output = ();

    async fn transform<'a>(&'a self, deliveries: &'a [Delivery], outcomes: &'a mut Vec<Outcome<()>>) {
        for delivery in deliveries {
            match word(&delivery.message) {
                "forgotten" => return,
                "looked-up" if !self.0.load(Ordering::SeqCst) => outcomes.push(Outcome::Fail(transient())),
                _ => outcomes.push(Outcome::Emit(())),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_look_up_holds_up_only_the_messages_that_need_it() {
    let mut chunk = messages("looked-up", 10);
    chunk.splice(3..3, messages("good", 5));
    chunk.push(message("forgotten"));
    let forgotten = chunk[15].clone();
    let consumer = ScriptedConsumer::of(chunk);
    let (verdicts, works) = (consumer.verdicts(), Arc::new(AtomicBool::new(false)));
    let (options, dead_letters, _) = options();
    let service = StreamingService::new(options, consumer, LookUp(Arc::clone(&works)), by_word());
    let running = service.start().await.unwrap();
    verdicts.settled(6).await;
    assert_eq!((verdicts.count(Verdict::Ack), verdicts.of(&forgotten)), (5, Some(Verdict::Nack)));
    pass(Duration::from_millis(500)).await;
    works.store(true, Ordering::SeqCst);
    verdicts.settled(16).await;
    assert_eq!((verdicts.count(Verdict::Ack), dead_letters.letters().len()), (15, 0));
    running.stop(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_look_up_that_is_down_is_waited_for_and_shown_and_counts_against_no_message() {
    let mut chunk = messages("looked-up", 10);
    chunk.iter_mut().for_each(|message| message.attempt = 5);
    let consumer = ScriptedConsumer::of(chunk);
    let (verdicts, works) = (consumer.verdicts(), Arc::new(AtomicBool::new(false)));
    let (options, dead_letters, health) = options();
    let service = StreamingService::new(options, consumer, LookUp(Arc::clone(&works)), by_word());
    let running = service.start().await.unwrap();
    pass(Duration::from_secs(3_600)).await;
    assert_eq!(trouble(&health).unwrap(), "busy: the sink is busy");
    assert_eq!((verdicts.count(Verdict::Nack), dead_letters.letters().len()), (0, 0));
    works.store(true, Ordering::SeqCst);
    verdicts.settled(10).await;
    assert_eq!((verdicts.count(Verdict::Ack), trouble(&health)), (10, None));
    running.stop(DEADLINE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn payloads_outside_the_bounds_are_skipped_without_asking_the_inner_transformer() {
    let chunk: Vec<_> = [8, 13, 26, 30, 51].map(|size| message(&"x".repeat(size))).into();
    let consumer = ScriptedConsumer::new([Step::Chunk(chunk.clone()), Step::End]);
    let (verdicts, processor) = (consumer.verdicts(), by_word());
    let inner = transform_fn(|message: &Message| {
        assert!((13..=30).contains(&message.payload.len()), "asked for {} bytes", message.payload.len());
        Outcome::Emit(())
    });
    let (options, dead_letters, _) = options();
    let service =
        StreamingService::new(options, consumer, PayloadSize::new(inner, 13, 30), processor.clone());
    let summary = service.run(Shutdown::new()).await.unwrap();
    assert_eq!((summary.done, summary.skipped, verdicts.count(Verdict::Ack)), (3, 2, 5));
    assert!(dead_letters.skips().iter().all(|skip| skip.rule == "payload-size"));
}

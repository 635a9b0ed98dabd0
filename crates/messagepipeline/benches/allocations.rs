//! Allocations per message that the services add to the source's: `cargo bench -p messagepipeline --bench allocations`.
//!
//! Apart from the speed, because counting them costs more than making them.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "prints a table"
)]

mod source;

use messagepipeline::{
    BatchLimits, BatchingService, Message, Outcome, ServiceOptions, Shutdown, StreamingService, Summary,
    transform_fn,
};
use source::{PassThrough, Source, drain};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const MESSAGES: usize = 2_000_000;

fn count<F>(source: Source, work: impl FnOnce(Source) -> F) -> f64
where
    F: Future<Output = Summary> + Send + 'static,
{
    let books = source.books();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let region = Region::new(ALLOCATOR);
    let summary = runtime.block_on(async { tokio::spawn(work(source)).await.unwrap() });
    assert_eq!(summary.done, MESSAGES as u64, "{summary}");
    let change = region.change();
    books.check(MESSAGES);
    (change.allocations + change.reallocations) as f64 / MESSAGES as f64
}

fn main() {
    let length = |message: &Message| Outcome::Emit(message.payload.len());
    let options = || ServiceOptions { workers: 4, ..ServiceOptions::new("bench") };
    let new_source = || Source::new(MESSAGES, false);
    let source = count(new_source(), drain);
    let streaming = count(new_source(), |source| async move {
        let service = StreamingService::new(options(), source, transform_fn(length), PassThrough);
        service.run(Shutdown::new()).await.unwrap()
    });
    report("streaming", streaming - source);
    for size in [100, 1_000] {
        let limits = BatchLimits { count: size, ..BatchLimits::default() };
        let batching = count(new_source(), |source| async move {
            let service = BatchingService::new(options(), limits, source, transform_fn(length), PassThrough);
            service.run(Shutdown::new()).await.unwrap()
        });
        report(&format!("batching, {size} a batch"), batching - source);
    }
}

fn report(name: &str, allocations: f64) {
    println!("{name}: {allocations:.3} allocations per message of its own");
    println!("figure\tcore: allocations, {name}\t{allocations:.3}\tper message");
}

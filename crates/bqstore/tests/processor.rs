//! The row processor over the table double, and the double under the suite that every table passes.
#![allow(clippy::unwrap_used, reason = "a failing helper fails its test")]

use bqstore::{Columns, Row, RowMapper, RowProcessor};
use messagepipeline::{BatchOutcome, BatchProcessor, ErrorClass, Item, Message};
use std::sync::Arc;
use testkit::sink_suite::{self as suite, MemoryTable, MemoryTableUnderTest};

fn batch(messages: &[Message]) -> Vec<Item<Row>> {
    let mapper = RowMapper::new(Columns::default());
    messages.iter().map(|m| Item::detached(m.clone(), mapper.map(m).unwrap())).collect()
}

#[tokio::test(start_paused = true)]
async fn an_empty_batch_calls_nothing() {
    let table = Arc::new(MemoryTable::new(&Columns::default()));
    let outcome = RowProcessor::new(table.clone()).process(&[]).await;
    assert!(matches!(outcome, BatchOutcome::Done));
    assert_eq!(table.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_failed_call_fails_the_batch_as_a_whole_and_success_is_done() {
    let table = Arc::new(MemoryTable::new(&Columns::default()));
    let processor = RowProcessor::new(table.clone());
    let batch = batch(&suite::messages(3));
    table.fail(Some(ErrorClass::Configuration));
    let BatchOutcome::Failed(error) = processor.process(&batch).await else { panic!("no row is stored") };
    assert_eq!(error.class(), ErrorClass::Configuration);
    table.fail(None);
    assert!(matches!(processor.process(&batch).await, BatchOutcome::Done));
    assert_eq!(table.rows().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_refused_row_is_the_only_one_with_an_error() {
    let table = Arc::new(MemoryTable::new(&Columns::default()));
    let processor = RowProcessor::new(table.clone());
    let mut messages = suite::messages(3);
    processor.process(&batch(&messages[1..2])).await;
    messages[1].payload = "other".into();
    let BatchOutcome::Each(results) = processor.process(&batch(&messages)).await else {
        panic!("one result per row")
    };
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
}

#[tokio::test(start_paused = true)]
async fn the_table_double_passes_the_suite() {
    suite::a_row_is_stored_once_over_repeats(&mut MemoryTableUnderTest::default()).await;
    suite::a_conflicting_row_is_refused_alone(&mut MemoryTableUnderTest::default()).await;
    suite::payloads_are_stored_byte_for_byte(&mut MemoryTableUnderTest::default()).await;
    suite::columns_come_and_go(&mut MemoryTableUnderTest::default()).await;
}

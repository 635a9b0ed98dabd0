//! The batch processor that stores rows.

use crate::{Row, RowInserter, RowOutcome};
use messagepipeline::{BatchOutcome, BatchProcessor, Item, StageError, metric_names};
use metrics::Counter;
use std::sync::Arc;

/// Stores each item's row and answers for every one: a refused row takes no other row with it.
#[derive(Clone)]
pub struct RowProcessor {
    inserter: Arc<dyn RowInserter>,
    rows: Counter,
    duplicates: Counter,
}

impl RowProcessor {
    /// Stores through `inserter`.
    #[must_use]
    pub fn new(inserter: Arc<dyn RowInserter>) -> Self {
        Self {
            inserter,
            rows: metrics::counter!(metric_names::WAREHOUSE_ROWS),
            duplicates: metrics::counter!(metric_names::WAREHOUSE_DUPLICATES),
        }
    }
}

impl std::fmt::Debug for RowProcessor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RowProcessor")
    }
}

impl BatchProcessor<Row> for RowProcessor {
    async fn process(&self, batch: &[Item<Row>]) -> BatchOutcome {
        if batch.is_empty() {
            return BatchOutcome::Done;
        }
        let outcomes = match self.inserter.insert(batch.iter().map(|item| item.value.clone()).collect()).await
        {
            Ok(outcomes) => outcomes,
            Err(error) => return BatchOutcome::Failed(error),
        };
        let count = |wanted: fn(&RowOutcome) -> bool| outcomes.iter().filter(|o| wanted(o)).count() as u64;
        self.rows.increment(count(|outcome| matches!(outcome, RowOutcome::Stored)));
        self.duplicates.increment(count(|outcome| matches!(outcome, RowOutcome::AlreadyStored)));
        answer(outcomes, batch.len())
    }
}

fn answer(outcomes: Vec<RowOutcome>, rows: usize) -> BatchOutcome {
    let refused = outcomes.iter().any(|outcome| matches!(outcome, RowOutcome::Refused(_)));
    if outcomes.len() == rows && !refused {
        return BatchOutcome::Done;
    }
    let result = |outcome| match outcome {
        RowOutcome::Stored | RowOutcome::AlreadyStored => Ok(()),
        RowOutcome::Refused(error) => Err::<(), StageError>(error),
    };
    BatchOutcome::Each(outcomes.into_iter().map(result).collect())
}

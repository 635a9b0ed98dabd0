//! Configuration → running parts: bus consumer → row mapper → row inserter.

use crate::WarehouseConfig;
use bqstore::{Columns, RowInserter, RowMapper, RowProcessor};
use messagepipeline::{
    BatchLimits, BatchingService, BoxConsumer, DeadLetters, FlushRequest, ServiceOptions, SourceWindow,
    StageHealth,
};
use std::sync::Arc;

/// The stage's name.
pub const STAGE: &str = "bigquery";

/// The service, ready to run.
pub type Warehouse = BatchingService<BoxConsumer, RowMapper, RowProcessor>;

/// What the service is given from outside.
pub struct Parts {
    /// The enriched topic.
    pub consumer: BoxConsumer,
    /// The table; open.
    pub inserter: Arc<dyn RowInserter>,
    /// Where messages go whose rows are refused.
    pub dead_letters: Arc<dyn DeadLetters>,
    /// The stage's line on the health board.
    pub health: StageHealth,
    /// Asks for what is grouped to be written now.
    pub flush: FlushRequest,
}

/// The section, checked.
#[derive(Clone, Debug)]
pub struct Plan {
    config: WarehouseConfig,
    columns: Columns,
}

impl Plan {
    /// Checks the section. Opens nothing.
    ///
    /// # Errors
    /// Every mistake with its path below `bigquery`.
    pub fn new(config: &WarehouseConfig) -> Result<Self, Vec<(String, String)>> {
        let mut mistakes = crate::check::check(config);
        match Columns::new(&config.columns) {
            Ok(columns) if mistakes.is_empty() => return Ok(Self { config: config.clone(), columns }),
            Ok(_) => {}
            Err(problems) => mistakes.extend(problems.0.into_iter().map(|problem| {
                let place = problem.index.map_or_else(String::new, |index| format!("[{index}]"));
                let key = if problem.key.is_empty() { String::new() } else { format!(".{}", problem.key) };
                (format!("columns{place}{key}"), problem.detail)
            })),
        }
        Err(mistakes)
    }

    /// The checked columns.
    #[must_use]
    pub fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Name of the table.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.config.table
    }

    /// The service over `parts`.
    #[must_use]
    pub fn build(self, parts: Parts) -> Warehouse {
        let batch = &self.config.batch;
        let limits = BatchLimits {
            count: batch.count as usize,
            bytes: batch.bytes.as_usize(),
            age: batch.age.get(),
            budget: self.config.max_in_flight_bytes.as_usize(),
        };
        let options = ServiceOptions {
            max_attempts: self.config.max_attempts,
            dead_letters: Some(parts.dead_letters),
            health: Some(parts.health),
            flush: Some(parts.flush),
            window: Some(SourceWindow {
                messages: self.config.max_in_flight as usize,
                bytes: self.config.max_in_flight_bytes.as_usize(),
            }),
            ..ServiceOptions::new(STAGE)
        };
        let mapper = RowMapper::new(self.columns);
        BatchingService::new(options, limits, parts.consumer, mapper, RowProcessor::new(parts.inserter))
    }
}

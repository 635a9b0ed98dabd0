//! Warehouse rows: column mapping, the row inserter trait and the batch processor over it.
//!
//! ```text
//!  Message ──RowMapper──► Row ──BatchingService──► RowProcessor ──► RowInserter (SQLite, BigQuery, a double)
//!            Columns: where each value comes from                   one answer per row
//! ```
//!
//! A message becomes a row whatever its payload is: what a column does not find is NULL. Only a column that the
//! configuration calls `required` or `strict` sends a message to the dead letters.

#[cfg(feature = "bigquery")]
pub mod bigquery;
mod column;
mod error;
mod fields;
mod inserter;
mod mapper;
mod processor;
mod row_type;
mod source;
mod value;

pub use column::{Column, ColumnConfig, ColumnProblem, ColumnType, Columns, InvalidColumns, SourceConfig};
pub use column::{MESSAGE_ID, default_columns, identifier_problem};
pub use error::Error;
pub use inserter::{RowInserter, RowOutcome};
pub use mapper::{Row, RowMapper};
pub use processor::RowProcessor;
pub use row_type::columns_of;
pub use source::{Pointer, Source};
pub use value::{Text, Value};

//! Where rows are stored.

use crate::Row;
use futures_util::future::BoxFuture;
use messagepipeline::StageError;

/// What became of one row.
#[derive(Debug)]
pub enum RowOutcome {
    /// It is stored.
    Stored,
    /// A row with this id and the same payload was stored before; nothing changed.
    AlreadyStored,
    /// The table does not take it; the other rows are not touched by that. An id that is stored with another
    /// payload is refused with the reason [`messagepipeline::ID_CONFLICT`].
    Refused(StageError),
}

/// A table that takes rows.
///
/// # Contract
/// - [`open`](RowInserter::open) comes first and makes the table ready: it creates a missing table and adds missing
///   columns, and uses what is there as it is. A creation that another process wins is no error.
/// - The rows hold a value per column, in the order of the columns the inserter was made for.
/// - `insert` answers when what it calls stored is durable: one outcome per row, in order. An id that comes again,
///   in the same call or in a later one, becomes no second row.
/// - An error from `insert` is about the call as a whole: it says that *no* row of this call is known to be stored.
///   Inserting the same rows again is then safe.
/// - Dropping the future of `insert` leaves it open whether the rows are stored.
/// - `close` comes last; what was answered before is durable without it.
pub trait RowInserter: Send + Sync {
    /// Makes the table ready.
    fn open(&self) -> BoxFuture<'_, Result<(), StageError>>;

    /// Stores `rows`, which is not empty. Cloning a row copies no value.
    fn insert(&self, rows: Vec<Row>) -> BoxFuture<'_, Result<Vec<RowOutcome>, StageError>>;

    /// Lets go of the table.
    fn close(&self) -> BoxFuture<'_, Result<(), StageError>>;
}

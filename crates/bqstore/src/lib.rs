//! Warehouse rows: column mapping, the row inserter trait and the batch processor over it.

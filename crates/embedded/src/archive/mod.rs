//! The archive of one machine.

//! The endpoint from outside: packets written by hand and by real clients, over loopback sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail by panicking, too")]

mod clients;
mod exactly_once;
mod publishing;
mod refusals;
mod security;
mod sessions;
mod shutdown;
mod support;

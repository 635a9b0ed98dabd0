//! The endpoint from outside: packets written by hand and by real clients, over loopback sockets.

mod clients;
mod publishing;
mod refusals;
mod security;
mod sessions;
mod shutdown;
mod support;

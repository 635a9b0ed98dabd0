//! One program for the whole path: MQTT to bus, enrichment, warehouse and archive on one machine.

pub mod feed;
pub mod pointer;
pub mod rate;
pub mod recording;
pub mod simulate;
pub mod table;
pub mod template;
pub mod check;
pub mod cli;
pub mod config;
pub mod system;
pub mod books;
pub mod commands;
pub mod output;
pub mod progress;

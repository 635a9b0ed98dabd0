//! One program for the whole path: MQTT to bus, enrichment, warehouse and archive on one machine.

pub mod books;
pub mod check;
pub mod cli;
pub mod commands;
pub mod config;
pub mod control;
pub mod feed;
pub mod output;
pub mod pointer;
pub mod progress;
pub mod rate;
pub mod recording;
pub mod simulate;
pub mod system;
pub mod table;
pub mod template;

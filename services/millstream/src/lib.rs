//! One program for the whole path: MQTT to bus, enrichment, warehouse and archive on one machine.

pub mod pointer;
pub mod rate;
pub mod recording;
pub mod template;

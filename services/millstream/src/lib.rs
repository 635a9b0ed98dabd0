//! One program for the whole path: MQTT to bus, enrichment, warehouse and archive on one machine.

//! The ingestion service: MQTT in, routes and device ids, the raw topic out.

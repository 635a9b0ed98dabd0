//! Names of all metrics, in one place. `docs/metrics.md` describes them; a test keeps both in step.
//!
//! Labels: `stage` is the service (`ingestion`, `enrichment`, `bigquery`, `icestore`), `reason` a word in kebab case.

/// Counter: messages taken from the consumer. Label `stage`.
pub const MESSAGES_IN: &str = "millstream_messages_in_total";
/// Counter: messages acknowledged after success. Label `stage`.
pub const MESSAGES_OUT: &str = "millstream_messages_out_total";
/// Counter: messages ended by a rule. Labels `stage`, `reason`.
pub const MESSAGES_SKIPPED: &str = "millstream_messages_skipped_total";
/// Counter: messages given to the dead letters. Labels `stage`, `reason`.
pub const MESSAGES_DEAD: &str = "millstream_messages_dead_lettered_total";
/// Counter: messages given back for another delivery. Labels `stage`, `reason` (`failed` or `returned`).
pub const MESSAGES_NACKED: &str = "millstream_messages_nacked_total";
/// Counter: panics caught in transformers and processors. Label `stage`.
pub const PANICS: &str = "millstream_panics_total";
/// Counter: repeated tries after a transient error. Label `stage`.
pub const RETRIES: &str = "millstream_retries_total";
/// Histogram, seconds: how long a processor call took. Label `stage`.
pub const PROCESS_SECONDS: &str = "millstream_process_seconds";
/// Counter: batches flushed. Labels `stage`, `reason` (`count`, `bytes`, `age`, `memory`, `idle`, `shutdown`).
pub const FLUSHES: &str = "millstream_flushes_total";
/// Gauge: bytes held in open and flushing batches. Label `stage`.
pub const BATCH_BYTES: &str = "millstream_batch_bytes";
/// Gauge: open groups of a key-aware batcher. Label `stage`.
pub const BATCH_GROUPS: &str = "millstream_batch_groups";

/// Gauge: open MQTT connections at the endpoint.
pub const MQTT_CONNECTIONS: &str = "millstream_mqtt_connections";
/// Counter: PUBLISH packets taken. Label `qos`.
pub const MQTT_PUBLISHES: &str = "millstream_mqtt_publishes_total";
/// Counter: PUBLISH packets that repeated one in flight and were not stored again.
pub const MQTT_DUPLICATES: &str = "millstream_mqtt_duplicates_total";
/// Counter: QoS 2 messages under a packet identifier that the device had not released; it has lost its memory.
pub const MQTT_IDENTIFIERS_REUSED: &str = "millstream_mqtt_identifiers_reused_total";
/// Counter: what the endpoint refused. Label `reason`.
pub const MQTT_REFUSED: &str = "millstream_mqtt_refused_total";
/// Gauge: when the endpoint's certificate expires, in seconds since 1970.
pub const MQTT_CERTIFICATE_EXPIRY: &str = "millstream_mqtt_certificate_expiry_timestamp_seconds";
/// Gauge: 1 while the endpoint's TLS files as they are cannot be used and the ones read before stay in force.
pub const MQTT_CERTIFICATE_REFUSED: &str = "millstream_mqtt_certificate_refused";
/// Gauge: 1 while the client is connected to the outside broker.
pub const MQTT_BROKER_CONNECTED: &str = "millstream_mqtt_broker_connected";
/// Counter: connections made to the outside broker.
pub const MQTT_BROKER_CONNECTS: &str = "millstream_mqtt_broker_connects_total";
/// Counter: PUBLISH packets that the outside broker marks as sent before and that were taken as new messages.
pub const MQTT_BROKER_REDELIVERED: &str = "millstream_mqtt_broker_redelivered_total";
/// Counter: reconnections at which the outside broker had forgotten the session.
pub const MQTT_BROKER_SESSIONS_LOST: &str = "millstream_mqtt_broker_sessions_lost_total";
/// Counter: device ids found in a topic or payload that cannot be used (too long, empty, control characters).
pub const DEVICE_IDS_REFUSED: &str = "millstream_device_ids_refused_total";

/// Gauge: messages of a subscription that are not settled. Label `subscription`.
pub const BUS_BACKLOG: &str = "millstream_bus_backlog_messages";
/// Gauge, seconds: age of the oldest unsettled message of a subscription. Label `subscription`.
pub const BUS_OLDEST_SECONDS: &str = "millstream_bus_oldest_seconds";
/// Counter: messages written to a topic. Label `topic`.
pub const BUS_PUBLISHED: &str = "millstream_bus_published_total";
/// Counter: publishes of an id that the topic already held. Label `topic`.
pub const BUS_DUPLICATES: &str = "millstream_bus_duplicates_total";
/// Counter: messages delivered again. Label `subscription`.
pub const BUS_REDELIVERED: &str = "millstream_bus_redelivered_total";
/// Counter: leases that ran out. Label `subscription`.
pub const BUS_LEASES_EXPIRED: &str = "millstream_bus_leases_expired_total";
/// Counter: streams of a Pub/Sub subscription that ended and were opened again. Label `subscription`.
pub const PUBSUB_STREAM_FAILURES: &str = "millstream_pubsub_stream_failures_total";
/// Histogram, seconds: one commit with its sync. Label `database`.
pub const COMMIT_SECONDS: &str = "millstream_commit_seconds";

/// Counter: look-ups answered by a layer. Labels `layer`, `result` (`hit`, `miss`, `negative`, `error`).
pub const CACHE_LOOKUPS: &str = "millstream_cache_lookups_total";
/// Counter: enrichment outcomes. Label `result` (`enriched`, `unknown-device`, `no-key`, `parked`).
pub const ENRICHMENT_RESULTS: &str = "millstream_enrichment_results_total";
/// Gauge: parked messages.
pub const PARKED: &str = "millstream_parked_messages";

/// Counter: rows stored.
pub const WAREHOUSE_ROWS: &str = "millstream_warehouse_rows_total";
/// Counter: rows that were already stored.
pub const WAREHOUSE_DUPLICATES: &str = "millstream_warehouse_duplicates_total";
/// Counter: archive objects finished.
pub const ARCHIVE_OBJECTS: &str = "millstream_archive_objects_total";
/// Counter: archive lines stored.
pub const ARCHIVE_LINES: &str = "millstream_archive_lines_total";
/// Counter: bytes of finished archive objects, compressed.
pub const ARCHIVE_BYTES: &str = "millstream_archive_bytes_total";
/// Counter: lines that were already archived.
pub const ARCHIVE_DUPLICATES: &str = "millstream_archive_duplicates_total";

/// Counter: ids that retention folded into the ledger's sums.
pub const IDS_FOLDED: &str = "millstream_ids_folded_total";
/// Gauge, seconds: age of the horizon of the last completed pass over the ids; what was settled before it is folded.
pub const HORIZON_SECONDS: &str = "millstream_retention_horizon_seconds";
/// Counter: rows that retention removed from the warehouse.
pub const WAREHOUSE_REMOVED: &str = "millstream_warehouse_removed_rows_total";
/// Counter: objects that retention removed from the archive.
pub const ARCHIVE_REMOVED: &str = "millstream_archive_removed_objects_total";

//! What the types alone cannot tell: whether the settings work, by themselves and together.

use crate::config::Config;
use crate::system::{asked_for, has_remote_sink};
use connectors::BusKind;
pub use connectors::{ENRICHED, RAW};
use enrichment_service::UnknownDevicePolicy;
#[cfg(feature = "google")]
use icestore_service::ArchiveKind;
use messagepipeline::{Clock, SystemClock};
use service_kit::config::{Check, ConfigErrors, Duration, Loaded, Problem, pointer};

/// The services' checked sections.
pub struct Plans {
    /// MQTT in.
    pub ingestion: ingestion_service::Plan,
    /// Device data added.
    pub enrichment: enrichment_service::Plan,
    /// The warehouse.
    pub warehouse: bigquery_service::Plan,
    /// The archive.
    pub archive: icestore_service::Plan,
}

/// Checks everything and opens nothing but the TLS files that are named. Answers the checked sections and the warnings.
///
/// # Errors
/// Every mistake with its place.
pub fn check(loaded: &Loaded<Config>) -> Result<(Plans, Vec<Problem>), ConfigErrors> {
    let config = &loaded.value;
    let mut check = loaded.check();
    let routed: Vec<&str> = match config.bus.kind {
        BusKind::Embedded => vec![RAW],
        // Any topic of the project may be routed to.
        BusKind::Pubsub => config.ingestion.routes.iter().map(|route| route.topic.as_str()).collect(),
    };
    let ingestion = ingestion_service::Plan::new(&config.ingestion, &routed);
    let ingestion = ingestion.map_err(|mistakes| mistakes.into_iter().map(Into::into).collect());
    let ingestion = collect(&mut check, "/ingestion", ingestion);
    let enrichment = collect(&mut check, "/enrichment", enrichment_service::Plan::new(&config.enrichment));
    let warehouse = collect(&mut check, "/bigquery", bigquery_service::Plan::new(&config.bigquery));
    let archive = collect(&mut check, "/icestore", icestore_service::Plan::new(&config.icestore));
    if let Some(plan) = &ingestion {
        for warning in plan.warnings() {
            check.section("/ingestion", |check| check.warn(&pointer(&warning.path), &warning.message));
        }
    }
    outside(config, &mut check);
    combinations(config, &mut check);
    leases(config, &mut check);
    ingestion_service::check_certificates(&config.ingestion, SystemClock.now(), &mut check);
    check.mistakes("/enrichment", enrichment_service::file_mistakes(&config.enrichment));
    retention(config, &mut check);
    match (ingestion, enrichment, warehouse, archive) {
        (Some(ingestion), Some(enrichment), Some(warehouse), Some(archive)) => {
            let warnings = check.finish()?;
            Ok((Plans { ingestion, enrichment, warehouse, archive }, warnings))
        }
        _ => Err(check.finish().err().unwrap_or_else(no_plan_means_a_mistake)),
    }
}

#[expect(clippy::unreachable, reason = "a plan is missing only together with a mistake that was collected")]
fn no_plan_means_a_mistake() -> ConfigErrors {
    unreachable!("a section was refused without a mistake")
}

fn collect<T>(check: &mut Check, section: &str, plan: Result<T, Vec<(String, String)>>) -> Option<T> {
    plan.map_err(|mistakes| check.mistakes(section, mistakes)).ok()
}

/// What stands outside the data folder.
fn outside(config: &Config, check: &mut Check) {
    if !cfg!(feature = "google") {
        for key in asked_for(config) {
            check.error(
                key,
                "needs what this program was built without: build it with `cargo build --release --features google`",
            );
        }
    }
    #[cfg(feature = "google")]
    google(config, check);
    let retention = &config.retention;
    if has_remote_sink(config) && (retention.warehouse.is_some() || retention.archive.is_some()) {
        check.error(
            "/retention",
            "does not reach sinks outside the data folder: leave warehouse and archive out, and set an expiration of the \
             table and a lifecycle of the bucket",
        );
    }
    if config.bus.kind == BusKind::Pubsub && config.enrichment.unknown_device == UnknownDevicePolicy::Park {
        check.error(
            "/enrichment/unknown_device",
            "is park, which Pub/Sub has no place for: set it to pass or dead-letter",
        );
    }
}

/// Names, project, credentials and emulators of what stands on Google Cloud.
#[cfg(feature = "google")]
fn google(config: &Config, check: &mut Check) {
    use bigquery_service::WarehouseKind;
    use connectors::GooglePart;
    use enrichment_service::SourceKind;

    let asked = [
        (GooglePart::PubSub, config.bus.kind == BusKind::Pubsub),
        (GooglePart::Firestore, config.enrichment.source.kind == SourceKind::Firestore),
        (GooglePart::BigQuery, config.bigquery.kind == WarehouseKind::Bigquery),
        (GooglePart::Storage, config.icestore.kind == ArchiveKind::CloudStorage),
    ];
    let parts: Vec<GooglePart> = asked.into_iter().filter(|(_, is)| *is).map(|(part, _)| part).collect();
    if !parts.is_empty() {
        connectors::check_google(&config.google, &parts, &std::env::vars().collect(), check);
    }
    if config.bus.kind == BusKind::Pubsub {
        connectors::check_pubsub(&config.bus, check);
        for (index, route) in config.ingestion.routes.iter().enumerate() {
            let pointer = format!("/ingestion/routes/{index}/topic");
            connectors::check_topic(&config.bus.pubsub, &route.topic, &pointer, check);
        }
    }
}

/// Windows, batches, ages and deadlines that work against each other.
fn combinations(config: &Config, check: &mut Check) {
    let archive = &config.icestore;
    if archive.batch.bytes.bytes() > archive.memory.bytes() {
        check.warn(
            "/icestore/batch/bytes",
            "is larger than icestore.memory, which therefore ends objects first",
        );
    }
    if u64::from(archive.batch.count) > u64::from(archive.max_in_flight) {
        check.warn(
            "/icestore/batch/count",
            "is more than icestore.max_in_flight lets in; objects end at their age",
        );
    }
    let warehouse = &config.bigquery;
    if u64::from(warehouse.batch.count) > u64::from(warehouse.max_in_flight) {
        check.warn(
            "/bigquery/batch/count",
            "is more than bigquery.max_in_flight lets in; batches end at their age",
        );
    }
    if config.shutdown.drain.get() < std::time::Duration::from_secs(2) {
        check.warn(
            "/shutdown/drain",
            "leaves little time to finish; what is not finished is done at the next start",
        );
    }
    if config.enrichment.cache.negative_age > config.enrichment.cache.max_age {
        check.warn(
            "/enrichment/cache/negative_age",
            "is longer than cache.max_age; new devices are noticed late",
        );
    }
    if config.ingestion.broker.is_none()
        && u32::from(config.ingestion.mqtt.receive_maximum) > config.ingestion.max_in_flight
    {
        check.warn(
            "/ingestion/mqtt/receive_maximum",
            "is more than ingestion.max_in_flight: a single device can fill the whole window",
        );
    }
    if !config.http.listen.ip().is_loopback() {
        check.warn(
            "/http/listen",
            "is reachable from outside; metrics and readiness are shown to anybody who asks",
        );
    }
}

/// A group waits for its age and is written then, and the lease of its first message must last for both. The half
/// that is left is for writing it.
fn leases(config: &Config, check: &mut Check) {
    let lease = config.bus.lease;
    for (pointer, age) in [
        ("/icestore/batch/age", config.icestore.batch.age),
        ("/bigquery/batch/age", config.bigquery.batch.age),
    ] {
        if age.get() * 2 > lease.get() {
            let (longer, shorter) = (Duration::from(age.get() * 2), Duration::from(lease.get() / 2));
            let message = format!(
                "is more than half of bus.lease ({lease}): messages would be delivered again before their group is \
                 written; set bus.lease to {longer} or more, or this to {shorter} or less"
            );
            check.error(pointer, message);
        }
    }
}

/// How long the endpoint keeps the session of a device that is away: so late it may send a message again.
const ENDPOINT_SESSION: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// What is forgotten must not come again, and ids are forgotten before what they stand for.
fn retention(config: &Config, check: &mut Check) {
    let retention = &config.retention;
    for (pointer, kept) in
        [("/retention/warehouse", retention.warehouse), ("/retention/archive", retention.archive)]
    {
        match (kept, retention.ids) {
            (Some(_), None) => {
                check.error(pointer, "needs retention.ids: a message is removed after its id is forgotten");
            }
            (Some(kept), Some(ids)) if kept < ids => {
                check.error(
                    pointer,
                    format!("is shorter than retention.ids ({ids}): make it at least as long"),
                );
            }
            _ => {}
        }
    }
    let Some(ids) = retention.ids else { return };
    let lease = config.bus.lease;
    if ids.get() < lease.get() * 2 {
        check.error(
            "/retention/ids",
            format!(
                "is less than twice bus.lease ({lease}): a message that a service still holds could be stored again"
            ),
        );
    }
    let ingestion = &config.ingestion;
    if ingestion.message_id.is_none() {
        return;
    }
    let session = ingestion.broker.as_ref().map_or(ENDPOINT_SESSION, |broker| broker.session_expiry.get());
    if ids.get() < session {
        check.error(
            "/retention/ids",
            format!(
                "is shorter than a session ({session:?}), and so late a message may be sent again under its id \
                 (ingestion.message_id): make it longer"
            ),
        );
    }
}

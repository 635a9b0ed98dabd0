//! The TLS files that the configuration names: whether they can be used, and for how long.

use crate::app::endpoint_parts;
use crate::{IngestionConfig, broker_options};
use messagepipeline::Timestamp;
use mqttconverter::tls::{Identity, TlsError, client_config, server_config, validity};
use service_kit::config::Check;

/// Reads the TLS files that the section `ingestion` names and says what is wrong with them, or will be soon.
pub fn check_certificates(ingestion: &IngestionConfig, now: Timestamp, check: &mut Check) {
    if let Some(broker) = &ingestion.broker {
        let tls = broker_options(broker, ingestion).tls;
        // Without files of its own there is nothing to read but the system's authorities.
        if tls.ca.is_none() && tls.identity.is_none() {
            return;
        }
        check.section("/ingestion/broker/tls", |check| {
            report(client_config(&tls).map(drop), tls.identity.as_ref(), now, check);
        });
        return;
    }
    let Some(tls) = endpoint_parts(ingestion).0.tls else { return };
    check.section("/ingestion/mqtt/tls", |check| {
        report(server_config(&tls).map(drop), Some(&tls.identity), now, check);
    });
}

fn report(usable: Result<(), TlsError>, identity: Option<&Identity>, now: Timestamp, check: &mut Check) {
    if let Err(error) = usable {
        check.error("", error.to_string());
        return;
    }
    let Some(identity) = identity else { return };
    match validity(identity) {
        Err(error) => check.error("/cert", error.to_string()),
        Ok(validity) => {
            if let Some(concern) = validity.concern(now) {
                check.warn("/cert", format!("{} {concern}", identity.certificate.display()));
            }
        }
    }
}

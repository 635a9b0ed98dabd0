//! Programs that wait for what is not there.

use crate::common::{get, until};
use crate::installation::Installation;
use crate::service::{SERVICES, Service};
use std::net::{Ipv4Addr, TcpListener};
use testkit::rig::{Configuration, RAW, RigOptions};
use testkit::servers::SubscriptionSettings;

/// What every outside call of the four programs meets.
enum Outside {
    /// Nobody listens.
    Refuses,
    /// Connections are taken and nothing is ever answered.
    Silent(TcpListener),
}

impl Outside {
    fn address(&self) -> String {
        let listener = match self {
            Self::Refuses => &TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            Self::Silent(listener) => listener,
        };
        listener.local_addr().unwrap().to_string()
    }
}

/// Where in its life a program is when it is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    /// The signals are taken and nothing is open yet.
    Starting,
    /// Its stages run; `/readyz` says what they wait for.
    Waiting,
}

#[test]
fn a_missing_subscription_makes_a_service_not_ready_with_its_name_until_it_is_there() {
    let test = "a_missing_subscription_makes_a_service_not_ready_with_its_name_until_it_is_there";
    let Some(mut installation) = Installation::new(test, RigOptions::default()) else { return };
    let bus = installation.rig.bus();
    bus.delete_subscription("enrichment");
    installation.start("enrichment", 0);
    let service = &installation.running[&("enrichment", 0)];
    until("it has installed its signals", || service.listens());
    until("it names what is missing", || {
        let (status, body) = get(service.http(), "/readyz");
        status == 503 && body.contains("subscriptions/enrichment")
    });
    bus.create_subscription("enrichment", RAW, &SubscriptionSettings::default());
    until("it is ready", || get(service.http(), "/readyz").0 == 200);
}

/// The drain is set so short that a program that waited for any deadline of an outside call would not end with 0.
#[test]
fn sigterm_ends_a_program_well_that_waits_for_a_broker_redis_pubsub_dataset_or_bucket() {
    let silent = || Outside::Silent(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    stop_all(&Outside::Refuses, When::Waiting, "");
    stop_all(&silent(), When::Starting, "");
    stop_all(&silent(), When::Waiting, "");
    // What is missing is made at the start, which waits for Pub/Sub's answers.
    stop_all(&silent(), When::Starting, "create: true");
}

fn stop_all(outside: &Outside, when: When, pubsub: &str) {
    let folder = tempfile::tempdir().unwrap();
    let address = outside.address();
    let configuration = Configuration {
        mqtt_url: format!("mqtt://{address}"),
        redis_url: format!("redis://{address}"),
        data: folder.path().join("data"),
        extra: "shutdown: {drain: 5s}\n".to_owned(),
    };
    let text = configuration.to_string().replace("  pubsub:\n", &format!("  pubsub:\n    {pubsub}\n"));
    let file = folder.path().join("waiting.yaml");
    std::fs::write(&file, text).unwrap();
    let emulators = ["PUBSUB", "FIRESTORE", "STORAGE", "BIGQUERY", "BIGQUERY_STORAGE"];
    let variables = emulators.map(|part| format!("{part}_EMULATOR_HOST").leak() as &'static str);
    let mut environment: Vec<_> = variables.iter().map(|name| (*name, address.clone())).collect();
    environment.push(("GOOGLE_CLOUD_PROJECT", "nowhere".to_owned()));
    let started: Vec<_> = SERVICES
        .iter()
        .map(|name| Service::start(name, &folder.path().join(name), &file, &environment))
        .collect();
    for service in started {
        let name = service.name;
        until(&format!("{name} has installed its signals"), || service.listens());
        if when == When::Waiting {
            until(&format!("{name} waits"), || {
                let (status, body) = get(service.http(), "/readyz");
                // Pub/Sub's client goes on trying by itself and does not tell that it is without a connection.
                body.contains(name) && (status == 503 || name == "enrichment")
            });
        }
        let (status, log) = service.stop();
        assert_eq!(status.code(), Some(0), "{name}, {when:?}, {pubsub}:\n{log}");
    }
}

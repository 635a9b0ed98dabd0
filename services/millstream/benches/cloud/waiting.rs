//! A rig with one service of it, and messages that wait for that service on Pub/Sub.

use crate::messages;
use crate::process::Service;
use messagepipeline::{IdGenerator, Timestamp};
use testkit::rig::{DEVICES, PROJECT, Rig, RigOptions};
use testkit::servers::{PubSubProject, Publication};

/// Messages of one publish, the most that Pub/Sub takes.
const PAGE: usize = 1_000;
/// Payloads are taken up to this size, which brings recordings to 1,138 bytes on average.
const LARGEST: usize = 2_048;

/// What was published under an id.
pub(crate) type Sent = Vec<String>;

/// The rig, and what the service on it takes from its environment; a scenario puts a proxy in.
pub(crate) struct Waiting {
    pub(crate) rig: Rig,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) environment: Vec<(&'static str, String)>,
}

impl Waiting {
    /// A rig; `None` when a server is missing, which has been said. Of the subscriptions only those of `services` are
    /// left.
    pub(crate) fn new(services: &[&str]) -> Option<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let rig = runtime.block_on(Rig::start("the bench", RigOptions::default()))?;
        for other in ["enrichment", "bigquery", "icestore"].iter().filter(|name| !services.contains(name)) {
            rig.bus().delete_subscription(other);
        }
        let environment = rig.environment();
        Some(Self { rig, runtime, environment })
    }

    pub(crate) fn bus(&self) -> PubSubProject {
        self.rig.bus()
    }

    /// Puts `address` in the place of the emulator that `variable` names.
    pub(crate) fn put(&mut self, variable: &str, address: &str) {
        let entry = self.environment.iter_mut().find(|(name, _)| *name == variable).unwrap();
        entry.1 = address.to_owned();
    }

    /// What `variable` says.
    pub(crate) fn address(&self, variable: &str) -> String {
        self.environment.iter().find(|(name, _)| *name == variable).unwrap().1.clone()
    }

    /// Starts `service` with `streams` streams; `settings` are further lines, each with the line that they stand behind.
    pub(crate) fn start(&self, service: &'static str, streams: usize, settings: &[(&str, &str)]) -> Service {
        let mut text = self.rig.configuration().to_string();
        let streams = format!("    streams: {streams}");
        for (before, line) in [("  pubsub:", streams.as_str())].iter().chain(settings) {
            let place = format!("\n{before}\n");
            assert!(text.contains(&place), "{before:?} in\n{text}");
            text = text.replace(&place, &format!("{place}{line}\n"));
        }
        let path = self.rig.folder().join(format!("{service}.yaml"));
        std::fs::write(&path, text).unwrap();
        Service::start(service, &path, &self.environment)
    }

    /// Devices with what an installation knows about them.
    pub(crate) fn register(&self, devices: usize, name: impl Fn(usize) -> String) {
        let document = |n: usize| {
            let data = serde_json::json!({
                "client_id": format!("client-{}", n % 7),
                "location_id": format!("hall-{}", n % 10),
                "category": "sensor",
            });
            (name(n), data)
        };
        self.rig.firestore.put_documents(PROJECT, DEVICES, (0..devices).map(document));
    }

    /// Publishes `count` messages in the form in which a service before would have: `device_of` tells the device of
    /// each, `enriched` whether they have been through enrichment. Answers their ids.
    pub(crate) fn fill(
        &self,
        topic: &str,
        payloads: &[Vec<u8>],
        count: usize,
        device_of: &dyn Fn(usize) -> usize,
        enriched: bool,
    ) -> Sent {
        let (ids, bus) = (IdGenerator::default(), self.bus());
        let mut sent = Vec::with_capacity(count);
        for first in (0..count).step_by(PAGE) {
            let numbers = first..(first + PAGE).min(count);
            let facts: Vec<_> = numbers.clone().map(|n| facts(&ids, device_of(n), n, enriched)).collect();
            let attributes: Vec<Vec<(&str, &str)>> = facts
                .iter()
                .map(|facts| facts.iter().map(|(name, value)| (*name, value.as_str())).collect())
                .collect();
            let publications: Vec<Publication<'_>> = numbers
                .zip(&attributes)
                .map(|(n, attributes)| (payloads[n % payloads.len()].as_slice(), attributes.as_slice()))
                .collect();
            bus.publish(topic, &publications);
            sent.extend(facts.into_iter().map(|mut facts| facts.swap_remove(0).1));
        }
        sent
    }
}

/// The name of a device.
pub(crate) fn device(n: usize) -> String {
    format!("{n:016x}")
}

/// Attributes of message `n`, its id first; see `crates/pubsub/src/wire.rs`.
fn facts(ids: &IdGenerator, of: usize, n: usize, enriched: bool) -> Vec<(&'static str, String)> {
    let received = Timestamp::from_micros(1_672_867_882_661_042 + n as i64 * 1_000);
    let mut facts = vec![
        ("millstream_id", ids.next_id().to_string()),
        ("millstream_time", received.to_string()),
        ("device_id", device(of)),
        ("mqtt_topic", format!("devices/{}/up", device(of))),
        ("mqtt_qos", "1".to_owned()),
        ("mqtt_packet_id", (n % 65_535 + 1).to_string()),
        ("route_name", "default".to_owned()),
    ];
    if enriched {
        let known = format!(
            r#"{{"client_id":"client-{}","location_id":"hall-{}","category":"sensor"}}"#,
            of % 7,
            of % 10
        );
        facts.push(("millstream_enrichment", known));
    }
    facts
}

/// Payloads of about 1,138 bytes on average.
pub(crate) fn payloads() -> Vec<Vec<u8>> {
    let mut payloads = messages::payloads();
    payloads.retain(|payload| payload.len() <= LARGEST);
    let bytes: usize = payloads.iter().map(Vec::len).sum();
    println!("{} payloads, {:.0} bytes on average", payloads.len(), bytes as f64 / payloads.len() as f64);
    payloads
}

//! How often each of Google's services is asked, and with how many bytes, while the whole path runs at a steady rate.

use crate::beside::Beside;
use crate::counting::{Counting, Counts};
use crate::fleet::Fleet;
use crate::process::Service;
use crate::waiting::{Waiting, payloads};
use crate::{figure, scaled};
use testkit::gcs_fake::GcsRequest;
use testkit::rig::BUCKET;

/// Messages per second.
const RATE: f64 = 1_000.0;
const DEVICES: usize = 200;
/// A minute and a half: the archive's groups close after one.
const MESSAGES: usize = 180_000;
/// Figures are for so many messages.
const MILLION: f64 = 1e6;

pub(crate) fn run() {
    let payloads = payloads();
    let Some(mut rig) = Waiting::new(&["enrichment", "bigquery", "icestore"]) else { return };
    let count = scaled(MESSAGES);
    rig.register(DEVICES, |n| format!("sensor-{n:04}"));
    let mut proxies = Vec::new();
    for (api, variable) in [
        ("Pub/Sub", "PUBSUB_EMULATOR_HOST"),
        ("Firestore", "FIRESTORE_EMULATOR_HOST"),
        ("BigQuery Storage Write", "BIGQUERY_STORAGE_EMULATOR_HOST"),
    ] {
        let proxy = rig.runtime.block_on(Counting::before(&rig.address(variable)));
        rig.put(variable, proxy.address());
        proxies.push((api, proxy));
    }
    let rest = rig.runtime.block_on(Counting::before(&rig.address("BIGQUERY_EMULATOR_HOST")));
    rig.put("BIGQUERY_EMULATOR_HOST", &format!("http://{}", rest.address()));
    proxies.push(("BigQuery REST", rest));
    let services: Vec<Service> = ["ingestion", "enrichment", "bigquery", "icestore"]
        .into_iter()
        .map(|name| rig.start(name, 4, &[]))
        .collect();
    let beside = Beside::start();
    let fleet = Fleet { devices: DEVICES, window: 20, rate: Some(RATE) };
    fleet.publish(rig.rig.mosquitto.port(), &payloads, count);
    services[2].wait_for("millstream_warehouse_rows_total", count);
    services[3].wait_for("millstream_archive_lines_total", count);
    beside.say("the whole path");
    let millions = count as f64 / MILLION;
    for (api, proxy) in &proxies {
        for (method, counts) in proxy.counts() {
            tell(api, &method, &counts, millions);
        }
    }
    for kind in
        [GcsRequest::Upload, GcsRequest::Read, GcsRequest::Metadata, GcsRequest::List, GcsRequest::Bucket]
    {
        let requests = rig.rig.storage.requests(kind) as f64;
        figure(&format!("requests, Cloud Storage, {kind:?}"), requests / millions, "per 1,000,000");
    }
    let bytes: usize = rig.rig.storage.objects(BUCKET).values().map(bytes::Bytes::len).sum();
    figure("requests, Cloud Storage, stored", bytes as f64 / millions / 1e6, "MB per 1,000,000");
    for service in services {
        service.stop();
    }
}

fn tell(api: &str, method: &str, counts: &Counts, millions: f64) {
    let method = method.rsplit('/').next().unwrap();
    let name = |what: &str| format!("requests, {api}, {method}{what}");
    figure(&name(""), counts.requests as f64 / millions, "per 1,000,000");
    for (what, messages, bytes) in
        [(": sent", counts.sent, counts.sent_bytes), (": received", counts.received, counts.received_bytes)]
    {
        figure(
            &name(&format!("{what}, messages of the stream")),
            messages as f64 / millions,
            "per 1,000,000",
        );
        figure(&name(&format!("{what}, bytes")), bytes as f64 / millions / 1e6, "MB per 1,000,000");
    }
}

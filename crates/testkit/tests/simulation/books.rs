//! The books of a seed: every message has exactly the ending that is right for it.

use crate::stores::Stores;
use crate::world::{Kind, World};
use bqstore::Value;
use enrichment_service::UnknownDevicePolicy;
use icestore::{decode_line, decompress};
use messagepipeline::{Message, MessageId, names};
use std::collections::BTreeMap;
use std::io::Read;

/// Tells the world of every message whose ending is not right.
pub(crate) fn read(world: &World, stores: &Stores, policy: UnknownDevicePolicy) {
    if !world.violations().is_empty() {
        return;
    }
    let lines = lines(world, stores);
    let rows = rows(stores);
    let enriched: BTreeMap<_, _> = stores.bus.messages("enriched").into_iter().map(|m| (m.id, m)).collect();
    for message in stores.bus.messages("mqtt") {
        let id = message.id;
        let actual = Ending {
            raw: stores.bus.holds("raw", id),
            enriched: enriched.contains_key(&id),
            row: rows.contains_key(&id),
            line: lines.contains_key(&id),
            letters: stores.endings.letters(id).into_keys().collect(),
            skipped: stores.endings.skips.lock().contains_key(&id),
        };
        let kind = world.kind(id);
        if !endings(kind, &message, policy).contains(&actual) {
            world.violation(format!("{id} ({kind:?}) ended as {actual:?}"));
        }
        let differs =
            |stored: Option<&Vec<u8>>| stored.is_some_and(|stored| stored[..] != message.payload[..]);
        if differs(rows.get(&id)) || differs(lines.get(&id)) {
            world.violation(format!("{id} was stored with other bytes"));
        }
        if let Some(enriched) = enriched.get(&id) {
            judge_enrichment(world, enriched);
        }
    }
}

/// Where a message is found at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ending {
    raw: bool,
    enriched: bool,
    row: bool,
    line: bool,
    letters: Vec<String>,
    skipped: bool,
}

fn endings(kind: Kind, message: &Message, policy: UnknownDevicePolicy) -> Vec<Ending> {
    let letter = |stage: &str| vec![stage.to_owned()];
    let done =
        Ending { raw: true, enriched: true, row: true, line: true, letters: Vec::new(), skipped: false };
    let lost_at_enrichment =
        Ending { enriched: false, row: false, line: false, letters: letter("enrichment"), ..done.clone() };
    let lost_at_ingestion = Ending { raw: false, letters: letter("ingestion"), ..lost_at_enrichment.clone() };
    let ending = match kind {
        Kind::Good => done,
        Kind::NoRoute | Kind::RefusedRaw => lost_at_ingestion,
        Kind::Small => Ending { letters: Vec::new(), skipped: true, ..lost_at_ingestion },
        Kind::RefusedEnriched | Kind::PoisonDevice => lost_at_enrichment.clone(),
        Kind::BadRow | Kind::FlakyRow | Kind::PoisonRow => {
            Ending { row: false, letters: letter("bigquery"), ..done }
        }
        Kind::BadLine | Kind::PoisonLine => Ending { line: false, letters: letter("icestore"), ..done },
    };
    let mut endings = vec![ending];
    let may_be_unknown = message.attributes.get(names::TOPIC).is_some_and(|topic| !is_known(topic));
    if policy == UnknownDevicePolicy::DeadLetter && may_be_unknown && endings[0].raw {
        // A device that appears between two deliveries leaves a letter and the enriched message.
        let mut both = endings[0].clone();
        both.letters.insert(0, "enrichment".to_owned());
        both.letters.sort();
        both.letters.dedup();
        endings.extend([lost_at_enrichment, both]);
    }
    endings
}

fn is_known(topic: &str) -> bool {
    let device = topic.split('/').nth(1).and_then(|device| device.strip_prefix('d')?.parse().ok());
    device.is_some_and(crate::scenario::is_known)
}

/// A message of a known device never passes unenriched.
fn judge_enrichment(world: &World, message: &Message) {
    let status = message.attributes.get(names::ENRICHMENT_STATUS);
    let known = message.attributes.get(names::TOPIC).is_some_and(is_known);
    let right = match status {
        Some(names::ENRICHED) => message.enrichment.get("location_id").is_some(),
        Some(names::UNKNOWN_DEVICE) => !known,
        _ => false,
    };
    if !right {
        world.violation(format!(
            "{} went on with the status {status:?}, its device known: {known}",
            message.id
        ));
    }
}

fn rows(stores: &Stores) -> BTreeMap<MessageId, Vec<u8>> {
    let payload = |values: &[Value]| match values.last() {
        Some(Value::Bytes(bytes)) => bytes.to_vec(),
        _ => Vec::new(),
    };
    stores.table.rows().into_iter().map(|(id, row)| (id, payload(&row.values))).collect()
}

fn lines(world: &World, stores: &Stores) -> BTreeMap<MessageId, Vec<u8>> {
    let mut lines = BTreeMap::new();
    for (name, bytes) in &stores.archive.lock().objects {
        let mut text = Vec::new();
        let mut reader = decompress(name, &bytes[..]).expect("a known ending");
        reader.read_to_end(&mut text).expect("a complete object");
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let line = decode_line(line).expect("an archive line");
            if lines.insert(line.id, line.payload.to_vec()).is_some() {
                world.violation(format!("{} is in the archive twice", line.id));
            }
        }
    }
    lines
}

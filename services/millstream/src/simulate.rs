//! A simulated fleet: climate sensors, trackers and meters at a few places, the same ones for the same seed.
//!
//! Each device sends in its turn. One message in about two hundred is no JSON, one in about a hundred comes from a
//! device that the registry does not know, so that both are seen on their way.

use crate::feed::{Item, Publication, Source};
use crate::rate::{Pacer, Rate};
use crate::recording::RecordingError;
use bytes::Bytes;
use messagepipeline::{Clock, Timestamp};
use std::sync::Arc;

/// Where devices stand: location id, customer, latitude and longitude.
const PLACES: [(&str, &str, f64, f64); 5] = [
    ("harbour-north", "acme", 53.5461, 9.9664),
    ("harbour-south", "acme", 53.5036, 9.9871),
    ("orchard", "birch-farms", 51.0345, 7.8521),
    ("depot", "cargo-line", 48.1374, 11.5755),
    ("old-town", "city-works", 50.9413, 6.9583),
];

/// One message in so many is not JSON.
const BROKEN_EVERY: u64 = 200;

/// One message in so many comes from a device that is not in the registry.
const STRANGER_EVERY: u64 = 100;

/// A row of the device registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetDevice {
    /// Device id.
    pub device_id: String,
    /// Whose it is.
    pub client_id: String,
    /// Where it stands.
    pub location_id: String,
    /// What it is: `climate`, `tracker` or `meter`.
    pub category: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Climate,
    Tracker,
    Meter,
}

#[derive(Clone, Debug)]
struct Device {
    id: String,
    kind: Kind,
    place: usize,
    count: u64,
    /// What it measures: degrees, kilometres per hour, or litres.
    value: f64,
    position: (f64, f64),
    battery: f64,
}

/// A fleet that sends a given number of messages.
#[derive(Debug)]
pub struct Fleet {
    devices: Vec<Device>,
    random: SplitMix,
    clock: Arc<dyn Clock>,
    pacer: Pacer,
    messages: u64,
    sent: u64,
}

impl Fleet {
    /// A fleet of `devices` devices (at least one) that sends `messages` messages at `rate`. Times in the payloads are
    /// `clock`'s; all else depends on `seed` alone. A rate by the records' own times means as fast as possible.
    #[must_use]
    pub fn new(seed: u64, devices: u32, messages: u64, rate: Rate, clock: Arc<dyn Clock>) -> Self {
        let mut random = SplitMix(seed);
        let devices = (0..devices.max(1)).map(|index| device(index, &mut random)).collect();
        Self { devices, random, clock, pacer: Pacer::new(rate), messages, sent: 0 }
    }

    /// What the registry knows: every device of the fleet. The strangers whose messages are mixed in are not in it.
    #[must_use]
    pub fn registry(&self) -> Vec<FleetDevice> {
        let row = |device: &Device| FleetDevice {
            device_id: device.id.clone(),
            client_id: PLACES[device.place].1.to_owned(),
            location_id: PLACES[device.place].0.to_owned(),
            category: device.kind.name().to_owned(),
        };
        self.devices.iter().map(row).collect()
    }

    /// The next topic and payload, or none once all are sent.
    pub fn next_message(&mut self) -> Option<(String, Bytes)> {
        if self.sent >= self.messages {
            return None;
        }
        self.sent += 1;
        if self.random.below(STRANGER_EVERY) == 0 {
            return Some(self.stranger());
        }
        let count = self.devices.len() as u64;
        let index = usize::try_from((self.sent - 1) % count).unwrap_or(0);
        let broken = self.random.below(BROKEN_EVERY) == 0;
        let now = self.clock.now();
        let device = &mut self.devices[index];
        device.count += 1;
        device.live(&mut self.random);
        let mut payload = device.payload(now);
        if broken {
            // As from a device whose supply fails while it sends.
            payload.truncate(payload.len() / 2);
        }
        Some((topic(&device.id), payload.into()))
    }

    fn stranger(&mut self) -> (String, Bytes) {
        let id = format!("guest-{:02}", self.random.below(3) + 1);
        let value = self.random.between(15.0, 25.0);
        let payload =
            format!(r#"{{"device_id":"{id}","timestamp":"{}","value":{value:.2}}}"#, self.clock.now());
        (topic(&id), payload.into())
    }
}

impl Source for Fleet {
    fn next(&mut self) -> Result<Option<Item>, RecordingError> {
        let due = self.pacer.due(None);
        let Some((topic, payload)) = self.next_message() else { return Ok(None) };
        Ok(Some(Item::Publish(Publication::new(self.sent, due, topic.into(), payload))))
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Climate => "climate",
            Self::Tracker => "tracker",
            Self::Meter => "meter",
        }
    }
}

impl Device {
    /// Moves it on by one message.
    fn live(&mut self, random: &mut SplitMix) {
        self.battery = (self.battery - 0.001).max(2.9);
        match self.kind {
            Kind::Climate => self.value = (self.value + random.between(-0.3, 0.3)).clamp(-15.0, 40.0),
            Kind::Tracker => {
                self.value = (self.value + random.between(-8.0, 8.0)).clamp(0.0, 90.0);
                self.position.0 += random.between(-1.0, 1.0) * self.value * 1e-5;
                self.position.1 += random.between(-1.0, 1.0) * self.value * 1e-5;
            }
            Kind::Meter => self.value += random.between(0.0, 12.0),
        }
    }

    fn payload(&self, now: Timestamp) -> Vec<u8> {
        let Self { id, value, count, battery, position: (latitude, longitude), .. } = self;
        let start =
            format!(r#"{{"device_id":"{id}","timestamp":"{now}","value":{value:.2},"sequence":{count}"#);
        let rest = match self.kind {
            Kind::Climate => {
                let humidity = (72.0 - value).clamp(15.0, 95.0);
                format!(r#","unit":"°C","humidity":{humidity:.1},"battery":{battery:.3}}}"#)
            }
            Kind::Tracker => {
                let position = format!(r#"{{"latitude":{latitude:.6},"longitude":{longitude:.6}}}"#);
                format!(r#","unit":"km/h","position":{position},"battery":{battery:.3}}}"#)
            }
            Kind::Meter => {
                format!(r#","unit":"l","valve":"{}"}}"#, if count % 50 == 0 { "closed" } else { "open" })
            }
        };
        (start + &rest).into_bytes()
    }
}

fn device(index: u32, random: &mut SplitMix) -> Device {
    let kind = match index % 5 {
        0 | 2 => Kind::Climate,
        1 | 3 => Kind::Meter,
        _ => Kind::Tracker,
    };
    let place = usize::try_from(random.below(PLACES.len() as u64)).unwrap_or(0);
    let (_, _, latitude, longitude) = PLACES[place];
    let value = match kind {
        Kind::Climate => random.between(5.0, 25.0),
        Kind::Tracker => 0.0,
        Kind::Meter => random.between(100.0, 90_000.0),
    };
    let position = (latitude + random.between(-0.01, 0.01), longitude + random.between(-0.01, 0.01));
    let id = format!("{}-{:03}", kind.name(), index + 1);
    Device { id, kind, place, count: 0, value, position, battery: random.between(3.3, 3.7) }
}

fn topic(device_id: &str) -> String {
    format!("devices/{device_id}/up")
}

/// SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Clone, Copy, Debug)]
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Evenly in 0..`end`, but for a bias far too small to be seen.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn between(&mut self, low: f64, high: f64) -> f64 {
        let high_bits = u32::try_from(self.next() >> 32).unwrap_or(0);
        low + (high - low) * f64::from(high_bits) / f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use messagepipeline::ManualClock;
    use std::collections::HashSet;

    fn fleet(seed: u64) -> Fleet {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_772_366_400_000)));
        Fleet::new(seed, 50, 5_000, Rate::Max, clock)
    }

    fn messages(mut fleet: Fleet) -> Vec<(String, Bytes)> {
        std::iter::from_fn(|| fleet.next_message()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_messages_and_another_seed_others() {
        assert_eq!(messages(fleet(7)), messages(fleet(7)));
        assert_ne!(messages(fleet(7)), messages(fleet(8)));
        assert_eq!(messages(fleet(7)).len(), 5_000);
    }

    #[test]
    fn most_messages_are_json_of_registered_devices_and_some_are_not() {
        let fleet = fleet(1);
        let known: HashSet<String> = fleet.registry().into_iter().map(|device| device.device_id).collect();
        assert_eq!(known.len(), 50);
        let (mut good, mut broken, mut strange) = (0, 0, 0);
        for (topic, payload) in messages(fleet) {
            let device = topic.split('/').nth(1).unwrap();
            match serde_json::from_slice::<serde_json::Value>(&payload) {
                Err(_) => broken += 1,
                Ok(value) => {
                    assert_eq!(value["device_id"], device);
                    assert!(value["value"].is_number());
                    value["timestamp"].as_str().unwrap().parse::<Timestamp>().unwrap();
                    if known.contains(device) { good += 1 } else { strange += 1 }
                }
            }
        }
        assert!(
            good > 4_800 && (10..50).contains(&broken) && (25..100).contains(&strange),
            "{good} {broken} {strange}"
        );
    }
}

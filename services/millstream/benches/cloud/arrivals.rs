//! What arrived on a subscription, counted by the numbers in the messages' topics.

use std::collections::HashSet;
use std::time::{Duration, Instant};
use testkit::servers::PubSubProject;

/// Who waits longer than this for a message waits for one that is lost; services pause for less after an outage.
const LOST: Duration = Duration::from_secs(120);
/// When all are there, further copies are waited for so long.
const QUIET: Duration = Duration::from_secs(5);
/// Messages of one request, the most that Pub/Sub gives.
const PAGE: usize = 1_000;

/// Counts of a run.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    /// Copies of each number.
    copies: Vec<usize>,
    /// Ids of all of them.
    ids: HashSet<String>,
    /// Messages of Pub/Sub, each once.
    pub(crate) messages: usize,
    /// Bytes of their `data`.
    pub(crate) bytes: usize,
    /// Bytes of the payloads that were sent under their numbers.
    pub(crate) payload_bytes: usize,
    /// Messages whose `data` is not what was sent.
    pub(crate) changed: usize,
}

impl Arrivals {
    /// Reads and acknowledges until `count` numbers have come and nothing more does.
    pub(crate) fn read(bus: &PubSubProject, subscription: &str, payloads: &[Vec<u8>], count: usize) -> Self {
        let mut arrivals = Self { copies: vec![0; count], ..Self::default() };
        let (mut seen, mut last) = (HashSet::new(), Instant::now());
        while last.elapsed() < if arrivals.distinct() == count { QUIET } else { LOST } {
            let page = bus.pull(subscription, PAGE);
            bus.acknowledge(subscription, &page);
            if page.is_empty() {
                std::thread::sleep(Duration::from_millis(50));
                continue;
            }
            last = Instant::now();
            for message in page {
                // Delivered again by Pub/Sub itself: it is one message.
                if !seen.insert(message.message_id) {
                    continue;
                }
                let number: usize =
                    message.attributes["mqtt_topic"].rsplit('/').next().unwrap().parse().unwrap();
                let payload = &payloads[number % payloads.len()];
                arrivals.copies[number] += 1;
                arrivals.ids.insert(message.attributes["millstream_id"].clone());
                arrivals.messages += 1;
                arrivals.bytes += message.data.len();
                arrivals.payload_bytes += payload.len();
                arrivals.changed += usize::from(message.data != *payload);
            }
        }
        arrivals
    }

    /// Numbers that arrived.
    pub(crate) fn distinct(&self) -> usize {
        self.copies.iter().filter(|copies| **copies > 0).count()
    }

    /// Numbers that did not.
    pub(crate) fn lost(&self) -> usize {
        self.copies.len() - self.distinct()
    }

    /// Messages beyond the first of their number.
    pub(crate) fn doubled(&self) -> usize {
        self.messages - self.distinct()
    }

    /// Those of them that no reader can tell, because their id is a new one.
    pub(crate) fn doubled_under_a_new_id(&self) -> usize {
        self.ids.len() - self.distinct()
    }
}

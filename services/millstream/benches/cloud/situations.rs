//! What a device was told is safe, and what of it arrived, when something goes wrong on the way.

use crate::arrivals::Arrivals;
use crate::beside::Beside;
use crate::fleet::Fleet;
use crate::process::Service;
use crate::site::{READER, Site};
use crate::{figure, messages, scaled};
use std::time::Duration;

/// When something begins to go wrong.
const CALM: Duration = Duration::from_secs(3);
/// How long ingestion is away after it was killed.
const AWAY: Duration = Duration::from_secs(3);

/// What happens while the devices publish.
#[derive(Clone, Copy)]
enum Event {
    Nothing,
    /// Pub/Sub answers nothing for so many seconds; its connections stay open.
    Stopped(u64),
    /// SIGKILL of ingestion, and a new one.
    Killed,
}

impl Event {
    /// Lets it happen; the ingestion that runs afterwards, and the peak memory of one that does not any more.
    fn happen(self, site: &Site, ingestion: Service) -> (Service, f64) {
        match self {
            Self::Nothing => {}
            Self::Stopped(seconds) => {
                site.bus.freeze();
                std::thread::sleep(Duration::from_secs(seconds));
                site.bus.thaw();
            }
            Self::Killed => {
                let peak = ingestion.peak();
                ingestion.kill();
                std::thread::sleep(AWAY);
                return (site.ingestion(), peak);
            }
        }
        (ingestion, 0.0)
    }
}

/// Name, messages, messages per second, event.
const SITUATIONS: [(&str, usize, f64, Event); 4] = [
    ("nothing broken", 20_000, 2_000.0, Event::Nothing),
    ("Pub/Sub stopped 20 s", 50_000, 3_000.0, Event::Stopped(20)),
    ("Pub/Sub stopped 75 s", 50_000, 3_000.0, Event::Stopped(75)),
    ("SIGKILL, back after 3 s", 50_000, 3_000.0, Event::Killed),
];

pub(crate) fn run() {
    let payloads = messages::payloads();
    for (variant, settings) in [("", ""), (", spool", "  spool: {}\n")] {
        for (name, count, rate, event) in SITUATIONS {
            situation(&format!("{name}{variant}"), settings, (scaled(count), rate), event, &payloads);
        }
    }
}

fn situation(name: &str, settings: &str, (count, rate): (usize, f64), event: Event, payloads: &[Vec<u8>]) {
    let Some(site) = Site::start(settings) else { return };
    let ingestion = site.ingestion();
    let beside = Beside::start();
    let fleet = Fleet { devices: 20, window: 100, rate: Some(rate) };
    let (ingestion, peak) = std::thread::scope(|scope| {
        let port = site.broker.port();
        scope.spawn(move || fleet.publish(port, payloads, count));
        std::thread::sleep(CALM);
        event.happen(&site, ingestion)
    });
    let arrivals = Arrivals::read(&site.project(), READER, payloads, count);
    beside.say(name);
    let figures = [
        ("acknowledged to the devices", count),
        ("arrived", arrivals.distinct()),
        ("lost", arrivals.lost()),
        ("doubled", arrivals.doubled()),
        ("doubled under a new id", arrivals.doubled_under_a_new_id()),
        ("changed", arrivals.changed),
    ];
    for (what, count) in figures {
        figure(&format!("{name}: {what}"), count as f64, "messages");
    }
    figure(&format!("{name}: peak memory"), peak.max(ingestion.peak()), "MiB");
    ingestion.stop();
}

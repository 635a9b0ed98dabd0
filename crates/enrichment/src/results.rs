//! Counting of what became of messages in the enrichment stage.

use messagepipeline::metric_names::ENRICHMENT_RESULTS;
use messagepipeline::names;
use metrics::{Counter, counter};

/// Counts of one chunk, reported together.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) enriched: u64,
    pub(crate) unknown: u64,
    pub(crate) no_key: u64,
    pub(crate) parked: u64,
    pub(crate) lot_full: u64,
}

/// The counters, looked up in the recorder once.
pub(crate) struct Results {
    enriched: Counter,
    unknown: Counter,
    no_key: Counter,
    parked: Counter,
    lot_full: Counter,
}

impl Results {
    pub(crate) fn new() -> Self {
        let of = |result: &'static str| counter!(ENRICHMENT_RESULTS, "result" => result);
        Self {
            enriched: of(names::ENRICHED),
            unknown: of(names::UNKNOWN_DEVICE),
            no_key: of(names::NO_KEY),
            parked: of("parked"),
            lot_full: of("parking-full"),
        }
    }

    pub(crate) fn add(&self, tally: &Tally) {
        self.enriched.increment(tally.enriched);
        self.unknown.increment(tally.unknown);
        self.no_key.increment(tally.no_key);
        self.parked.increment(tally.parked);
        self.lot_full.increment(tally.lot_full);
    }
}

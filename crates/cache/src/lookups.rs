//! Counting of look-ups.

use messagepipeline::metric_names::CACHE_LOOKUPS;
use metrics::{Counter, counter};

/// The counters of one layer, looked up in the recorder once.
pub(crate) struct Lookups {
    pub(crate) hit: Counter,
    pub(crate) miss: Counter,
    pub(crate) negative: Counter,
    pub(crate) error: Counter,
}

impl Lookups {
    pub(crate) fn new(layer: &'static str) -> Self {
        let of = |result: &'static str| counter!(CACHE_LOOKUPS, "layer" => layer, "result" => result);
        Self { hit: of("hit"), miss: of("miss"), negative: of("negative"), error: of("error") }
    }
}

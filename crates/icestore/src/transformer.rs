//! Message in, batch key out.

use crate::{BatchKey, LocationSources};
use messagepipeline::{Delivery, Outcome, Transformer};
use std::borrow::Cow;
use std::collections::HashMap;

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

/// Finds each message's batch key. Messages of one chunk with the same key share its text.
#[derive(Clone, Debug)]
pub struct ArchiveTransformer {
    locations: LocationSources,
}

impl ArchiveTransformer {
    /// A transformer that looks for the location in `locations`.
    #[must_use]
    pub fn new(locations: LocationSources) -> Self {
        Self { locations }
    }
}

impl Transformer for ArchiveTransformer {
    type Output = BatchKey;

    async fn transform<'a>(&'a self, deliveries: &'a [Delivery], outcomes: &'a mut Vec<Outcome<BatchKey>>) {
        let mut keys: HashMap<(i64, Option<Cow<'_, str>>), BatchKey> = HashMap::new();
        for delivery in deliveries {
            let message = &delivery.message;
            let day = message.publish_time.as_micros().div_euclid(DAY);
            let known = keys.entry((day, self.locations.find(message)));
            let location = known.key().1.clone();
            let key = known.or_insert_with(|| BatchKey::new(message.publish_time, location.as_deref()));
            outcomes.push(Outcome::Emit(key.clone()));
        }
    }
}

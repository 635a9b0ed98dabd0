//! The transformer: one batched look-up per chunk.

use crate::results::{Results, Tally};
use crate::{Error, KeyExtractor, Parked, ParkingLot, Placed};
use cache::{FetchError, FetchResult, Fetcher};
use messagepipeline::names::{ENRICHED, ENRICHMENT_STATUS, NO_KEY, UNKNOWN_DEVICE};
use messagepipeline::{Clock, Delivery, Enrichment, Message, Outcome, StageError, Transformer};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What becomes of a message whose device the source of truth does not know.
#[derive(Clone, Default)]
pub enum UnknownDevice {
    /// It goes on with the status attribute `unknown-device`.
    #[default]
    Pass,
    /// It goes to the dead letters with the reason `unknown-device`.
    DeadLetter,
    /// It waits in a lot until its device appears. When the lot is full it goes on as with [`UnknownDevice::Pass`].
    Park {
        /// Where it waits.
        lot: Arc<dyn ParkingLot>,
        /// Stamps the time at which it was parked.
        clock: Arc<dyn Clock>,
    },
}

impl fmt::Debug for UnknownDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pass => "Pass",
            Self::DeadLetter => "DeadLetter",
            Self::Park { .. } => "Park",
        })
    }
}

/// Adds the device's data to each message, and the attribute
/// [`enrichment_status`](messagepipeline::names::ENRICHMENT_STATUS) that says what came of it.
///
/// A message without a key goes on with the status `no-key`; there is no look-up for it. Fields that a message
/// already has stay. A look-up that fails fails exactly the messages that needed it.
pub struct Enricher {
    keys: KeyExtractor,
    fetcher: Arc<dyn Fetcher<Enrichment>>,
    unknown: UnknownDevice,
    lot_is_full: AtomicBool,
    results: Results,
}

impl Enricher {
    /// Looks the keys that `keys` finds up in `fetcher`.
    #[must_use]
    pub fn new(keys: KeyExtractor, fetcher: Arc<dyn Fetcher<Enrichment>>, unknown: UnknownDevice) -> Self {
        Self { keys, fetcher, unknown, lot_is_full: AtomicBool::new(false), results: Results::new() }
    }

    /// Parks the messages of unknown devices, when that is the rule, and answers for each of them.
    async fn park(&self, deliveries: &[Delivery], lookup: &Lookup<'_>) -> Result<Vec<Placed>, FetchError> {
        let UnknownDevice::Park { lot, clock } = &self.unknown else { return Ok(Vec::new()) };
        let since = clock.now();
        let unknown = deliveries.iter().enumerate().filter_map(|(index, delivery)| {
            let key = lookup.unknown_key(index)?;
            Some(Parked { key: key.into(), message: delivery.message.clone(), since })
        });
        let unknown: Vec<_> = unknown.collect();
        if unknown.is_empty() {
            return Ok(Vec::new());
        }
        let placed = lot.park(unknown).await?;
        self.report_full(placed.contains(&Placed::Full));
        Ok(placed)
    }

    /// Says once when the lot has become full, and once when it takes messages again.
    fn report_full(&self, full: bool) {
        if self.lot_is_full.swap(full, Ordering::Relaxed) == full {
            return;
        }
        if full {
            tracing::warn!("the parking lot is full: messages of unknown devices pass with a marker");
        } else {
            tracing::info!("the parking lot takes messages again");
        }
    }

    fn unknown_device(
        &self,
        message: &Message,
        key: &str,
        placed: Result<Option<Placed>, FetchError>,
        tally: &mut Tally,
    ) -> Outcome<Message> {
        match (&self.unknown, placed) {
            (UnknownDevice::Pass, _) => {
                tally.unknown += 1;
                Outcome::Emit(marked(message, UNKNOWN_DEVICE))
            }
            (UnknownDevice::DeadLetter, _) => {
                tally.unknown += 1;
                Outcome::Fail(Error::UnknownDevice { key: key.into() }.into())
            }
            (UnknownDevice::Park { .. }, Ok(Some(Placed::Held))) => {
                tally.parked += 1;
                Outcome::Held
            }
            (UnknownDevice::Park { .. }, Ok(Some(Placed::Full))) => {
                tally.lot_full += 1;
                Outcome::Emit(marked(message, UNKNOWN_DEVICE))
            }
            (UnknownDevice::Park { .. }, Ok(None)) => Outcome::Fail(unanswered()),
            (UnknownDevice::Park { .. }, Err(error)) => Outcome::Fail(Error::Parking(error).into()),
        }
    }
}

impl Transformer for Enricher {
    type Output = Message;

    async fn transform<'a>(&'a self, deliveries: &'a [Delivery], outcomes: &'a mut Vec<Outcome<Message>>) {
        let lookup = Lookup::make(&self.keys, &*self.fetcher, deliveries).await;
        let placed = self.park(deliveries, &lookup).await;
        let mut places = placed.as_ref().map(|places| places.iter().copied());
        let mut tally = Tally::default();
        outcomes.reserve(deliveries.len());
        for (index, Delivery { message, .. }) in deliveries.iter().enumerate() {
            outcomes.push(match lookup.of(index) {
                Found::NoKey => {
                    tally.no_key += 1;
                    Outcome::Emit(marked(message, NO_KEY))
                }
                Found::Device(data) => {
                    tally.enriched += 1;
                    Outcome::Emit(enriched(message, data))
                }
                Found::Unknown(key) => {
                    let place = places.as_mut().map(Iterator::next).map_err(|error| (*error).clone());
                    self.unknown_device(message, key, place, &mut tally)
                }
                Found::Failed(error) => Outcome::Fail(Error::Lookup(error).into()),
            });
        }
        self.results.add(&tally);
    }
}

impl fmt::Debug for Enricher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enricher")
            .field("keys", &self.keys)
            .field("unknown", &self.unknown)
            .finish_non_exhaustive()
    }
}

/// The look-up of one chunk over its distinct keys.
struct Lookup<'m> {
    keys: Vec<&'m str>,
    results: Vec<FetchResult<Enrichment>>,
    /// For each delivery, where its key stands.
    places: Vec<Option<usize>>,
}

/// What a look-up says about one delivery.
enum Found<'a> {
    NoKey,
    Device(&'a Enrichment),
    Unknown(&'a str),
    Failed(FetchError),
}

impl<'m> Lookup<'m> {
    async fn make(
        extractor: &KeyExtractor,
        fetcher: &dyn Fetcher<Enrichment>,
        deliveries: &'m [Delivery],
    ) -> Self {
        let (keys, places) = distinct_keys(extractor, deliveries);
        let results = if keys.is_empty() { Vec::new() } else { fetcher.fetch(&keys).await };
        Self { keys, results, places }
    }

    fn of(&self, index: usize) -> Found<'_> {
        let Some(place) = self.places[index] else { return Found::NoKey };
        match self.results.get(place) {
            Some(Ok(fetched)) => match &fetched.value {
                Some(data) => Found::Device(data),
                None => Found::Unknown(self.keys[place]),
            },
            Some(Err(error)) => Found::Failed(error.clone()),
            None => Found::Failed(unanswered().into()),
        }
    }

    fn unknown_key(&self, index: usize) -> Option<&str> {
        match self.of(index) {
            Found::Unknown(key) => Some(key),
            _ => None,
        }
    }
}

/// The distinct keys of a chunk, and for each delivery where its key stands among them.
fn distinct_keys<'m>(
    extractor: &KeyExtractor,
    deliveries: &'m [Delivery],
) -> (Vec<&'m str>, Vec<Option<usize>>) {
    let mut keys: Vec<&str> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::with_capacity(deliveries.len());
    let places = deliveries.iter().map(|delivery| {
        let key = extractor.key(&delivery.message)?;
        let place = *known.entry(key).or_insert(keys.len());
        if place == keys.len() {
            keys.push(key);
        }
        Some(place)
    });
    let places = places.collect();
    (keys, places)
}

/// A message with its device's data and the status that says so.
pub(crate) fn enriched(message: &Message, data: &Enrichment) -> Message {
    let mut message = marked(message, ENRICHED);
    message.enrichment = message.enrichment.with(data);
    message
}

/// A message with the status `status`.
pub(crate) fn marked(message: &Message, status: &str) -> Message {
    let mut attributes = message.attributes.edit();
    attributes.set(ENRICHMENT_STATUS, status);
    Message {
        id: message.id,
        payload: message.payload.clone(),
        attributes: attributes.build(),
        publish_time: message.publish_time,
        enrichment: message.enrichment.clone(),
        attempt: message.attempt,
    }
}

fn unanswered() -> StageError {
    StageError::transient("lookup-incomplete", "an answer was missing for this message")
}

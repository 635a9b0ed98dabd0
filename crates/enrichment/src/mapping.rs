//! Under which names a device's data is added.

use cache::{FetchError, FetchResult, Fetched, Fetcher};
use futures_util::future::{BoxFuture, FutureExt};
use messagepipeline::Enrichment;
use std::collections::BTreeMap;
use std::sync::Arc;

/// New names for fields of the device's data; a field that is not named here keeps its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldMapping {
    renames: BTreeMap<String, String>,
}

impl FieldMapping {
    /// Renames from the left to the right names.
    pub fn new(renames: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { renames: renames.into_iter().collect() }
    }

    /// The preset for readers of the names `name`, `location` and `serviceTag`, from either spelling of the
    /// device's own fields.
    #[must_use]
    pub fn name_location_service_tag() -> Self {
        let pairs = [
            ("client_id", "name"),
            ("ClientID", "name"),
            ("location_id", "location"),
            ("LocationID", "location"),
            ("category", "serviceTag"),
            ("Category", "serviceTag"),
        ];
        Self::new(pairs.map(|(from, to)| (from.to_owned(), to.to_owned())))
    }

    /// `data` under the new names. Where two fields get the same name, the first one stays.
    #[must_use]
    pub fn apply(&self, data: &Enrichment) -> Enrichment {
        let Some(fields) = data.fields() else { return Enrichment::none() };
        let mut renamed = serde_json::Map::with_capacity(fields.len());
        for (name, value) in fields {
            let name = self.renames.get(name).unwrap_or(name);
            renamed.entry(name.clone()).or_insert_with(|| value.clone());
        }
        Enrichment::from_fields(renamed)
    }

    /// A fetcher that answers with `source`'s data under the new names. It belongs below the cache in memory, so
    /// that a device's data is renamed once and not once per message, and above a cache shared with others.
    #[must_use]
    pub fn over(self, source: Arc<dyn Fetcher<Enrichment>>) -> Arc<dyn Fetcher<Enrichment>> {
        if self.renames.is_empty() {
            return source;
        }
        Arc::new(Mapped { mapping: self, source })
    }
}

struct Mapped {
    mapping: FieldMapping,
    source: Arc<dyn Fetcher<Enrichment>>,
}

impl Fetcher<Enrichment> for Mapped {
    fn fetch<'a>(&'a self, keys: &'a [&'a str]) -> BoxFuture<'a, Vec<FetchResult<Enrichment>>> {
        let rename = |fetched: Fetched<Enrichment>| Fetched {
            value: fetched.value.map(|data| self.mapping.apply(&data)),
            fresh_for: fetched.fresh_for,
        };
        async move {
            let results = self.source.fetch(keys).await;
            results.into_iter().map(|result| result.map(rename)).collect()
        }
        .boxed()
    }

    fn invalidate<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), FetchError>> {
        self.source.invalidate(key)
    }

    fn invalidate_all(&self) -> BoxFuture<'_, Result<(), FetchError>> {
        self.source.invalidate_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Enrichment {
        Enrichment::from_text(text).unwrap()
    }

    #[test]
    fn the_preset_renames_the_known_fields_and_keeps_the_others() {
        let preset = FieldMapping::name_location_service_tag();
        for (from, to) in [
            (
                r#"{"ClientID":"client-abc","LocationID":"location-123","Category":"sensor"}"#,
                r#"{"name":"client-abc","location":"location-123","serviceTag":"sensor"}"#,
            ),
            (r#"{"client_id":"c","floor":3}"#, r#"{"name":"c","floor":3}"#),
            ("{}", "{}"),
        ] {
            assert_eq!(preset.apply(&document(from)), document(to));
        }
    }
}

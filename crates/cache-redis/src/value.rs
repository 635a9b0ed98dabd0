//! How values are written.

use messagepipeline::Enrichment;
use std::sync::Arc;

/// A value that Redis holds as JSON text.
///
/// # Contract
/// - What [`to_json`](Self::to_json) wrote, [`from_json`](Self::from_json) reads back as an equal value.
/// - The text is never `null`, which stands for an absent key.
/// - Foreign bytes are refused by answering `None`, never by a panic.
pub trait CachedValue: Clone + Send + Sync + 'static {
    /// The value as one JSON text, appended to `buffer`.
    fn to_json(&self, buffer: &mut Vec<u8>);

    /// The value of `json`; `None` when that is no such value.
    fn from_json(json: &[u8]) -> Option<Self>;
}

impl CachedValue for Enrichment {
    fn to_json(&self, buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(self.text().unwrap_or("{}").as_bytes());
    }

    fn from_json(json: &[u8]) -> Option<Self> {
        Self::from_text(std::str::from_utf8(json).ok()?).ok()
    }
}

impl CachedValue for Arc<str> {
    fn to_json(&self, buffer: &mut Vec<u8>) {
        // Text always has a JSON form, and a vector takes any number of bytes.
        let _ = serde_json::to_writer(buffer, &**self);
    }

    fn from_json(json: &[u8]) -> Option<Self> {
        serde_json::from_slice::<String>(json).ok().map(Into::into)
    }
}

/// What stands for an absent key.
const ABSENT: &[u8] = b"null";

/// An entry: a value, or that the key is absent.
pub(crate) fn write<V: CachedValue>(value: Option<&V>, buffer: &mut Vec<u8>) {
    match value {
        Some(value) => value.to_json(buffer),
        None => buffer.extend_from_slice(ABSENT),
    }
}

/// An entry read back; `None` for bytes that are none.
pub(crate) fn read<V: CachedValue>(json: &[u8]) -> Option<Option<V>> {
    if json == ABSENT { Some(None) } else { V::from_json(json).map(Some) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip<V: CachedValue>(value: Option<&V>) -> Option<Option<V>> {
        let mut buffer = Vec::new();
        write(value, &mut buffer);
        read(&buffer)
    }

    #[test]
    fn a_device_without_fields_is_not_an_absent_device() {
        assert_eq!(round_trip(Some(&Enrichment::none())), Some(Some(Enrichment::none())));
        assert_eq!(round_trip::<Enrichment>(None), Some(None));
    }

    proptest! {
        #[test]
        fn values_come_back_as_they_were(name in ".*", number: i64, text in ".*") {
            let fields = [(name, number.into()), ("text".to_owned(), text.clone().into())];
            let device = Enrichment::from_fields(fields.into_iter().collect());
            prop_assert_eq!(round_trip(Some(&device)), Some(Some(device)));
            let text: Arc<str> = text.into();
            prop_assert_eq!(round_trip(Some(&text)), Some(Some(text)));
        }

        #[test]
        fn foreign_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(Some(device)) = read::<Enrichment>(&bytes) {
                prop_assert_eq!(round_trip(Some(&device)), Some(Some(device)));
            }
        }
    }
}
